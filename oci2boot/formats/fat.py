"""A FAT file system read without mounting it. Microsoft, "FAT: General Overview of On-Disk Format", version 1.03.

Every cluster belongs to one file: chains that meet, or lead in a circle, are an error, and so work stays linear in
the size of the file system, whatever its bytes say.
"""

import struct
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Final

from oci2boot.errors import FormatError, LimitError
from oci2boot.formats.binary import U8, U16, U32, Record

FAT_MAX: Final = 16 << 20
"""Bytes of one table: 16 GiB in clusters of 4 KiB, 128 GiB in the largest."""
FILES_MAX: Final = 1 << 16
DEPTH_MAX: Final = 32
DIRECTORY_MAX: Final = 2 << 20
"""Bytes; the specification allows 65536 slots of 32."""

_SLOT: Final = 32
_END, _DELETED = 0x00, 0xE5
_LONG_NAME, _LABEL, _DIRECTORY = 0x0F, 0x08, 0x10
_LOWER_BASE, _LOWER_EXTENSION = 0x08, 0x10
_LAST_LONG: Final = 0x40
_END_OF_CHAIN: Final = 0x0FFF_FFF8
_FAT12_CLUSTERS: Final = 4085
_FAT16_CLUSTERS: Final = 65525

Read = Callable[[int, int], bytes]
"""(byte offset, size) to the bytes there, fewer only past the end."""


@dataclass(frozen=True, slots=True)
class BootSector(Record):
    jump: Annotated[bytes, "3s"]
    oem_name: Annotated[bytes, "8s"]
    sector_size: U16
    cluster_sectors: U8
    reserved_sectors: U16
    fats: U8
    root_slots: U16
    sectors_16: U16
    media: U8
    fat_sectors_16: U16
    geometry: Annotated[bytes, "4s"]
    hidden_sectors: U32
    sectors_32: U32
    fat_sectors_32: U32
    flags: U16
    version: U16
    root_cluster: U32

    @property
    def sectors(self) -> int:
        return self.sectors_16 or self.sectors_32

    @property
    def fat_sectors(self) -> int:
        return self.fat_sectors_16 or self.fat_sectors_32

    @property
    def root_offset(self) -> int:
        """Of the root directory of FAT12 and FAT16, in bytes."""
        return (self.reserved_sectors + self.fats * self.fat_sectors) * self.sector_size

    @property
    def data_offset(self) -> int:
        size = self.root_slots * _SLOT
        return self.root_offset + size + -size % self.sector_size

    @property
    def clusters(self) -> int:
        return (self.sectors * self.sector_size - self.data_offset) // (self.cluster_sectors * self.sector_size)


@dataclass(frozen=True, slots=True)
class _Slot(Record):
    name: Annotated[bytes, "11s"]
    attributes: U8
    case: U8
    created: Annotated[bytes, "7s"]
    cluster_hi: U16
    modified: Annotated[bytes, "4s"]
    cluster_lo: U16
    size: U32


@dataclass(frozen=True, slots=True)
class FatFile:
    size: int
    runs: tuple[tuple[int, int], ...]
    """(first cluster, count), in order."""


