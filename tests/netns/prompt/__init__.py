"""The kernel sees the prompt: proof with real clients and servers (docs/prompt.md)."""
