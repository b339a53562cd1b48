"""Initramfs archives: newc cpio, one after the other, each plain or compressed.

Linux, Documentation/driver-api/early-userspace/buffer-format.rst, and init/initramfs.c where that says more: a plain
archive begins at a multiple of four bytes, zeros between archives are skipped, a later file replaces an earlier one.
"""

import lzma
import stat
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

import zstandard

from oci2boot.errors import FormatError, LimitError

MAX_UNPACKED: Final = 2 << 30
"""Of all archives together; a generic initramfs with all firmware unpacks to some hundred megabytes."""
MAX_MEMBERS: Final = 200_000
MAX_NAME: Final = 4096
MAX_KEPT: Final = 16 << 20
"""A member whose content is wanted."""
MAX_ZSTD_WINDOW: Final = 128 << 20

_HEADER_SIZE: Final = 110
_TRAILER: Final = b"TRAILER!!!"
_PIECE: Final = 4096
"""Compressed bytes at a time: 4 of them can be 128 KiB of zeros in zstd, and memory is to stay bounded."""


@dataclass(frozen=True, slots=True)
class Member:
    """A file, directory or symlink of an archive that we write; owner root, time zero."""

    path: bytes
    mode: int
    """With the type, as in `st_mode`."""
    content: bytes = b""
    """A symlink's is its target."""


@dataclass(frozen=True, slots=True)
class Found:
    """What an archive holds under a path."""

    mode: int
    size: int
    content: bytes | None
    """Of symlinks, and of the files asked for."""


def directory(path: bytes) -> Member:
    return Member(path, stat.S_IFDIR | 0o755)


def file(path: bytes, content: bytes, mode: int = 0o644) -> Member:
    return Member(path, stat.S_IFREG | mode, content)


def symlink(path: bytes, target: bytes) -> Member:
    return Member(path, stat.S_IFLNK | 0o777, target)


def write(members: Iterable[Member]) -> bytes:
    """Return one plain archive; the same members give the same bytes."""
    pieces = []
    for number, member in enumerate((*members, Member(_TRAILER, 0)), start=1):
        links = 2 if stat.S_ISDIR(member.mode) else 1
        fields = (number, member.mode, 0, 0, links, 0, len(member.content), 0, 0, 0, 0, len(member.path) + 1, 0)
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + member.path + b"\0"
        pieces += [head, bytes(-len(head) % 4), member.content, bytes(-len(member.content) % 4)]
    return b"".join(pieces)


class _Decompressor(Protocol):
    @property
    def unused_data(self) -> bytes: ...
    @property
    def eof(self) -> bool: ...
    def decompress(self, data: bytes, /) -> bytes: ...


def _zstd() -> _Decompressor:
    return zstandard.ZstdDecompressor(max_window_size=MAX_ZSTD_WINDOW).decompressobj()


_MAGIC: Final[Mapping[bytes, Callable[[], _Decompressor]]] = {
    b"\x1f\x8b": lambda: zlib.decompressobj(31),
    b"\x28\xb5\x2f\xfd": _zstd,
    b"\xfd7zXZ": lzma.LZMADecompressor,
    b"\x5d\x00\x00": lambda: lzma.LZMADecompressor(lzma.FORMAT_ALONE),
}
_UNREAD: Final = {b"\x02\x21\x4c\x18": "lz4", b"\x89LZO": "lzo", b"BZh": "bzip2"}


def read(data: bytes, keep: Callable[[bytes], bool]) -> dict[bytes, Found]:
    """Return path (without leading `/` or `./`) → what the kernel would find there after unpacking every archive.

    `keep` says which files' content is wanted.
    """
    members: dict[bytes, Found] = {}
    at, budget = 0, MAX_UNPACKED
    while True:
        while at < len(data) and data[at] == 0:
            at += 1
        if at == len(data):
            return members
        if data.startswith(b"07070", at):
            if at % 4:
                raise FormatError(
                    f"an initramfs with a plain archive at byte {at}, which is no multiple of 4: the kernel drops it"
                )
            stream = _Stream(iter([data[at:]]), budget)
            _read_archive(stream, keep, members)
            at += stream.position
        else:
            unpacked = _Unpacked(data, at)
            stream = _Stream(iter(unpacked), budget)
            while stream.skip_zeros():
                _read_archive(stream, keep, members)
            at = unpacked.end
        budget -= stream.position


