"""The Steelyard agent: keeps the kernel's tables right."""

__version__ = "0.1.0"
