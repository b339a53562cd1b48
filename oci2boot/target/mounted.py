"""File systems that somebody mounted: whether an initramfs will find one of them again, by what the kernel is told.

UAPI.2 Discoverable Partitions Specification, and systemd-gpt-auto-generator(8), for the root partition without `root=`;
kernel-command-line(7), systemd-fstab-generator(8) for one with it; the last counts.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from oci2boot.errors import TargetError
from oci2boot.system.run import run
from oci2boot.target.types import TYPES

_NAMES: Final = {"LABEL": "label", "UUID": "uuid", "PARTLABEL": "partlabel", "PARTUUID": "partuuid"}
"""What `root=` calls a name, and what lsblk(8) does."""
_BY: Final = "/dev/disk/by-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mounted:
    """The file system that a path is on."""

    point: Path
    """Where it is mounted."""
    source: str
    """Its device, or a word where it has none."""
    type: str
    top: str
    """Which of its directories is mounted: of btrfs a subvolume, `/@rootfs`."""
    names: Mapping[str, str]
    """By the words of `root=`, those that it has."""
    part_type: str | None
    """Type of the partition in the GPT, lower case; None where it is on no partition."""
    disk: str | None
    """The kernel's name of what the partition is on: `sda`."""
    number: int | None
    """Of the partition."""


def read_mounted(path: Path) -> Mounted:
    """Look up where a path lies. Only root is told the names of file systems, where there is no udev."""
    columns = "SOURCE,FSTYPE,FSROOT,TARGET"
    found = _json(["findmnt", "--json", "--nofsroot", "--target", path, "--output", columns], "filesystems")
    source = str(found["source"])
    facts: Mapping[str, str | None] = {}
    if source.startswith("/dev/"):
        columns = "NAME,UUID,LABEL,PARTUUID,PARTLABEL,PARTTYPE,PKNAME"
        facts = _json(["lsblk", "--json", "--nodeps", "--output", columns, source], "blockdevices")
    number = Path("/sys/class/block", facts.get("name") or "-", "partition")
    return Mounted(
        point=Path(str(found["target"])),
        source=source,
        type=str(found["fstype"]),
        top=str(found["fsroot"]),
        names={name: value for name, key in _NAMES.items() if (value := facts.get(key))},
        part_type=(facts.get("parttype") or "").lower() or None,
        disk=facts.get("pkname"),
        number=int(number.read_text()) if number.is_file() else None,
    )


def _json(argv: Sequence[str | Path], key: str) -> Mapping[str, str | None]:
    found: Mapping[str, str | None] = json.loads(run(argv, package="util-linux"))[key][-1]
    return found


def check_found(words: Sequence[str], root: Mounted, esp: Mounted, architecture: str, label: str) -> None:
    """Raise `TargetError` where a kernel with these arguments would look for its root file system elsewhere.

    `label` is what the file system is called that initramfs-tools looks for when it is told nothing.
    """
    plain = [word.replace('"', "") for word in words]
    if root.top != "/" and not any(word.startswith("rootflags=") and "subvol" in word for word in plain):
        raise TargetError(
            f"{root.point} is {root.top} of {root.source}, and the initramfs would mount its default subvolume",
            hint=f"convert the image with the kernel argument rootflags=subvol={root.top}",
        )
    wanted = next((word.removeprefix("root=") for word in reversed(plain) if word.startswith("root=")), "gpt-auto")
    if wanted.startswith(_BY):
        kind, _, value = wanted.removeprefix(_BY).partition("/")
        wanted = f"{kind.upper()}={value}"
    kind, _, value = wanted.partition("=")
    expected = TYPES[architecture].root if architecture in TYPES else None
    others = []
    if kind in _NAMES:
        has = root.names.get(kind)
        if has == value or (kind.endswith("UUID") and has and has.lower() == value.lower()):
            return
        problem = f"the kernel will look for {wanted}, and {root.source} has {f'{kind}={has}' if has else f'no {kind}'}"
        if kind == "LABEL" and root.type == "ext4":
            others.append(f"e2label {root.source} {value}")
    elif wanted == "gpt-auto":
        if root.part_type == expected is not None and root.disk == esp.disk is not None:
            return
        if root.names.get("LABEL") == label:
            return
        problem = f"nothing tells the kernel that {root.source} is its root: there is no root=, and it is "
        if root.part_type is None:
            problem += "no partition"
        elif root.part_type != expected:
            problem += f"a partition of the type {root.part_type}"
            if root.disk == esp.disk and root.number and expected:
                others.append(f"sfdisk --part-type /dev/{root.disk} {root.number} {expected}")
        else:
            problem += "not on the disk of the boot directory"
    elif wanted == root.source:
        return
    else:
        problem = f"the kernel will look for {wanted}, and {root.point} is on {root.source}"
    if "UUID" in root.names:
        others.insert(0, f"convert the image with the kernel argument root=UUID={root.names['UUID']}")
    raise TargetError(problem, hint=", or ".join(others) or None)
