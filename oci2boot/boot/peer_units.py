"""The units of an initramfs that set up the root file system: do they stop the boot where they cannot?"""

import re
from collections.abc import Iterator, Mapping
from typing import Final

from oci2boot.formats import cpio

UNITS: Final = ("composefs-setup-root.service", "bootc-root-setup.service", "oci2boot-setup-root.service")
UNIT: Final = re.compile(
    rb"((usr/)?lib|etc)/systemd/system/("
    + b"|".join(re.escape(unit.encode()) for unit in UNITS)
    + rb")(\.d/[^/]+\.conf)?"
)
"""The path of one of them, or of a drop-in of it."""
STOPS: Final = ("reboot", "poweroff", "halt")
CLOSING: Final = b"""\
# A unit that is passed over, or fails, must not let the boot go on without what it verifies.
[Unit]
ConditionKernelCommandLine=
OnFailure=
FailureAction=reboot-force
"""
"""A drop-in; an empty condition takes all conditions back, an empty OnFailure what it starts. systemd.unit(5)"""
NAME: Final = "zz-oci2boot.conf"
"""Drop-ins are read in the order of their names, the last word counts."""


def texts_of(members: Mapping[bytes, cpio.Found]) -> dict[str, str]:
    """Return the units that an initramfs has, each with its drop-ins after it. `members` has their contents."""
    found = {
        name.rpartition(b"/system/")[2].decode(): (member.content or b"").decode(errors="replace")
        for name, member in members.items()
        if UNIT.fullmatch(name)
    }
    return {
        unit: "\n".join([found[unit], *(text for name, text in sorted(found.items()) if name.startswith(f"{unit}.d/"))])
        for unit in UNITS
        if unit in found
    }


def ways_around(unit: str, text: str) -> Iterator[str]:
    """Say how the boot goes on although the unit has verified nothing."""
    if any(value.startswith("composefs") for value in _values(text, "ConditionKernelCommandLine")):
        yield f"{unit} is passed over without a composefs argument: the disk itself would be booted"
    if not any(value.startswith(STOPS) for value in _values(text, "FailureAction")[-1:]):
        yield f"where {unit} fails, the machine does not restart: it may end in a shell"


def _values(text: str, key: str) -> list[str]:
    """Return what a key is set to; an empty setting takes back those before it."""
    values: list[str] = []
    for value in re.findall(rf"^{key}=(.*)$", text, re.MULTILINE):
        values = [*values, value.strip()] if value.strip() else []
    return values
