"""The kernel and other programs."""
