"""The plan of a disk: a GUID partition table with an EFI system partition, partitions whose bytes are given, and an
ext4 file system that grows: the root of a composefs machine, what may be written on one whose root is under dm-verity.

UEFI 2.10, sections 5.3 and 13.3; UAPI.2 Discoverable Partitions Specification: types that need no `root=`. The ext4 is
last, so that it can grow; bit 59 is not set, as systemd would then try to grow the overlay that hides this file system.
"""

import hashlib
import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from oci2boot.errors import TargetError
from oci2boot.formats.gpt import SECTORS
from oci2boot.target.entries import EspFile, RootEntry, source_size
from oci2boot.target.images import Image, Part
from oci2boot.target.nodes import BLOCK, Node, number_entries
from oci2boot.target.space import (
    FAT_CLUSTER,
    MIB,
    ext4_capacity,
    ext4_minimum,
    ext4_needed,
    fat_capacity,
    fat_minimum,
    fat_needed,
    in_mib,
)
from oci2boot.target.types import ESP_TYPE, LINUX_TYPE, READ_ONLY, types_of

ESP_DEFAULT_MIN: Final = 512 * MIB
DISK_MAX: Final = 1 << 46
LUKS_HEADER: Final = 16 * MIB
"""What cryptsetup reserves by default: two copies of the metadata, and room for 32 keyslots."""

MARGIN: Final = MIB
"""Before the first partition and behind the last: the two partition tables, and the alignment of everything."""
_FREE_DEFAULT_MIN: Final = 256 * MIB
_LABEL: Final = re.compile(r"[A-Za-z0-9_.-]+")
_FAT_LABEL_MAX: Final = 11
_EXT4_LABEL_MAX: Final = 16
_ESP_NAME: Final = re.compile(r"[A-Za-z0-9_.+@=,~()-]([A-Za-z0-9_.+@=,~() -]{0,253}[A-Za-z0-9_+@=,~()-])?")


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskOptions:
    """Sizes are in bytes, and a sparse file pays nothing for free room. The defaults: an ESP with room for four times
    its content and of 512 MiB or more, for further UKIs; an ext4 file system with 256 MiB and half of its content free.
    """

    seed: bytes
    """Every GUID, UUID and hash seed is derived from it; the same seed and content give the same bytes."""
    epoch: int = 0
    """Seconds since 1970, as in SOURCE_DATE_EPOCH: all times but the entries' mtime."""
    architecture: str = "amd64"
    size: int | None = None
    """Of the whole disk."""
    esp_size: int | None = None
    esp_cluster: int = FAT_CLUSTER
    """Bytes of a cluster: with small ones, a small file system may still be FAT32."""
    sector: int = 512
    """Of the disk's logical blocks: 512 or 4096."""
    encrypted: bool = False
    """The ext4 file system, with LUKS2."""
    esp_label: str = "ESP"
    ext4_label: str = "root"


@dataclass(frozen=True, slots=True)
class Partition:
    """One entry of the partition table, and the file system on it; offsets and sizes in bytes."""

    number: int
    label: str
    start: int
    size: int
    type: str
    guid: str
    filesystem: str
    filesystem_id: str | None
    """An ext4 UUID; of FAT, the volume id in eight hex digits; None for what brings its own."""
    used: int
    """What the content takes, the file system's own tables not counted."""
    header: int = 0
    """Bytes of the LUKS2 header; the file system follows, encrypted."""
    attributes: int = 0

    @property
    def end(self) -> int:
        return self.start + self.size

    @property
    def data_size(self) -> int:
        return self.size - self.header

    def to_json(self) -> dict[str, object]:
        return {
            "number": self.number,
            "label": self.label,
            "start": self.start,
            "size": self.size,
            "type": self.type,
            "guid": self.guid,
            "filesystem": self.filesystem,
            "filesystem_id": self.filesystem_id,
            "used": self.used,
            "encryption": "luks2" if self.header else None,
            "read_only": bool(self.attributes & READ_ONLY),
        }


