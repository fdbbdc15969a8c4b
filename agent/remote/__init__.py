"""The process `lb-agent api`: the API for other hosts, over TLS, before the agent's socket."""
