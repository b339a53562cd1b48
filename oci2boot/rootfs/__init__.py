"""A tree the kernel can verify. Pure."""
