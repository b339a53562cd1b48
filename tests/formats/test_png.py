"""Pictures made by hand from the PNG specification."""

import struct
import zlib

import pytest

from oci2boot.errors import FormatError
from oci2boot.formats.png import lit_lines


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(*lines: bytes, depth: int = 8) -> bytes:
    """Return a picture of two pixels' width, its lines with their filters, the data in two chunks."""
    header = struct.pack(">IIBBBBB", 2, len(lines), depth, 2, 0, 0, 0)
    data = zlib.compress(b"".join(lines))
    body = chunk(b"IDAT", data[:5]) + chunk(b"tEXt", b"IDAT\0no") + chunk(b"IDAT", data[5:])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


def test_black_is_black_by_any_filter() -> None:
    assert lit_lines(png(*(bytes([number]) + bytes(6) for number in range(5)))) == 0


def test_one_pixel_is_seen() -> None:
    assert lit_lines(png(bytes(7), bytes(6) + b"\x01")) == 1
    assert lit_lines(png(b"\x02" + b"\xaa" * 6, bytes(7), b"\0" + b"\x01" * 6)) == 2


def test_what_is_no_such_picture_is_refused() -> None:
    whole = png(bytes(7))
    for data in (b"", whole[:20], whole.replace(b"IHDR", b"JHDR"), png(bytes(7), depth=16)):
        with pytest.raises(FormatError):
            lit_lines(data)
    at = whole.index(b"IDAT") + 4
    with pytest.raises(FormatError, match="damaged"):
        lit_lines(whole[:at] + b"\xff\xff" + whole[at + 2 :])
