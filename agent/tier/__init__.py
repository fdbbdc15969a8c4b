"""Runs HAProxy in front of the engines' VIPs: TLS, keys, limits and routes by what is asked."""
