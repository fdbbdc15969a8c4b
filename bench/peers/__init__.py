"""CPU cost of a connection end to end: Steelyard beside HAProxy, nginx and nftables."""