@dataclass(frozen=True, slots=True)
class PlacedImage:
    partition: Partition
    parts: Sequence[Part]


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskPlan:
    """Everything about a disk but its bytes; `target.disk.write_disk` writes it."""

    size: int
    sector: int
    guid: str
    esp: Partition
    esp_cluster: int
    images: tuple[PlacedImage, ...]
    ext4: Partition | None
    """It grows to the end of the disk."""
    epoch: int
    hash_seed: str
    nodes: tuple[Node, ...]
    esp_files: tuple[EspFile, ...]

    @property
    def partitions(self) -> tuple[Partition, ...]:
        return (self.esp, *(image.partition for image in self.images), *([self.ext4] if self.ext4 else []))

    @property
    def root(self) -> Partition:
        """The partition that the machine's root file system is on."""
        return self.partitions[1]

    @property
    def esp_content(self) -> int:
        """How many bytes are copied to the EFI system partition."""
        return sum(source_size(file.source) for file in self.esp_files)

    @property
    def content_size(self) -> int:
        """How many bytes are copied: what progress counts up to."""
        images = sum(source_size(part.source) for image in self.images for part in image.parts)
        return self.esp_content + images + sum(node.entry.size for node in self.nodes)

    def to_json(self) -> dict[str, object]:
        """Return the plan as `--dry-run --json` shows it: the table and the amounts, not every file."""
        return {
            "size": self.size,
            "sector_size": self.sector,
            "guid": self.guid,
            "partitions": [part.to_json() for part in self.partitions],
            "inodes": len(self.nodes),
            "verity_files": sum(node.entry.verity is not None for node in self.nodes),
            "esp_files": [file.path for file in self.esp_files],
            "content_size": self.content_size,
        }


def derive_uuid(seed: bytes, purpose: str) -> str:
    """Return a UUID of version 8 (RFC 9562, 5.8): SHA-256 of seed and purpose, cut to 128 bits."""
    raw = bytearray(hashlib.sha256(seed + b"\0" + purpose.encode()).digest()[:16])
    raw[6] = raw[6] & 0x0F | 0x80
    raw[8] = raw[8] & 0x3F | 0x80
    return str(uuid.UUID(bytes=bytes(raw)))


def plan_disk(
    ext4: Sequence[RootEntry] | None, esp: Sequence[EspFile], options: DiskOptions, images: Sequence[Image] = ()
) -> DiskPlan:
    """Decide sizes, places and names; raise `TargetError` with the size needed where the disk is too small.

    `ext4` is what is on the file system that grows: that of the root, unless the root is one of the `images`. A disk
    with images may do without it.
    """
    _check_options(options)
    _check_esp_paths(esp)
    seed, name = options.seed, "state" if images else "root"
    nodes = () if ext4 is None else number_entries(ext4)
    files = tuple(sorted(esp, key=lambda file: file.path))
    esp_used = fat_needed(files, options.esp_cluster)
    esp_size = _esp_size(esp_used, options)
    placed = _place(images, MARGIN + esp_size)
    end = _round_up(placed[-1].partition.end) if placed else MARGIN + esp_size
    size, ext4_size = _rest(end, None if ext4 is None else nodes, options)
    return DiskPlan(
        size=size,
        sector=options.sector,
        guid=derive_uuid(seed, "disk"),
        esp=Partition(
            number=1,
            label=options.esp_label,
            start=MARGIN,
            size=esp_size,
            type=ESP_TYPE,
            guid=derive_uuid(seed, "esp"),
            filesystem="vfat",
            filesystem_id=derive_uuid(seed, "esp file system")[:8],
            used=esp_used,
        ),
        esp_cluster=options.esp_cluster,
        images=placed,
        ext4=None
        if ext4 is None
        else Partition(
            number=2 + len(placed),
            label=options.ext4_label,
            start=end,
            size=ext4_size,
            type=LINUX_TYPE if images else types_of(options.architecture).root,
            guid=derive_uuid(seed, name),
            filesystem="ext4",
            filesystem_id=derive_uuid(seed, f"{name} file system"),
            used=ext4_needed(nodes) * BLOCK,
            header=LUKS_HEADER if options.encrypted else 0,
        ),
        epoch=options.epoch,
        hash_seed=derive_uuid(seed, f"{name} directory hash"),
        nodes=nodes,
        esp_files=files,
    )


