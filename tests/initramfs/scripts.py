"""The scripts of `oci2boot/initramfs`, and the shells that an initramfs may have."""

import re

from tests.boot.debian import PROJECT, package
from tests.witness import program

SCRIPTS = PROJECT / "oci2boot/initramfs"
SETUP_ROOT = SCRIPTS / "setup-root"
SHELLS = ("dash", "bash", "busybox")
BESIDE = re.compile(r'"(?:\$here|\$\{0%/\*\})/([a-z0-9-]+)')
"""How a script names what lies beside it."""


def shell(name: str) -> list[str]:
    if name == "busybox":
        return [str(package("busybox-static") / "usr/bin/busybox"), "ash"]
    return [program(name), *(["--posix"] if name == "bash" else [])]


def needed_by(name: str) -> set[str]:
    """Return a script's name, and those of all that it and they need beside them."""
    found: set[str] = set()
    wanted = {name}
    while wanted:
        one = wanted.pop()
        found.add(one)
        content = (SCRIPTS / one).read_bytes()
        wanted |= set(BESIDE.findall(content.decode())) - found if content.startswith(b"#!") else set()
    return found
