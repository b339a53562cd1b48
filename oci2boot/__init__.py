"""Turn a container image into a machine that boots it."""

__version__ = "0.1.0"
