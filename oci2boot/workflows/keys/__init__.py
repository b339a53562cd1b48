"""Keys, signatures, and the executables that carry them."""
