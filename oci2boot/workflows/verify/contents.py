"""What a disk or a directory holds, in either mode: the readers make it, and the checks ask nothing else."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from oci2boot.digest import RootHash
from oci2boot.errors import TargetError
from oci2boot.store.images import Bootable
from oci2boot.store.roots import Mode
from oci2boot.sysroot.deployments import RECORD_MAX
from oci2boot.sysroot.physical import RECORD
from oci2boot.system.files import plain_errors, read_limited
from oci2boot.target.installed import InstalledRoot
from oci2boot.tree.diff import Difference
from oci2boot.workflows.verify.checks import Checks
from oci2boot.workflows.verify.esp import EspFiles
from oci2boot.workflows.verify.manifest import Manifest
from oci2boot.workflows.verify.promises import Digest, Start

_DEPLOYMENTS: Final = b"/state/deploy"


@dataclass(frozen=True, slots=True, kw_only=True)
class Root:
    """A root file system that is here."""

    intact: bool
    """It is what its digest stands for."""
    problem: str | None = None
    """Why nothing can boot it, as a sentence without its first word: it ..."""
    differences: Callable[[Manifest], Iterable[Difference]] | None
    """Compares every file with those of a manifest; None where the files cannot be read."""


@dataclass(frozen=True, slots=True)
class State:
    """What the machine keeps of its own."""

    deployments: tuple[str, ...] = ()
    records: tuple[Bootable, ...] = ()
    """What was installed."""
    places: tuple[str, ...] = ()
    """The machine writes there, and reads it unverified."""


@dataclass(frozen=True, slots=True)
class RootSignature:
    """A signature of a root hash, as it was found."""

    place: str
    root_hash: RootHash
    read: Callable[[], bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    kind: str
    """For people: a disk, a live ISO, a repository."""
    mode: Mode
    esp: EspFiles | None
    """The boot files; None where they cannot be read, or nobody said where they are."""
    starts: tuple[Start, ...]
    """What can be started of them."""
    roots: Mapping[Digest, Root] | None
    """None where they are encrypted, and nobody can see them."""
    signatures: tuple[RootSignature, ...] = ()
    """In partitions of their own."""
    state: State


def read_state(root: InstalledRoot, places: Iterable[str], checks: Checks) -> State:
    """Read the state out of the file system that it is in."""

    def read(name: bytes) -> bytes | None:
        number = root.find(b"/".join((_DEPLOYMENTS, name, RECORD)))
        return None if number is None else root.content(number, RECORD_MAX)

    return _state(sorted(root.listing(_DEPLOYMENTS)), read, places, checks)


def read_mounted_state(top: Path, places: Iterable[str], checks: Checks) -> State:
    """Read the state beneath a directory; a repository alone has none."""
    folder = top / _DEPLOYMENTS.decode().lstrip("/")
    if not folder.is_dir():
        return State()

    def read(name: bytes) -> bytes | None:
        path = folder / os.fsdecode(name) / RECORD.decode()
        return read_limited(path, RECORD_MAX, TargetError) if path.is_file() else None

    with plain_errors(TargetError, f"read {folder}"):
        names = sorted(os.fsencode(one.name) for one in folder.iterdir())
    return _state(names, read, places, checks)


def _state(
    names: Sequence[bytes], read: Callable[[bytes], bytes | None], places: Iterable[str], checks: Checks
) -> State:
    shown, records = [name.decode(errors="replace") for name in names], []
    for name, deployment in zip(names, shown, strict=True):
        with checks.attempt(f"record {deployment}"):
            if (data := read(name)) is not None:
                records.append(Bootable.parse(data))
    return State(tuple(shown), tuple(records), tuple(places))
