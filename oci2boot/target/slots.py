"""Slots: sets of partitions with a root file system under dm-verity, one is booted, while another is written.

UAPI group, Discoverable Partitions Specification: the root hash on the kernel command line names the partitions by
their GUIDs, so that there may be several of each type. sysupdate.d(5): the label is `_empty` where nothing is in one.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from oci2boot.digest import RootHash
from oci2boot.errors import RootSizeError, TargetError
from oci2boot.formats.gpt import Gpt
from oci2boot.formats.gpt import Partition as Entry
from oci2boot.formats.gpt_writer import NAME_MAX
from oci2boot.target.images import Image
from oci2boot.target.plan import Partition, PlacedImage
from oci2boot.target.space import in_mib
from oci2boot.target.types import ROOT_TYPES, SIGNATURE_TYPES, VERITY_TYPES

EMPTY: Final = "_empty"
SUFFIXES: Final = ("", "_verity", "_verity_sig")
"""Of labels, behind the name and version that the parts of a slot have in common."""
_ROOM: Final = 2
"""A root partition has room for one more half of its content by default."""


@dataclass(frozen=True, slots=True)
class Slot:
    """The partitions of one root file system that is complete, as the partition table names them."""

    root_hash: RootHash
    root: Entry
    tree: Entry | None
    """None where the hash tree is in the root partition."""
    signature: Entry | None

    @property
    def partitions(self) -> tuple[Entry, ...]:
        return tuple(part for part in (self.root, self.tree, self.signature) if part)


@dataclass(frozen=True, slots=True)
class SlotWrite:
    """One image, and the partition that it goes to."""

    partition: Entry
    image: Image

    @property
    def placed(self) -> PlacedImage:
        part, image = self.partition, self.image
        return PlacedImage(
            Partition(
                number=part.number,
                label=image.label,
                start=part.start,
                size=part.size,
                type=part.type,
                guid=image.guid,
                filesystem=image.content,
                filesystem_id=None,
                used=image.used,
                attributes=image.attributes,
            ),
            image.parts,
        )


def labels(stem: str, images: Sequence[Image]) -> list[Image]:
    """Return the images labelled by name and version, as systemd-sysupdate matches them; where the label would be too
    long for the partition table, they stay as they are.
    """
    if any(not stem or len(f"{stem}{suffix}".encode("utf-16-le")) > 2 * NAME_MAX for suffix in SUFFIXES):
        return list(images)
    return [replace(image, label=f"{stem}{SUFFIXES[kind(image.type)]}") for image in images]


def kind(type_: str) -> int:
    """Return which part of a slot a partition is by its type: 0 for root, 1 for hash tree, 2 for signature."""
    return next(number for number, types in enumerate(_KINDS) if type_ in types)


_KINDS: Final = (ROOT_TYPES, VERITY_TYPES, SIGNATURE_TYPES)


def two_slots(
    images: Sequence[Image], root_size: int | None, tree_size: Callable[[int], int], guid: Callable[[str], str]
) -> list[Image]:
    """Return the partitions of a first slot with room for later images, and those of a second one that is empty.

    `root_size` is what a root partition is to have, in bytes; `tree_size` is what a hash tree for so many bytes takes;
    `guid` makes identifiers. Raises `TargetError` where the image is larger.
    """
    root = images[0]
    if root_size is not None and root_size < root.used:
        raise RootSizeError(
            f"a root partition of {root_size} bytes is too small: {root.used} bytes are needed",
            hint=f"give {in_mib(root.used)} or more; later images may need more",
        )
    size = root.used + root.used // _ROOM if root_size is None else root_size
    roomy = []
    for image in images:
        room = (size, tree_size(size // 4096 * 4096), 0)[kind(image.type)]
        roomy.append(replace(image, size=max(image.used, image.size or 0, room)))
    empty = [
        replace(image, label=EMPTY, guid=guid(f"empty {number}"), content="", parts=())
        for number, image in enumerate(roomy)
    ]
    return [*roomy, *empty]


def find_slot(gpt: Gpt, root_hash: RootHash, signed: Mapping[int, RootHash], *, embedded: bool = False) -> Slot | None:
    """Return the slot that a root hash names, if all of it is there.

    `signed` are the root hashes whose signatures are in partitions, by number.
    """

    def find(types: Collection[str], guid: str) -> Entry | None:
        return next((part for part in gpt.partitions if part.type in types and part.guid == guid), None)

    root, tree = find(ROOT_TYPES, root_hash.data_uuid), find(VERITY_TYPES, root_hash.hash_uuid)
    if root is None or (tree is None and not embedded):
        return None
    signature = next((part for part in gpt.partitions if signed.get(part.number) == root_hash), None)
    return Slot(root_hash, root, None if embedded else tree, signature)


def choose_slot(gpt: Gpt, images: Sequence[Image], kept: Iterable[Slot]) -> list[SlotWrite]:
    """Choose a partition for each image, none that a slot of `kept` is on; empty ones first.

    Raises `TargetError` with what is needed and what there is.
    """
    taken = {part.number for slot in kept for part in slot.partitions}
    writes = []
    for image in images:
        free = [part for part in gpt.partitions if part.type == image.type and part.number not in taken]
        if not free:
            raise TargetError(
                f"the disk has no free partition for {image.label}",
                hint="it was installed with one slot: install it again, with two",
            )
        fitting = [part for part in free if part.size >= image.used]
        if not fitting:
            largest = max(part.size for part in free)
            raise RootSizeError(
                f"the partition for {image.label} is too small: {image.used} bytes are needed, it has {largest}",
                hint="make the image smaller, or install the disk again with a larger root partition",
            )
        chosen = min(fitting, key=lambda part: (part.name != EMPTY, part.number))
        taken.add(chosen.number)
        writes.append(SlotWrite(chosen, image))
    return writes
