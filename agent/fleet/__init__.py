"""Runs the services of a fleet: numbered versions in a store that all its balancers share."""
