"""Other implementations, whose answers the tests take: those that run here, and the folder of what they once said."""

import os
import shutil
import sys
from pathlib import Path

VECTORS = Path(__file__).parent / "vectors"

_SEARCH = os.pathsep.join(
    [
        os.environ.get("PATH", os.defpath),
        str(Path.home() / ".cargo/bin"),
        str(Path(sys.executable).parent),
        "/usr/sbin",
        "/sbin",
    ]
)


def program(name: str) -> str:
    """Return the path of a program that the tests need; one that is missing fails them."""
    found = os.environ.get(f"OCI2BOOT_{name.upper()}") or shutil.which(name, path=_SEARCH)
    assert found, f"{name} is missing: scripts/setup test installs it"
    return found
