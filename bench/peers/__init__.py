"""CPU cost of a whole connection: Steelyard compared with HAProxy, nginx and nftables."""
