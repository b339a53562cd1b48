"""Which machine is meant, and of which kind it is: the one place that decides."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from oci2boot.errors import TargetError
from oci2boot.sysroot.machine import LIVE, Sysroot, booted_root_hashes, changing, open_sysroot
from oci2boot.workflows.images import default_repo, writable_repo
from oci2boot.workflows.machine.deploy import DeployOptions
from oci2boot.workflows.machine.deployments import SysrootMachine
from oci2boot.workflows.machine.model import Machine
from oci2boot.workflows.machine.slots import SlotPlace, open_slots, running_place
from oci2boot.workflows.options import Option

Place = Sysroot | SlotPlace


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedPlace:
    """The machine that somebody means: the one that runs, or another that is mounted, or a disk."""

    sysroot: Annotated[Path | None, Option("--sysroot", "physical root of another machine", metavar="DIR")] = None
    esp: Annotated[Path | None, Option("--esp", "boot directory of that machine, the ESP", metavar="DIR")] = None
    disk: Annotated[
        Path | None,
        Option("--disk", "disk or disk image with two slots under dm-verity; nothing may run from it", metavar="DISK"),
    ] = None

    def store(self, repo: Path | None) -> Path | None:
        """Return where new images are kept, of a machine that does not keep them itself."""
        return repo or (writable_repo() if self.disk else None)

    def find(self, store: Path | None = None, *, others: Sequence[str] = ()) -> Place:
        """Find the machine; `others` are options that are given, and not for one with slots."""
        place = find_place(self.disk, self.sysroot, self.esp, store)
        if isinstance(place, SlotPlace) and others:
            raise TargetError(
                f"{others[0]} is not for a root file system under dm-verity",
                hint="leave it out: the new image is made as the one before",
            )
        return place

    def open(self) -> Sysroot:
        """Find a machine with deployments in directories."""
        return open_sysroot(self.sysroot, self.esp)


def find_place(
    disk: Path | None = None, sysroot: Path | None = None, esp: Path | None = None, store: Path | None = None
) -> Place:
    """Return where the machine is: on the disk that is named, in another one's directories, or here and running.

    `store` is where the new images of one with slots are kept; any other has its own.
    """
    if disk is not None:
        if sysroot is not None:
            raise TargetError("--disk and --sysroot exclude each other", hint="--disk is for slots under dm-verity")
        if not disk.exists():
            raise TargetError(f"there is no disk {disk}")
        return SlotPlace(disk, store=store)
    if sysroot is None and (found := booted_root_hashes()):
        return running_place(found, esp, store)
    return open_sysroot(sysroot, esp)


@contextmanager
def open_machine(place: Place, options: DeployOptions | None = None, *, writing: bool) -> Iterator[Machine]:
    """Open a machine; a writer locks out all other commands. `options` are of deployments in directories."""
    match place:
        case Sysroot():
            with changing(place) if writing else nullcontext():
                yield SysrootMachine(place, options or DeployOptions())
        case SlotPlace():
            with open_slots(place, writing=writing) as slots:
                yield slots


def store_of(repo: Path | None, sysroot: Path | None) -> Path:
    """Return the store that is named, or the one of the machine that is; root's own is that of the running machine."""
    if sysroot is not None:
        return open_sysroot(sysroot).repository
    if repo is None and os.geteuid() == 0 and (LIVE / "composefs/meta.json").is_file():
        return LIVE / "composefs"
    return repo or default_repo()


def machine_of(store: Path, esp: Path | None = None) -> Sysroot | None:
    """Return whose store it is: a machine's is never taken for one of its own, or what boots would not be seen."""
    if not (store.parent / "state/deploy").is_dir():
        return None
    return open_sysroot(None if store.parent == LIVE else store.parent, esp)
