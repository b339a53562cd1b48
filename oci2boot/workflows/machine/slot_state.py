"""A machine with two slots under dm-verity: its disk and its boot directory put together, live or as a disk image."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from oci2boot.boot.names import MAX_UKI
from oci2boot.boot.roothash import parse_partition
from oci2boot.digest import RootHash
from oci2boot.errors import Error, FormatError, TargetError
from oci2boot.formats.gpt import Gpt
from oci2boot.store.images import Bootable
from oci2boot.store.roots import DmVerityRoot
from oci2boot.sysroot.bootdir import MAX_CONF, BootDirectory, BootEntry, mapped, read_boot_directory
from oci2boot.sysroot.bootdir_apply import apply_boot
from oci2boot.sysroot.bootdir_steps import BootPlan
from oci2boot.sysroot.machine import mounted_esp
from oci2boot.system.block import read_block_device
from oci2boot.target.esp_disk import EspOnDisk, open_esp
from oci2boot.target.guards import check_unused
from oci2boot.target.slot_disk import SlotDisk, open_slot_disk
from oci2boot.target.slots import Slot, find_slot
from oci2boot.target.types import ESP_TYPE
from oci2boot.workflows.machine.esp_steps import apply_on_disk

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
    """Where new images are kept; None for the machine that runs: in `STORE`, until it is in a slot."""

    @property
    def repository(self) -> Path:
        return self.store or STORE

    @property
    def live(self) -> bool:
        return self.booted is not None


@dataclass(frozen=True, slots=True)
class SlotState:
    """Read once; plans are made of it."""

    place: SlotPlace
    gpt: Gpt
    directory: BootDirectory
    slots: dict[str, Slot]
    """Complete ones, by the path of the boot entry."""
    images: dict[str, Bootable]
    """What entries boot, by their paths, where a record says it."""
    problems: tuple[str, ...] = ()

    @property
    def current(self) -> BootEntry | None:
        """What runs; on a disk that nothing runs from, the first entry that is known to be good, or else the first."""
        own = [entry for entry in self.directory.entries if entry.path in self.slots and entry.own]
        if self.place.booted:
            return next((entry for entry in own if self.place.booted in entry.root_hashes), None)
        return next((entry for entry in own if entry.tries_left is None), own[0] if own else None)


@dataclass(frozen=True, slots=True)
class Slots:
    """A disk with slots and its boot directory, open."""

    place: SlotPlace
    disk: SlotDisk
    esp: EspOnDisk | None
    """None where it is mounted."""

    @contextmanager
    def state(self) -> Iterator[SlotState]:
        """Give what there is now; the files of the boot directory can be read meanwhile."""
        with ExitStack() as stack:
            if self.esp is None:
                assert self.place.esp
                directory = read_boot_directory(self.place.esp)
            else:
                folder = Path(stack.enter_context(TemporaryDirectory(prefix="oci2boot-")))
                directory = _copied(self.esp, folder)
            yield self._state(directory)

    def _state(self, directory: BootDirectory) -> SlotState:
        gpt = self.disk.table()
        signed = self.disk.signed(gpt, lambda data: parse_partition(data)[0])
        problems, slots, images = [*gpt.problems, *directory.problems], {}, {}
        for entry in directory.entries:
            if entry.record:
                try:
                    with mapped(directory.path / entry.record, MAX_CONF) as data:
                        images[entry.path] = Bootable.parse(bytes(data))
                except (Error, OSError) as error:
                    problems.append(f"{entry.record}: {error}")
            image = images.get(entry.path)
            embedded = bool(image and isinstance(image.root, DmVerityRoot) and image.root.place == "embedded")
            if len(entry.root_hashes) != 1:
                continue
            found = find_slot(gpt, entry.root_hashes[0], signed, embedded=embedded)
            if found:
                slots[entry.path] = found
            elif entry.own:
                problems.append(f"{entry.path}: its root file system is not on the disk, or not complete")
        return SlotState(self.place, gpt, directory, slots, images, tuple(problems))

    def apply(self, plan: BootPlan) -> None:
        if self.esp is None:
            assert self.place.esp
            apply_boot(plan, self.place.esp)
        else:
            apply_on_disk(plan, self.esp)


def _copied(esp: EspOnDisk, folder: Path) -> BootDirectory:
    fat = esp.fat()
    for path in fat.files:
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(fat.content(path, MAX_UKI))
    return replace(read_boot_directory(folder), free=fat.free, size=fat.size, cluster=fat.cluster)


@contextmanager
def open_slots(place: SlotPlace, *, writing: bool) -> Iterator[Slots]:
    """Open the disk; whoever writes is the only one of us who does."""
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
        yield Slots(place, disk, esp)


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
