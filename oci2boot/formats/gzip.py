"""gzip of stored blocks. RFC 1952, RFC 1951 section 3.2.4.

What a compressor writes depends on its version; this depends on nothing, so a layer has one digest on every machine.
A UKI is compressed inside already.
"""

import zlib
from collections.abc import Iterable, Iterator
from typing import Final

_MAX_STORED: Final = 0xFFFF
_MEMBER: Final = b"\x1f\x8b\x08" + bytes(6) + b"\xff"  # no name, no time, unknown system
_LAST: Final = b"\x01\0\0\xff\xff"


def store(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield one gzip member that holds the pieces."""
    checksum = size = 0
    yield _MEMBER
    for piece in pieces:
        checksum = zlib.crc32(piece, checksum)
        size += len(piece)
        view = memoryview(piece)
        for start in range(0, len(piece), _MAX_STORED):
            block = view[start : start + _MAX_STORED]
            yield b"\0" + len(block).to_bytes(2, "little") + (len(block) ^ _MAX_STORED).to_bytes(2, "little")
            yield bytes(block)
    yield _LAST + checksum.to_bytes(4, "little") + (size & 0xFFFF_FFFF).to_bytes(4, "little")
