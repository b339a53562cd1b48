"""A machine with two slots under dm-verity: its disk and its boot directory put together, live or as a disk image."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

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
from oci2boot.sysroot.machine import booted_root_hashes, mounted_esp
from oci2boot.system.block import read_block_device
from oci2boot.target.esp_disk import EspOnDisk, open_esp
from oci2boot.target.guards import check_unused
from oci2boot.target.slot_disk import SlotDisk, open_slot_disk
from oci2boot.target.slots import EMPTY, Slot, find_slot
from oci2boot.target.types import ESP_TYPE, ROOT_TYPES
from oci2boot.workflows.machine.esp_steps import apply_on_disk

VERSION: Final = 1
"""Of what `status --json` says of such a machine."""
BY_GUID: Final = Path("/dev/disk/by-partuuid")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a machine's disk is."""

    disk: Path
    esp: Path | None = None
    """Where its EFI system partition is mounted; None for a disk that nothing runs from."""
    booted: RootHash | None = None

    @property
    def live(self) -> bool:
        return self.booted is not None


@dataclass(frozen=True, slots=True)
class SlotState:
    """Read once; plans are made of it."""

    place: Place
    gpt: Gpt
    directory: BootDirectory
    slots: dict[str, Slot]
    """Complete ones, by the path of the boot entry."""
    images: dict[str, Bootable]
    """What entries boot, by their paths, where a record says it."""
    problems: tuple[str, ...] = ()

    @property
    def next(self) -> BootEntry | None:
        """What boots if nobody chooses: the first entry of all, where it is one of ours and its slot complete."""
        return next((entry for entry in self.directory.entries[:1] if entry.path in self.slots and entry.own), None)

    @property
    def current(self) -> BootEntry | None:
        """What runs; on a disk that nothing runs from, the first entry that is known to be good, or else the first."""
        own = [entry for entry in self.directory.entries if entry.path in self.slots and entry.own]
        if self.place.booted:
            return next((entry for entry in own if self.place.booted in entry.root_hashes), None)
        return next((entry for entry in own if entry.tries_left is None), own[0] if own else None)

    @property
    def tracked(self) -> Bootable:
        """Return what the next upgrade is the next version of."""
        for entry in (self.next, self.current):
            if entry and entry.path in self.images:
                return self.images[entry.path]
        raise TargetError(
            f"nothing says where the image on {self.place.disk} came from", hint="`oci2boot switch` installs one"
        )

    def states_of(self, entry: BootEntry) -> list[str]:
        """Return what an entry is, in the words of `status`."""
        found = []
        if self.place.booted in entry.root_hashes:
            found.append("booted")
        if self.next == entry:
            found.append("staged" if self.place.booted and not found else "next")
        return found or ["kept"]

    def to_json(self) -> dict[str, Any]:
        taken = {part.number for slot in self.slots.values() for part in slot.partitions}
        roots = [part for part in self.gpt.partitions if part.type in ROOT_TYPES]
        return {
            "version": VERSION,
            "mode": "verity",
            "disk": str(self.place.disk),
            "live": self.place.live,
            "booted": str(self.place.booted) if self.place.booted else None,
            "next": str(self.slots[self.next.path].root_hash) if self.next else None,
            "slots": [self._slot(entry) for entry in self.directory.entries if entry.path in self.slots],
            "free": [
                {"partition": part.number, "size": part.size, "empty": part.name == EMPTY}
                for part in roots
                if part.number not in taken
            ],
            "problems": list(self.problems),
        }

    def _slot(self, entry: BootEntry) -> dict[str, Any]:
        slot, image = self.slots[entry.path], self.images.get(entry.path)
        return {
            "root_hash": str(slot.root_hash),
            "states": self.states_of(entry),
            "partitions": [
                {"number": part.number, "label": part.name, "guid": part.guid, "size": part.size}
                for part in slot.partitions
            ],
            "signed": slot.signature is not None,
            "image": image.name if image else None,
            "source": image.source if image else None,
            "manifest": str(image.manifest) if image and image.manifest else None,
            "title": entry.title,
            "entry": {
                "id": entry.id,
                "path": entry.path,
                "version": entry.version,
                "tries_left": entry.tries_left,
                "tries_done": entry.tries_done,
                "bad": entry.bad,
            },
        }


@dataclass(frozen=True, slots=True)
class Machine:
    place: Place
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
def open_machine(place: Place, *, writing: bool, epoch: int = 0) -> Iterator[Machine]:
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
            esp = stack.enter_context(open_esp(disk, found[0], epoch))
        yield Machine(place, disk, esp)


def find_place(disk: Path | None, esp: Path | None = None) -> Place | None:
    """Return the disk that is named, or that of the running machine, if its root is under dm-verity."""
    if disk is not None:
        if not disk.exists():
            raise TargetError(f"there is no disk {disk}")
        return Place(disk)
    found = booted_root_hashes()
    if not found:
        return None
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
    return Place(Path("/dev", read_block_device(node).disk or node), place, found[0])
