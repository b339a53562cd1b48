"""The system that was there before the first image: what is known of it, and how it goes.

/state/transition.json    its title, and what is its own: names beneath the physical root, entries of the boot menu
"""

import fcntl
import json
import os
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from oci2boot.errors import TargetError
from oci2boot.sysroot.machine import Sysroot
from oci2boot.system.files import plain_errors, read_limited, write_atomically

RECORD: Final = "state/transition.json"
ENTRY: Final = "loader/entries/oci2boot-before.conf"
"""Starts the old system's boot loader, where that has no entry in the menu."""
MAX_RECORD: Final = 1 << 20
OWN: Final = frozenset({"composefs", "state", "lost+found"})
"""Names beneath the physical root that are never the old system's."""
_GETFLAGS, _SETFLAGS, _IMMUTABLE = 0x80086601, 0x40086602, 0x10
"""ioctl_iflags(2); ostree makes the directories of its deployments immutable."""


@dataclass(frozen=True, slots=True)
class Before:
    title: str
    names: tuple[str, ...]
    """Beneath the physical root."""
    kept: tuple[str, ...] = ()
    """Of these, what the new system uses too."""
    entries: tuple[str, ...] = ()
    """Of the boot directory: paths."""

    def to_json(self) -> dict[str, Any]:
        return {
            "title": self.title,
            "names": list(self.names),
            "kept": list(self.kept),
            "entries": list(self.entries),
        }


def write_before(sysroot: Sysroot, before: Before) -> None:
    with plain_errors(TargetError, f"write {sysroot.root / RECORD}"):
        write_atomically(sysroot.root / RECORD, json.dumps(before.to_json(), indent=2).encode() + b"\n")


def write_entry(sysroot: Sysroot, entry: bytes) -> None:
    path = sysroot.boot_directory() / ENTRY
    with plain_errors(TargetError, f"write {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, entry)


def read_before(sysroot: Sysroot) -> Before | None:
    """Return what is known of the old system; None where there is none. What it names is checked when it is removed."""
    path = sysroot.root / RECORD
    if path.is_symlink() or not path.is_file():
        return None
    try:
        found = json.loads(read_limited(path, MAX_RECORD, TargetError))
        lists = [tuple(map(str, found[key])) for key in ("names", "kept", "entries")]
        return Before(str(found["title"]), *lists)
    except (ValueError, KeyError, TypeError) as error:
        raise TargetError(f"{path} cannot be read: it is not what `install` wrote") from error


def plan_removal(sysroot: Sysroot, before: Before) -> list[tuple[str, int]]:
    """Return what would go, with its bytes: nothing that the record names and is not plainly the old system's."""
    found = []
    for name in before.names:
        path = sysroot.root / name
        if "/" in name or name in OWN or name in (".", "..", "") or name in before.kept or not os.path.lexists(path):
            continue
        found.append((name, sum(status.st_blocks * 512 for status in _inodes(path))))
    return found


def remove(sysroot: Sysroot, before: Before) -> None:
    """Remove it, the record last, so that a run that was stopped is completed by the next."""
    for name, _ in plan_removal(sysroot, before):
        path = sysroot.root / name
        with plain_errors(TargetError, f"remove {path}"):
            if path.is_dir() and not path.is_symlink():
                _check_no_mounts(path)
                _make_mutable(path)
                shutil.rmtree(path)
            else:
                path.unlink()
    boot = sysroot.boot_directory()
    for entry in before.entries:
        place = boot / entry
        if ".." not in entry.split("/") and entry.startswith("loader/entries/"):
            with plain_errors(TargetError, f"remove {place}"):
                place.unlink(missing_ok=True)
    (sysroot.root / RECORD).unlink(missing_ok=True)


def _inodes(path: Path) -> Iterator[os.stat_result]:
    """Yield what is there, and on the same file system, each inode once."""
    first = path.lstat()
    seen = {first.st_ino}
    yield first
    if not stat.S_ISDIR(first.st_mode):
        return
    for folder, folders, files in os.walk(path):
        for name in (*folders, *files):
            status = Path(folder, name).lstat()
            if status.st_dev == first.st_dev and status.st_ino not in seen:
                seen.add(status.st_ino)
                yield status


def _check_no_mounts(path: Path) -> None:
    device = path.lstat().st_dev
    for folder, folders, _ in os.walk(path):
        for name in folders:
            inner = Path(folder, name)
            if inner.lstat().st_dev != device:
                raise TargetError(f"another file system is mounted at {inner}", hint=f"umount {inner}")


def _make_mutable(path: Path) -> None:
    for folder, _, _ in os.walk(path):
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            flags = bytearray(8)
            fcntl.ioctl(fd, _GETFLAGS, flags)
            number = int.from_bytes(flags[:4], "little")
            if number & _IMMUTABLE:
                flags[:4] = (number & ~_IMMUTABLE).to_bytes(4, "little")
                fcntl.ioctl(fd, _SETFLAGS, flags)
        except OSError:  # a file system without such flags
            return
        finally:
            os.close(fd)