class Fat:
    """A file system at offset 0 of what `read` reads; `files` are all its files by path, `EFI/BOOT/BOOTX64.EFI`."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._boot = boot = BootSector.unpack(read(0, BootSector.layout().size))
        _check_boot_sector(boot)
        self._cluster_size = boot.cluster_sectors * boot.sector_size
        fats = [
            self._bytes((boot.reserved_sectors + copy * boot.fat_sectors) * boot.sector_size, self._fat_size())
            for copy in range(boot.fats)
        ]
        self.copies_agree = all(fat == fats[0] for fat in fats)
        self._next = _links(fats[0], boot.clusters)
        self._taken = bytearray(boot.clusters + 2)
        self.directories: list[str] = []
        """Their paths, each after the one that it lies in."""
        self.files: Mapping[str, FatFile] = dict(self._walk())

    @property
    def cluster(self) -> int:
        """Bytes of a cluster."""
        return self._cluster_size

    @property
    def size(self) -> int:
        """Bytes of all clusters."""
        return self._boot.clusters * self._cluster_size

    @property
    def free(self) -> int:
        """Bytes of those that nothing has taken."""
        return (self._next.count(0) - self._next[:2].count(0)) * self._cluster_size

    @property
    def root_offset(self) -> int:
        """Where the tables end: with the root directory, or with the clusters, that it is in."""
        return self._boot.root_offset

    @property
    def data_offset(self) -> int:
        """Of the first cluster, in bytes."""
        return self._boot.data_offset

    def in_use(self, offset: int) -> bool:
        """Say whether a file or directory has the byte behind the tables at `offset`."""
        return offset < self.data_offset or bool(self._taken[2 + (offset - self.data_offset) // self.cluster])

    def content(self, path: str, limit: int) -> bytes:
        """Return a file of at most `limit` bytes."""
        file = self.files[path]
        if file.size > limit:
            raise LimitError(f"{path} has {file.size} bytes, at most {limit} are read")
        return b"".join(self._runs(file.runs))[: file.size]

    def _fat_size(self) -> int:
        size = self._boot.fat_sectors * self._boot.sector_size
        if size > FAT_MAX:
            raise LimitError(f"a FAT file system with a table of {size} bytes, at most {FAT_MAX} are read")
        return size

    def _bytes(self, offset: int, size: int) -> bytes:
        data = self._read(offset, size)
        if len(data) != size:
            raise FormatError(f"the FAT file system is cut short at byte {offset + len(data)}")
        return data

    def _runs(self, runs: tuple[tuple[int, int], ...]) -> Iterator[bytes]:
        for cluster, count in runs:
            offset = self._boot.data_offset + (cluster - 2) * self._cluster_size
            yield self._bytes(offset, count * self._cluster_size)

    def _chain(self, cluster: int, clusters_max: int, path: str) -> tuple[tuple[int, int], ...]:
        """Follow a chain to its end and claim it."""
        runs: list[tuple[int, int]] = []
        total, last = 0, len(self._next)
        while 2 <= cluster < last:
            if self._taken[cluster]:
                raise FormatError(f"the clusters of {path!r} belong to another file too")
            self._taken[cluster] = 1
            total += 1
            if total > clusters_max:
                raise FormatError(f"{path!r} has more clusters than its size takes")
            if runs and sum(runs[-1]) == cluster:
                runs[-1] = (runs[-1][0], runs[-1][1] + 1)
            else:
                runs.append((cluster, 1))
            cluster = self._next[cluster]
        if not runs or cluster < _END_OF_CHAIN:
            raise FormatError(f"the clusters of {path!r} lead to {cluster}, which is none")
        return tuple(runs)

    def _walk(self) -> Iterator[tuple[str, FatFile]]:
        stack = [("", self._root(), 0)]
        count = 0
        while stack:
            prefix, data, depth = stack.pop()
            if depth > DEPTH_MAX:
                raise LimitError(f"directories of the FAT file system are nested more than {DEPTH_MAX} deep")
            names: set[str] = set()
            for name, slot in _entries(data):
                count += 1
                path = prefix + name
                if count > FILES_MAX:
                    raise LimitError(f"a FAT file system with more than {FILES_MAX} files")
                if name.upper() in names:
                    raise FormatError(f"{path!r} is there twice")
                names.add(name.upper())
                cluster = slot.cluster_hi << 16 | slot.cluster_lo
                if slot.attributes & _DIRECTORY:
                    runs = self._chain(cluster, DIRECTORY_MAX // self._cluster_size or 1, path)
                    self.directories.append(path)
                    stack.append((path + "/", b"".join(self._runs(runs)), depth + 1))
                    continue
                needed = -(-slot.size // self._cluster_size)
                runs = self._chain(cluster, needed, path) if needed else ()
                if sum(length for _, length in runs) != needed:
                    raise FormatError(f"{path!r} has fewer clusters than its size takes")
                yield path, FatFile(slot.size, runs)

    def _root(self) -> bytes:
        boot = self._boot
        if boot.fat_sectors_16:
            return self._bytes(boot.root_offset, boot.root_slots * _SLOT)
        runs = self._chain(boot.root_cluster, DIRECTORY_MAX // self._cluster_size or 1, "the root directory")
        return b"".join(self._runs(runs))


def _check_boot_sector(boot: BootSector) -> None:
    plausible = (
        boot.sector_size in (512, 1024, 2048, 4096)
        and boot.cluster_sectors.bit_count() == 1
        and boot.reserved_sectors
        and boot.fats in (1, 2)
        and boot.fat_sectors
        and boot.sectors * boot.sector_size > boot.data_offset
        and bool(boot.root_slots) == bool(boot.fat_sectors_16)
    )
    if not plausible:
        raise FormatError("not a FAT file system")
    if (boot.clusters < _FAT16_CLUSTERS) != bool(boot.fat_sectors_16) or boot.clusters >= 0x0FFF_FFF5:
        raise FormatError(f"a FAT file system of the wrong kind for its {boot.clusters} clusters")
    bits = _entry_bits(boot.clusters)
    if boot.fat_sectors * boot.sector_size * 8 < (boot.clusters + 2) * bits:
        raise FormatError(f"a FAT file system with a table too short for its {boot.clusters} clusters")


def _entry_bits(clusters: int) -> int:
    if clusters < _FAT12_CLUSTERS:
        return 12
    return 16 if clusters < _FAT16_CLUSTERS else 32


def _links(fat: bytes, clusters: int) -> "array[int]":
    """Return for each cluster the next one, the marks of the last one as FAT32 writes them."""
    bits, count = _entry_bits(clusters), clusters + 2
    if bits == 32:
        return array("I", [link & 0x0FFF_FFFF for link in struct.unpack_from(f"<{count}I", fat)])
    if bits == 16:
        found = struct.unpack_from(f"<{count}H", fat)
        return array("I", [link | 0x0FFF_0000 if link >= 0xFFF8 else link for link in found])
    pairs = [
        fat[at] | fat[at + 1] << 8 | (fat[at + 2] if at + 2 < len(fat) else 0) << 16
        for at in range(0, count * 3 // 2, 3)
    ]
    halves = [half for pair in pairs for half in (pair & 0xFFF, pair >> 12)]
    return array("I", [link | 0x0FFF_F000 if link >= 0xFF8 else link for link in halves[:count]])


def _entries(data: bytes) -> Iterator[tuple[str, _Slot]]:
    """Yield (name, slot) of what a directory holds, without `.`, `..` and the volume label."""
    parts: list[bytes] = []
    for at in range(0, len(data) - _SLOT + 1, _SLOT):
        if data[at] == _END:
            return
        if data[at] == _DELETED:
            parts = []
            continue
        slot = _Slot.unpack(data, at)
        if slot.attributes & 0x3F == _LONG_NAME:
            raw = data[at : at + _SLOT]
            parts = [raw] if raw[0] & _LAST_LONG else [*parts, raw]
            continue
        long, parts = parts, []
        if slot.attributes & _LABEL or slot.name.rstrip() in (b".", b".."):
            continue
        name = _long_name(long, slot.name) or _short_name(slot)
        if not name or name in (".", "..") or "/" in name or "\0" in name:
            raise FormatError(f"not a name in a FAT file system: {name!r}")
        yield name, slot


def _long_name(parts: list[bytes], short: bytes) -> str | None:
    """Join the parts of a long name, which lie last to first before the slot whose short name they sum up to."""
    checksum = 0
    for byte in short:
        checksum = ((checksum >> 1) + ((checksum & 1) << 7) + byte) & 0xFF
    numbers = [part[0] & 0x3F for part in parts]
    if not parts or numbers != list(range(len(parts), 0, -1)) or any(part[13] != checksum for part in parts):
        return None
    raw = b"".join(part[1:11] + part[14:26] + part[28:32] for part in reversed(parts))
    try:
        return raw.decode("utf-16-le").partition("\0")[0]
    except UnicodeDecodeError as error:
        raise FormatError("a name in a FAT file system that is not UTF-16") from error


def _short_name(slot: _Slot) -> str:
    raw = b"\xe5" + slot.name[1:] if slot.name[0] == 0x05 else slot.name
    base, extension = raw[:8].decode("cp437").rstrip(), raw[8:].decode("cp437").rstrip()
    base = base.lower() if slot.case & _LOWER_BASE else base
    extension = extension.lower() if slot.case & _LOWER_EXTENSION else extension
    return f"{base}.{extension}" if extension else base
