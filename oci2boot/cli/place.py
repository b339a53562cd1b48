"""Which machine is meant: the one that runs, or another whose file systems are mounted, or that is a disk."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from oci2boot.cli.groups import Only
from oci2boot.sysroot.machine import Sysroot, open_sysroot
from oci2boot.workflows.options import Option


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    sysroot: Annotated[Path | None, Option("--sysroot", "the physical root of another machine", metavar="DIR")] = None
    esp: Annotated[Path | None, Option("--esp", "its boot directory, the ESP", metavar="DIR")] = None
    disk: Annotated[
        Path | None,
        Option("--disk", "a disk or disk image with two slots under dm-verity, that nothing runs from", metavar="DISK"),
    ] = None

    def open(self) -> Sysroot:
        return open_sysroot(self.sysroot, self.esp)


Mounted = Annotated[Place, Only("sysroot", "esp")]
"""Of what there is for deployments alone."""
MountedRoot = Annotated[Place, Only("sysroot")]
