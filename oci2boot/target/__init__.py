"""Where an installation lands."""
