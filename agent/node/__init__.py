"""The node agent: reports how busy and how healthy the GPUs of one host are."""
