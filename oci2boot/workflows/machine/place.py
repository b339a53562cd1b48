"""Which machine is meant, and of which kind it is: the one place that decides."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from oci2boot.errors import TargetError
from oci2boot.sysroot.machine import Sysroot, booted_root_hashes, changing, open_sysroot
from oci2boot.workflows.machine.deploy import DeployOptions
from oci2boot.workflows.machine.deployments import SysrootMachine
from oci2boot.workflows.machine.model import Machine
from oci2boot.workflows.machine.slots import SlotPlace, open_slots, running_place

Place = Sysroot | SlotPlace


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
    """Open a machine; whoever writes is the only one of us who does. `options` are of deployments in directories."""
    match place:
        case Sysroot():
            with changing(place) if writing else nullcontext():
                yield SysrootMachine(place, options or DeployOptions())
        case SlotPlace():
            with open_slots(place, writing=writing) as slots:
                yield slots
