"""Boot entries in the firmware's memory, by efibootmgr(8). UEFI 2.10, section 3.1."""

import re
from pathlib import Path
from typing import Final

from oci2boot.system.run import Argv, run

EFI: Final = Path("/sys/firmware/efi")
_ENTRY: Final = re.compile(r"^Boot([0-9A-Fa-f]{4})\*? ([^\t\n]*)", re.MULTILINE)


def create_argv(disk: Path, partition: int, label: str, loader: str) -> Argv:
    """Make an entry and put it first in the boot order; `loader` is a path on the ESP with slashes."""
    return [
        "efibootmgr", "--quiet", "--create",
        "--disk", disk, "--part", str(partition),
        "--label", label, "--loader", "\\" + loader.replace("/", "\\"),
    ]  # fmt: skip


def delete_argv(number: str) -> Argv:
    return ["efibootmgr", "--quiet", "--bootnum", number, "--delete-bootnum"]


def entries(listing: str) -> dict[str, str]:
    """Return number and label of each entry that efibootmgr lists; newer versions add the device after a tab."""
    return {match[1]: match[2].strip() for match in _ENTRY.finditer(listing)}


def set_entry(disk: Path, partition: int, label: str, loader: str) -> None:
    """Make the entry that boots a disk; older ones with the same label go, so that installing again adds none."""
    known = entries(run(["efibootmgr"], package="efibootmgr").decode(errors="replace"))
    run(create_argv(disk, partition, label, loader), package="efibootmgr")
    for number, name in known.items():
        if name == label:
            run(delete_argv(number), package="efibootmgr")
