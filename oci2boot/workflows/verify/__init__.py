"""What an image, a disk or a UKI is, and whether it is intact."""