def _place(images: Sequence[Image], start: int) -> tuple[PlacedImage, ...]:
    placed = []
    for number, image in enumerate(images, 2):
        size = _round_up(max(image.used, image.size or 0), image.unit)
        partition = Partition(
            number=number,
            label=image.label,
            start=start,
            size=size,
            type=image.type,
            guid=image.guid,
            filesystem=image.content,
            filesystem_id=None,
            used=image.used,
            attributes=image.attributes,
        )
        placed.append(PlacedImage(partition, image.parts))
        start += _round_up(size)
    return tuple(placed)


def _rest(start: int, nodes: Sequence[Node] | None, options: DiskOptions) -> tuple[int, int]:
    """Return the size of the disk, and that of its last partition: from byte `start` on, with ext4 for the nodes."""
    header = LUKS_HEADER if options.encrypted else 0
    used = smallest = wanted = 0
    if nodes is not None:
        used = ext4_needed(nodes) * BLOCK
        smallest = _round_up(ext4_minimum(nodes, 1) * BLOCK) + header
        free = _FREE_DEFAULT_MIN + used // 2
        wanted = _round_up(ext4_minimum(nodes, free // BLOCK) * BLOCK) + header
    if options.size is None:
        size = start + wanted + MARGIN
        if size > DISK_MAX:
            raise TargetError(f"the disk would take {size} bytes, at most {DISK_MAX} can be written")
        return size, wanted
    size = options.size // options.sector * options.sector
    rest = (size - MARGIN - start) // MIB * MIB
    if rest < smallest or (nodes and ext4_capacity((rest - header) // BLOCK, len(nodes)) * BLOCK < used):
        needed = start + smallest + MARGIN
        raise TargetError(
            f"a disk of {options.size} bytes is too small: {needed} bytes are needed",
            hint=f"give it a size of {in_mib(needed)} or more",
        )
    return size, rest


def _esp_size(used: int, options: DiskOptions) -> int:
    wanted, sector, cluster = options.esp_size, options.sector, options.esp_cluster
    smallest = fat_minimum(used, sector, cluster)
    if wanted is None:
        return max(fat_minimum(4 * used, sector, cluster), ESP_DEFAULT_MIN)
    size = wanted // MIB * MIB
    if fat_capacity(size, sector, cluster) < used or size < smallest:
        raise TargetError(
            f"an EFI system partition of {wanted} bytes is too small: {smallest} bytes are needed",
            hint=f"give it a size of {in_mib(smallest)} or more",
        )
    return size


def _check_options(options: DiskOptions) -> None:
    types_of(options.architecture)
    if not 0 <= options.epoch < 1 << 32:
        raise TargetError(f"the epoch {options.epoch} is not between 1970 and 2106")
    if options.sector not in SECTORS:
        raise TargetError(f"no disk has logical blocks of {options.sector} bytes", hint="they have 512 or 4096")
    for size in (options.size, options.esp_size):
        if size is not None and not 0 <= size <= DISK_MAX:
            raise TargetError(f"{size} bytes are no size for a disk, at most {DISK_MAX} can be written")
    for label, most in ((options.esp_label, _FAT_LABEL_MAX), (options.ext4_label, _EXT4_LABEL_MAX)):
        if not _LABEL.fullmatch(label) or len(label) > most:
            raise TargetError(f"not a label for a partition: {label!r}", hint=f"up to {most} letters, digits, _ . -")


def _check_esp_paths(files: Sequence[EspFile]) -> None:
    """Refuse what FAT cannot name, or names twice: it does not tell upper case from lower."""
    kinds: dict[str, tuple[str, bool]] = {}
    for file in files:
        parts = file.path.split("/")
        for depth, name in enumerate(parts, 1):
            path = "/".join(parts[:depth])
            is_file = depth == len(parts)
            if not _ESP_NAME.fullmatch(name):
                raise TargetError(f"not a path for the EFI system partition: {file.path!r}")
            known = kinds.setdefault(path.lower(), (path, is_file))
            if known != (path, is_file) or (is_file and known[0] is not path):
                raise TargetError(f"the EFI system partition cannot hold both {known[0]!r} and {path!r}")
        if source_size(file.source) >= 1 << 32:
            raise TargetError(f"{file.path!r} is 4 GiB or more, FAT cannot hold it")


def _round_up(size: int, unit: int = MIB) -> int:
    return -(-size // unit) * unit
