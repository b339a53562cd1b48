"""What the firmware loads. Pure."""
