"""Outages of a pair of balancers as a client sees them: our failover compared with keepalived's."""