class _Unpacked:
    """The pieces of one compressed archive; `end` is where it ended in `data`."""

    def __init__(self, data: bytes, start: int) -> None:
        self._data, self._start, self.end = data, start, start
        for magic, name in _UNREAD.items():
            if data.startswith(magic, start):
                raise FormatError(
                    f"an initramfs that is compressed by {name}", hint="have it compressed by zstd, xz or gzip"
                )
        for magic, new in _MAGIC.items():
            if data.startswith(magic, start):
                self._new = new
                return
        raise FormatError(f"an initramfs with neither an archive nor a known compression at byte {start}")

    def __iter__(self) -> Iterator[bytes]:
        decompressor = self._new()
        at = self._start
        try:
            while not decompressor.eof:
                piece = self._data[at : at + _PIECE]
                if not piece:
                    raise FormatError("an initramfs whose compressed archive is cut short")
                at += len(piece)
                yield decompressor.decompress(piece)
        except (zlib.error, lzma.LZMAError, zstandard.ZstdError) as error:
            raise FormatError(f"an initramfs whose compressed archive is damaged: {error}") from error
        self.end = at - len(decompressor.unused_data)


class _Stream:
    """Reads forward over pieces."""

    def __init__(self, pieces: Iterator[bytes], budget: int) -> None:
        self._pieces, self._piece, self._at = pieces, b"", 0
        self._budget = budget
        self.position = 0

    def _more(self) -> bool:
        for piece in self._pieces:
            if piece:
                self._piece, self._at = piece, 0
                return True
        return False

    def read(self, size: int, *, wanted: bool = True) -> bytes:
        """Go `size` bytes on and return them, or nothing where they are not wanted."""
        self.position += size
        if self.position > self._budget:
            raise LimitError(f"an initramfs that unpacks to more than {MAX_UNPACKED} bytes")
        taken = []
        while size:
            if self._at == len(self._piece) and not self._more():
                raise FormatError("an initramfs whose archive is cut short")
            here = min(size, len(self._piece) - self._at)
            if wanted:
                taken.append(self._piece[self._at : self._at + here])
            self._at += here
            size -= here
        return b"".join(taken)

    def skip_zeros(self) -> bool:
        """Go to the next byte that is not zero; False at the end."""
        while True:
            rest = self._piece[self._at :] if self._at else self._piece
            zeros = len(rest) - len(rest.lstrip(b"\0"))
            self._at += zeros
            self.position += zeros
            if self._at < len(self._piece):
                return True
            if not self._more():
                return False


def _read_archive(stream: _Stream, keep: Callable[[bytes], bool], found: dict[bytes, Found]) -> None:
    while True:
        header = stream.read(_HEADER_SIZE)
        if header[:6] not in (b"070701", b"070702"):
            raise FormatError("an initramfs with something else than a cpio header in an archive")
        try:
            fields = [int(header[at : at + 8], 16) for at in range(6, _HEADER_SIZE, 8)]
        except ValueError as error:
            raise FormatError("an initramfs with a cpio header that is not hexadecimal") from error
        mode, size, name_size = fields[1], fields[6], fields[11]
        if not 0 < name_size <= MAX_NAME:
            raise LimitError(f"an initramfs with a name of {name_size} bytes")
        name = stream.read(name_size).rstrip(b"\0")
        stream.read(-(_HEADER_SIZE + name_size) % 4, wanted=False)
        if name == _TRAILER:
            return
        path = name.removeprefix(b"./").lstrip(b"/")
        wanted = stat.S_ISLNK(mode) or (stat.S_ISREG(mode) and keep(path))
        if wanted and size > MAX_KEPT:
            raise LimitError(f"an initramfs with {path.decode(errors='replace')} of {size} bytes")
        content = stream.read(size, wanted=wanted)
        stream.read(-size % 4, wanted=False)
        found[path] = Found(mode, size, content if wanted else None)
        if len(found) > MAX_MEMBERS:
            raise LimitError(f"an initramfs with more than {MAX_MEMBERS} files")
