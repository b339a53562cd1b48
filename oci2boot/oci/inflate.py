"""Decompression of layers: gzip (RFC 1952) by ISA-L, zstd (RFC 8878) by its library, in pieces of bounded size.

Every member or frame must be whole, and nothing may follow the last one.
"""

from collections.abc import Callable, Generator, Iterator
from typing import IO, Final, NamedTuple, cast

import zstandard
from isal import igzip_lib

from oci2boot.errors import FormatError, LimitError
from oci2boot.oci.manifest import Compression

PIECE: Final = 1 << 20
"""Bytes of one piece of plain data at most."""
_FIRST_INPUT: Final = 4 << 10
_INPUT: Final = 256 << 10
MAX_GZIP_RATIO: Final = 1000
MAX_FREE_RATIO: Final = 1 << 30
"""A gzip layer of up to so many bytes may be of any ratio; sparse files make good layers look like bombs."""
MAX_ZSTD_WINDOW: Final = 128 << 20

Read = Callable[[int], bytes]
"""Returns up to that many bytes, none at the end."""


def inflate(read: Read, compression: Compression) -> Iterator[bytes]:
    """Yield the plain data in pieces of up to `PIECE` bytes, none of them empty."""
    match compression:
        case "none":
            return iter(lambda: read(PIECE), b"")
        case "gzip":
            return _gunzip(read)
        case "zstd":
            return _unzstd(read)


def _gunzip(read: Read) -> Iterator[bytes]:
    data = read(_INPUT)
    at = consumed = given = 0
    while True:
        member = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
        # What a member leaves over was copied, so one after many small ones gets its input by the spoon.
        spoon = _FIRST_INPUT
        while not member.eof:
            food = b""
            if member.needs_input:
                if given > max(MAX_FREE_RATIO, consumed * MAX_GZIP_RATIO):
                    raise LimitError(f"the gzip data grows to more than {MAX_GZIP_RATIO} times its size: a bomb")
                if at == len(data):
                    data, at = read(_INPUT), 0
                    if not data:
                        raise FormatError("the gzip data is cut short")
                food = data[at : at + spoon]
                at += len(food)
                consumed += len(food)
                spoon = min(spoon * 4, _INPUT)
            try:
                piece: bytes = member.decompress(food, PIECE)
            except igzip_lib.IsalError as error:  # type: ignore[misc]  # its stub has an instance for the class
                raise FormatError(f"the gzip data is damaged, or something follows it: {error}") from error
            given += len(piece)
            if piece:
                yield piece
        at -= len(member.unused_data)
        consumed -= len(member.unused_data)
        if at == len(data):
            data, at = read(_INPUT), 0
            if not data:
                return


def _unzstd(read: Read) -> Iterator[bytes]:
    frames = _ZstdFrames(read)
    decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_ZSTD_WINDOW)
    reader = decompressor.stream_reader(cast("IO[bytes]", frames), read_size=_INPUT, read_across_frames=True)
    while True:
        try:
            piece = reader.read(PIECE)
        except zstandard.ZstdError as error:
            raise FormatError(f"the zstd data is damaged: {error}") from error
        if not piece:
            break
        yield piece
    frames.check_end()


class _Wanted(NamedTuple):
    """What the follower of zstd frames needs next."""

    skip: int
    """Bytes that it does not look at."""
    take: int
    """Bytes after these that it does."""
    may_end: bool = False
    """Whether the data may end after what is skipped."""


def _follow_frames() -> Generator[_Wanted, bytes, None]:
    """Find where frames and blocks lie. RFC 8878, sections 3.1.1 and 3.1.2."""
    skip, may_end = 0, False
    while True:
        magic = int.from_bytes((yield _Wanted(skip, 4, may_end)), "little")
        if magic >> 4 == 0x184D2A5:
            skip = int.from_bytes((yield _Wanted(0, 4)), "little")
            continue
        if magic != 0xFD2FB528:
            raise FormatError("the zstd data is damaged: no frame begins where one should")
        descriptor = (yield _Wanted(0, 1))[0]
        single_segment = descriptor >> 5 & 1
        window = 1 - single_segment
        skip = window + (0, 1, 2, 4)[descriptor & 3] + (single_segment, 2, 4, 8)[descriptor >> 6]
        last = 0
        while not last:
            block = int.from_bytes((yield _Wanted(skip, 3)), "little")
            last = block & 1
            run_length_encoded = block >> 1 & 3 == 1
            skip = 1 if run_length_encoded else block >> 3
        skip += descriptor & 4  # the checksum has the length of its flag
        may_end = True


class _ZstdFrames:
    """Passes zstd data through and follows its frames: the library does not tell that the last one is cut."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._follower = _follow_frames()
        self._wanted = next(self._follower)
        self._skip = 0
        self._held = b""

    def read(self, size: int) -> bytes:
        data = self._read(size)
        at, end = self._skip, len(data)
        while at < end:
            part = data[at : at + self._wanted.take - len(self._held)]
            self._held += part
            at += len(part)
            if len(self._held) == self._wanted.take:
                self._wanted = self._follower.send(self._held)
                self._held = b""
                at += self._wanted.skip
        self._skip = at - end
        return data

    def check_end(self) -> None:
        if self._held or self._skip or not self._wanted.may_end:
            raise FormatError("the zstd data is cut short")
