"""Time to first token through each balancer: a simulator, and real connections in the lab."""
