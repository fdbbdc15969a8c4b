"""The Steelyard agent, which keeps the kernel's tables up to date."""

__version__ = "0.1.0"
