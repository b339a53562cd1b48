"""The firmware's variables, as efivarfs shows them: a file for each, its attributes in front."""

from pathlib import Path
from typing import Final

from oci2boot.errors import TargetError
from oci2boot.system.files import plain_errors, read_limited

EFIVARS: Final = Path("/sys/firmware/efi/efivars")
MAX_VARIABLE: Final = 1 << 20
ATTRIBUTES: Final = 4
"""Bytes in front of the value. Linux, Documentation/filesystems/efivarfs.rst."""


def read_variable(folder: Path, name: str, vendor: str) -> bytes | None:
    """Return a variable's value; None where it is not set."""
    path = folder / f"{name}-{vendor}"
    with plain_errors(TargetError, f"read the firmware's variable {name}"):
        if not path.exists():
            return None
    return read_limited(path, MAX_VARIABLE + ATTRIBUTES, TargetError)[ATTRIBUTES:]
