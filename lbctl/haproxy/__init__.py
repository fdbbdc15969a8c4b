"""Converts a configuration of HAProxy into one of ours; ``convert`` is the entry."""
