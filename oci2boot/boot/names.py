"""Names of boot files, and what they count."""

from typing import Final

TRIES: Final = 3
"""Boots that a new entry may fail before another one is tried. systemd, Automatic Boot Assessment."""
