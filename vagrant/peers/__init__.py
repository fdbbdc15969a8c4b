"""The same service by Steelyard and by keepalived with IPVS, in the same virtual machines."""
