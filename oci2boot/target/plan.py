"""The plan of a disk: a GUID partition table with an EFI system partition and a root partition that grows.

UEFI 2.10, sections 5.3 and 13.3; UAPI.2 Discoverable Partitions Specification: types that need no `root=`. The root is
last, so that it can grow; bit 59 is not set, as systemd would then try to grow the overlay that hides this file system.
"""

import hashlib
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from oci2boot.errors import TargetError
from oci2boot.formats.gpt import SECTORS
from oci2boot.target.entries import EspFile, RootEntry, source_size
from oci2boot.target.nodes import BLOCK, Node, number_entries
from oci2boot.target.space import MIB, ext4_capacity, ext4_minimum, ext4_needed, fat_capacity, fat_minimum, fat_needed

ESP_TYPE: Final = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"
ROOT_TYPES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "386": "44479540-f297-41b2-9af7-d131d5f0458a",
        "amd64": "4f68bce3-e8cd-4db1-96e7-fbcaf984b709",
        "arm": "69dad710-2ce4-4e3c-b16c-21a1d49abed3",
        "arm64": "b921b045-1df0-41c3-af44-4c6f280d3fae",
        "loong64": "77055800-792c-4f94-b39a-98c91b762bb6",
        "ppc64le": "c31c45e6-3f39-412e-80fb-4809c4980599",
        "riscv64": "72ec70a6-cf74-40e6-bd49-4bda08e8f224",
        "s390x": "5eead9a9-fe09-4a1e-a1d7-520d00531306",
    }
)
"""Partition types by the architecture names of OCI image configurations."""
ESP_DEFAULT_MIN: Final = 512 * MIB
DISK_MAX: Final = 1 << 46
LUKS_HEADER: Final = 16 * MIB
"""What cryptsetup reserves by default: two copies of the metadata, and room for 32 keyslots."""

MARGIN: Final = MIB
"""Before the first partition and behind the last: the two partition tables, and the alignment of everything."""
_FREE_DEFAULT_MIN: Final = 256 * MIB
_LABEL: Final = re.compile(r"[A-Za-z0-9_.-]{1,11}")
_ESP_NAME: Final = re.compile(r"[A-Za-z0-9_.+@=,~()-]([A-Za-z0-9_.+@=,~() -]{0,253}[A-Za-z0-9_+@=,~()-])?")


@dataclass(frozen=True, slots=True)
class DiskOptions:
    """Sizes are in bytes, and a sparse file pays nothing for free room. The defaults: an ESP with room for four times
    its content and of 512 MiB or more, for further UKIs; a root partition with 256 MiB and half of its content free.
    """

    seed: bytes
    """Every GUID, UUID and hash seed is derived from it; the same seed and content give the same bytes."""
    epoch: int = 0
    """Seconds since 1970, as in SOURCE_DATE_EPOCH: all times but the entries' mtime."""
    architecture: str = "amd64"
    size: int | None = None
    """Of the whole disk."""
    esp_size: int | None = None
    sector: int = 512
    """Of the disk's logical blocks: 512 or 4096."""
    encrypted: bool = False
    """The root partition, with LUKS2."""
    esp_label: str = "ESP"
    root_label: str = "root"


@dataclass(frozen=True, slots=True)
class Partition:
    """One entry of the partition table, and the file system on it; offsets and sizes in bytes."""

    number: int
    label: str
    start: int
    size: int
    type: str
    guid: str
    """Numbers of the bits that are set."""
    filesystem: str
    filesystem_id: str
    """An ext4 UUID; of FAT, the volume id in eight hex digits."""
    used: int
    """What the content takes, the file system's own tables not counted."""
    header: int = 0
    """Bytes of the LUKS2 header; the file system follows, encrypted."""

    @property
    def data_size(self) -> int:
        return self.size - self.header

    def as_json(self) -> dict[str, object]:
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
        }


