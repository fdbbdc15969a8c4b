"""What Prometheus is given, and how its expressions are read."""
