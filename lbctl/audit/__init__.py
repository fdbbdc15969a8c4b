"""Holds a running balancer against the practices of load balancing for AI; nothing is changed."""