@dataclass(frozen=True, slots=True)
class DiskPlan:
    """Everything about a disk but its bytes; `target.disk.write_disk` writes it."""

    size: int
    sector: int
    guid: str
    esp: Partition
    root: Partition
    epoch: int
    hash_seed: str
    nodes: tuple[Node, ...]
    esp_files: tuple[EspFile, ...]

    @property
    def content_size(self) -> int:
        """How many bytes are copied: what progress counts up to."""
        return sum(node.entry.size for node in self.nodes) + sum(source_size(file.source) for file in self.esp_files)

    def as_json(self) -> dict[str, object]:
        """Return the plan as `--dry-run --json` shows it: the table and the amounts, not every file."""
        return {
            "size": self.size,
            "sector_size": self.sector,
            "guid": self.guid,
            "partitions": [self.esp.as_json(), self.root.as_json()],
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


def plan_disk(root: Sequence[RootEntry], esp: Sequence[EspFile], options: DiskOptions) -> DiskPlan:
    """Decide sizes, places and names; raise `TargetError` with the size needed where the disk is too small."""
    _check_options(options)
    _check_esp_paths(esp)
    nodes = number_entries(root)
    files = tuple(sorted(esp, key=lambda file: file.path))
    esp_used, root_used = fat_needed(files), ext4_needed(nodes) * BLOCK
    esp_size = _esp_size(esp_used, options)
    root_start = MARGIN + esp_size
    header = LUKS_HEADER if options.encrypted else 0
    smallest = _round_up(ext4_minimum(nodes, 1) * BLOCK) + header
    if options.size is None:
        free = _FREE_DEFAULT_MIN + root_used // 2
        root_size = _round_up(ext4_minimum(nodes, free // BLOCK) * BLOCK) + header
        size = root_start + root_size + MARGIN
        if size > DISK_MAX:
            raise TargetError(f"the disk would take {size} bytes, at most {DISK_MAX} can be written")
    else:
        size = options.size // options.sector * options.sector
        root_size = (size - MARGIN - root_start) // MIB * MIB
        if root_size < smallest or ext4_capacity((root_size - header) // BLOCK, len(nodes)) * BLOCK < root_used:
            needed = root_start + smallest + MARGIN
            raise TargetError(
                f"a disk of {options.size} bytes is too small: {needed} bytes are needed",
                hint=f"give it a size of {_in_mib(needed)} or more",
            )
    seed = options.seed
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
        root=Partition(
            number=2,
            label=options.root_label,
            start=root_start,
            size=root_size,
            type=ROOT_TYPES[options.architecture],
            guid=derive_uuid(seed, "root"),
            filesystem="ext4",
            filesystem_id=derive_uuid(seed, "root file system"),
            used=root_used,
            header=header,
        ),
        epoch=options.epoch,
        hash_seed=derive_uuid(seed, "root directory hash"),
        nodes=nodes,
        esp_files=files,
    )


def _esp_size(used: int, options: DiskOptions) -> int:
    wanted, sector = options.esp_size, options.sector
    smallest = fat_minimum(used, sector)
    if wanted is None:
        return max(fat_minimum(4 * used, sector), ESP_DEFAULT_MIN)
    size = wanted // MIB * MIB
    if fat_capacity(size, sector) < used or size < smallest:
        raise TargetError(
            f"an EFI system partition of {wanted} bytes is too small: {smallest} bytes are needed",
            hint=f"give it a size of {_in_mib(smallest)} or more",
        )
    return size


def _check_options(options: DiskOptions) -> None:
    if options.architecture not in ROOT_TYPES:
        raise TargetError(
            f"there is no root partition type for the architecture {options.architecture!r}",
            hint=f"known are {', '.join(ROOT_TYPES)}",
        )
    if not 0 <= options.epoch < 1 << 32:
        raise TargetError(f"the epoch {options.epoch} is not between 1970 and 2106")
    if options.sector not in SECTORS:
        raise TargetError(f"no disk has logical blocks of {options.sector} bytes", hint="they have 512 or 4096")
    for size in (options.size, options.esp_size):
        if size is not None and not 0 <= size <= DISK_MAX:
            raise TargetError(f"{size} bytes are no size for a disk, at most {DISK_MAX} can be written")
    for label in (options.esp_label, options.root_label):
        if not _LABEL.fullmatch(label):
            raise TargetError(f"not a label for a partition: {label!r}", hint="use up to 11 letters, digits, _ . -")


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


def _round_up(size: int) -> int:
    return -(-size // MIB) * MIB


def _in_mib(size: int) -> str:
    return f"{-(-size // MIB)}M"
