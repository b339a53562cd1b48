"""PNG, as far as to see whether there is something to see. W3C, "Portable Network Graphics", third edition."""

import struct
import zlib
from typing import Final

from oci2boot.errors import FormatError

SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
PIXELS_MAX: Final = 1 << 26


def lit_lines(data: bytes) -> int:
    """Count the lines that are not black, give or take one at each edge; 0 for a black picture.

    Pictures are of eight bits a channel in RGB, as QEMU writes them.
    """
    if data[:8] != SIGNATURE or data[12:16] != b"IHDR" or len(data) < 33:
        raise FormatError("not a PNG picture")
    width, height, *kind = struct.unpack(">IIBBBBB", data[16:29])
    if kind != [8, 2, 0, 0, 0] or not 0 < width * height <= PIXELS_MAX:
        raise FormatError(f"a PNG picture of an unknown kind: {width}x{height} {kind}")
    line = 1 + 3 * width
    try:
        pixels = zlib.decompressobj().decompress(b"".join(_parts(data)), line * height)
    except zlib.error as error:
        raise FormatError(f"a damaged PNG picture: {error}") from error
    # Each line begins with its filter; whichever it is, of black below black it makes zeros.
    return sum(any(pixels[start + 1 : start + line]) for start in range(0, len(pixels), line))


def _parts(data: bytes) -> list[bytes]:
    parts, at = [], 8
    while at + 12 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        if data[at + 4 : at + 8] == b"IDAT":
            parts.append(data[at + 8 : at + 8 + size])
        at += 12 + size
    return parts
