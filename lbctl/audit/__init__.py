"""Compares a running balancer with the practices of load balancing for AI; changes nothing."""
