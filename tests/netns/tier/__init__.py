"""The tier, with a real HAProxy and with engines that answer as real ones do."""
