"""The lab in virtual machines: a real kernel per machine, real boots, a fresh install."""
