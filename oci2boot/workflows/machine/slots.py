"""A machine whose root file system dm-verity guards: its deployments are slots, sets of partitions on its disk.

Disk and boot directory are put together here, live or as a disk image; `slot_deploy` fills a slot.
"""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from oci2boot.boot.names import MAX_UKI
from oci2boot.boot.roothash import parse_partition
from oci2boot.digest import RootHash
from oci2boot.errors import Error, FormatError, StoreError, TargetError
from oci2boot.formats.gpt import Gpt
from oci2boot.store.images import Bootable
from oci2boot.store.repository import Repository
from oci2boot.store.roots import DmVerityRoot
from oci2boot.sysroot.bootdir import MAX_CONF, BootDirectory, BootEntry, mapped, read_boot_directory
from oci2boot.sysroot.bootdir_apply import apply_boot
from oci2boot.sysroot.bootdir_steps import BootPlan
from oci2boot.sysroot.machine import mounted_esp
from oci2boot.system.block import read_block_device
from oci2boot.system.files import plain_errors
from oci2boot.target.esp_disk import EspOnDisk, open_esp
from oci2boot.target.guards import check_unused
from oci2boot.target.slot_disk import SlotDisk, open_slot_disk
from oci2boot.target.slots import EMPTY, Slot, find_slot
from oci2boot.target.types import ESP_TYPE, ROOT_TYPES
from oci2boot.workflows.machine.esp_steps import apply_on_disk
from oci2boot.workflows.machine.model import Deployment, MachineState
from oci2boot.workflows.machine.slot_deploy import SlotPlan, apply_slot, plan_slot
from oci2boot.workflows.progress import Report

BY_GUID: Final = Path("/dev/disk/by-partuuid")
STORE: Final = Path("/var/lib/oci2boot/composefs")


@dataclass(frozen=True, slots=True)
class SlotPlace:
    """Where a machine's disk is."""

    disk: Path
    esp: Path | None = None
    """Where its EFI system partition is mounted; None for a disk that nothing runs from."""
    booted: RootHash | None = None
    store: Path | None = None
    """Where new images are kept; None for the machine that runs: in `STORE`, until they are in a slot."""

    @property
    def repository(self) -> Path:
        return self.store or STORE

    @property
    def live(self) -> bool:
        return self.booted is not None


@dataclass(frozen=True, slots=True)
class SlotMachine:
    place: SlotPlace
    disk: SlotDisk
    esp: EspOnDisk | None
    """None where it is mounted."""

    @property
    def store(self) -> Path:
        return self.place.repository

    @contextmanager
    def state(self) -> Iterator[MachineState]:
        with ExitStack() as stack:
            if self.esp is None:
                assert self.place.esp
                directory = read_boot_directory(self.place.esp)
            else:
                folder = Path(stack.enter_context(TemporaryDirectory(prefix="oci2boot-")))
                directory = _copied(self.esp, folder)
            yield self._state(directory)

    def _state(self, directory: BootDirectory) -> MachineState:
        gpt = self.disk.table()
        signed = self.disk.signed(gpt, lambda data: parse_partition(data)[0])
        problems, made = [*gpt.problems, *directory.problems], []
        for entry in directory.entries:
            image = None
            if entry.record:
                try:
                    with mapped(directory.path / entry.record, MAX_CONF) as data:
                        image = Bootable.parse(bytes(data))
                except (Error, OSError) as error:
                    problems.append(f"{entry.record}: {error}")
            embedded = bool(image and isinstance(image.root, DmVerityRoot) and image.root.place == "embedded")
            if len(entry.root_hashes) != 1:
                continue
            slot = find_slot(gpt, entry.root_hashes[0], signed, embedded=embedded)
            if slot:
                made.append(_deployment(entry, slot, image))
            elif entry.own:
                problems.append(f"{entry.path}: its root file system is not on the disk, or not complete")
        booted, own = str(self.place.booted) if self.place.booted else None, [one for one in made if one.own]
        first = directory.default
        # On a disk that nothing runs from, the first entry that is known to be good, or else the first.
        good = [one for one in own if all(entry.tries_left is None for entry in one.entries)]
        running = [one for one in own if one.id == booted] if booted else [*good, *own]
        return MachineState(
            mode="verity",
            live=self.place.live,
            esp=self.place.esp,
            directory=directory,
            deployments=tuple(made),
            booted=booted,
            next=next((one for one in own if first in one.entries), None),
            current=next(iter(running), None),
            problems=tuple(problems),
            facts={"disk": str(self.place.disk), "free": _free(gpt, made)},
        )

    def plan(self, repository: Repository, bootable: Bootable) -> SlotPlan:
        with self.state() as state:
            return plan_slot(state, self.disk.table(), repository, bootable)

    def deploy(self, repository: Repository, bootable: Bootable, report: Report) -> SlotPlan:
        plan = self.plan(repository, bootable)
        apply_slot(plan, self, self.disk, report)
        return plan

    def change_boot(self, plan: BootPlan) -> None:
        if self.esp is None:
            assert self.place.esp
            apply_boot(plan, self.place.esp)
        else:
            apply_on_disk(plan, self.esp)

    def tidy(self) -> list[str]:
        if self.place.live and self.place.store is None:
            # It was needed for this one image; one that is named keeps layers for the next.
            with plain_errors(StoreError, f"remove {STORE}"):
                shutil.rmtree(STORE)
        return []


