"""The steps of a change of the boot directory, as values, and the space they take."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from oci2boot.boot.names import MAX_UKI
from oci2boot.errors import TargetError
from oci2boot.formats import bls
from oci2boot.sysroot.bootdir import TEMPORARY, BootDirectory, mapped
from oci2boot.system.files import read_limited

SLOT: Final = 32
"""Bytes of a slot in a directory of FAT; a long name has one for each 13 characters, and one more."""

Source = bytes | Path
"""Content, or a file with it that nobody changes."""


@dataclass(frozen=True, slots=True)
class Write:
    path: str
    source: Source
    size: int
    sha256: str

    def to_json(self) -> dict[str, Any]:
        return {"write": self.path, "size": self.size, "sha256": self.sha256}


@dataclass(frozen=True, slots=True)
class Rename:
    path: str
    to: str

    def to_json(self) -> dict[str, Any]:
        return {"rename": self.path, "to": self.to}


@dataclass(frozen=True, slots=True)
class Remove:
    path: str

    def to_json(self) -> dict[str, Any]:
        return {"remove": self.path}


@dataclass(frozen=True, slots=True)
class RemoveDirectory:
    """If nothing is left in it."""

    path: str

    def to_json(self) -> dict[str, Any]:
        return {"remove_directory": self.path}


Step = Write | Rename | Remove | RemoveDirectory


@dataclass(frozen=True, kw_only=True)
class BootPlan:
    steps: tuple[Step, ...]
    first: str
    """Id of the entry that boots when all is done."""
    needed: int
    """Bytes that must be free before the first step: the most that is in use between two."""
    paths: Mapping[str, str]
    """Where each of the new files will be; an entry whose name is taken by another has a longer one."""
    removed: tuple[str, ...] = ()
    """Ids of entries that make room."""
    problems: tuple[str, ...] = ()
    """What may keep the first entry from being what boots."""

    def to_json(self) -> dict[str, Any]:
        return {
            "first": self.first,
            "needed": self.needed,
            "paths": dict(self.paths),
            "removed": list(self.removed),
            "problems": list(self.problems),
            "steps": [step.to_json() for step in self.steps],
        }


def source_size(source: Source) -> int:
    return len(source) if isinstance(source, bytes) else source.stat().st_size


@contextmanager
def opened(source: Source) -> Iterator[bytes]:
    """Give the bytes of an EFI program."""
    if isinstance(source, bytes):
        yield source
        return
    with mapped(source, MAX_UKI) as data:
        yield data


def content(source: Source) -> bytes:
    """Return an entry of the boot menu."""
    return source if isinstance(source, bytes) else read_limited(source, bls.MAX_SIZE, TargetError)


def sha256_of(source: Source) -> str:
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    with source.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def peak(directory: BootDirectory, steps: Iterable[Step]) -> int:
    """Return the most bytes that the steps take at a time: old and new beside each other, directories counted high."""
    sizes = {path.lower(): size for path, size in directory.files.items()}
    folders = {parent for path in sizes for parent in parents(path)}
    slots: dict[str, int] = {}
    used = highest = 0

    def clusters(size: int) -> int:
        return -(-size // directory.cluster) * directory.cluster

    def name_in(path: str, *names: str) -> int:
        """Return what the directory of `path` may grow by."""
        folder = path.rpartition("/")[0]
        before = slots.get(folder, 0)
        slots[folder] = before + sum(1 + -(-len(name) // 13) for name in names)
        return clusters(slots[folder] * SLOT) - clusters(before * SLOT)

    for step in steps:
        path = step.path.lower()
        if isinstance(step, Write):
            new = [parent for parent in parents(path) if parent not in folders]
            folders.update(new)
            used += len(new) * directory.cluster + clusters(step.size)
            used += name_in(path, path.rpartition("/")[2], f"{TEMPORARY}{'0' * 16}.tmp")
            highest = max(highest, used)
            used -= clusters(sizes.get(path, 0))
            sizes[path] = step.size
        elif isinstance(step, Rename):
            used += name_in(path, step.to.rpartition("/")[2])
            highest = max(highest, used)
        elif isinstance(step, Remove):
            used -= clusters(sizes.pop(path, 0))
    return highest


def parents(path: str) -> list[str]:
    """Return the directories above a path, the outermost first."""
    names = path.split("/")
    return ["/".join(names[:depth]) for depth in range(1, len(names))]
