"""The root file system as a value. Pure."""