def _copied(esp: EspOnDisk, folder: Path) -> BootDirectory:
    fat = esp.fat()
    for path in fat.files:
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(fat.content(path, MAX_UKI))
    return replace(read_boot_directory(folder), free=fat.free, size=fat.size, cluster=fat.cluster)


def _deployment(entry: BootEntry, slot: Slot, image: Bootable | None) -> Deployment:
    return Deployment(
        id=str(slot.root_hash),
        entries=(entry,),
        record=image.to_json() if image else None,
        title=entry.title,
        rejected=entry.tries_left == 0,
        own=entry.own,
        slot=slot,
        facts={
            "root_hash": str(slot.root_hash),
            "partitions": [
                {"number": part.number, "label": part.name, "guid": part.guid, "size": part.size}
                for part in slot.partitions
            ],
            "signed": slot.signature is not None,
        },
    )


def _free(gpt: Gpt, made: Sequence[Deployment]) -> list[dict[str, Any]]:
    """Return the root partitions that no slot is on."""
    taken = {part.number for one in made if one.slot for part in one.slot.partitions}
    return [
        {"partition": part.number, "size": part.size, "empty": part.name == EMPTY}
        for part in gpt.partitions
        if part.type in ROOT_TYPES and part.number not in taken
    ]


@contextmanager
def open_slots(place: SlotPlace, *, writing: bool) -> Iterator[SlotMachine]:
    """Open the disk; a writer locks out all other commands."""
    with ExitStack() as stack:
        if writing and not place.live and place.disk.is_block_device():
            check_unused(read_block_device(place.disk))
        disk = stack.enter_context(open_slot_disk(place.disk, writing=writing))
        esp = None
        if place.esp is None:
            found = [part for part in disk.table().partitions if part.type == ESP_TYPE]
            if len(found) != 1:
                raise FormatError(f"{place.disk} has {len(found) or 'no'} EFI system partition{'s' if found else ''}")
            esp = stack.enter_context(open_esp(disk, found[0], epoch=0))
        yield SlotMachine(place, disk, esp)


def running_place(found: Sequence[RootHash], esp: Path | None, store: Path | None) -> SlotPlace:
    """Return the disk that this machine runs from, by what its kernel was told."""
    if len(found) > 1:
        raise TargetError("the kernel command line names more than one root file system")
    node = BY_GUID / found[0].data_uuid
    if not node.exists():
        raise TargetError(f"the partition of the root file system is not at {node}", hint="is udev running?")
    place = esp or mounted_esp()
    if place is None:
        raise TargetError(
            "the EFI system partition is not mounted", hint="name the directory with its files: --esp DIR"
        )
    return SlotPlace(Path("/dev", read_block_device(node).disk or node), place, found[0], store)
