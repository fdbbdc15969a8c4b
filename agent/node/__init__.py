"""The node agent: tells how busy and how well the GPUs of one host are."""
