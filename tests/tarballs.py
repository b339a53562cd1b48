"""A raw tar writer for tests, which makes any header, also hostile ones; and archives in memory as a `Source`."""

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from oci2boot.digest import External, Hash
from oci2boot.formats.fsverity import measure
from oci2boot.formats.tar import Entry, read_tar

BLOCK = 512
END = bytes(2 * BLOCK)
USTAR = b"ustar\x0000"
GNU = b"ustar  \0"
V7 = bytes(8)

Field = int | bytes
"""A number to be written in octal, or the bytes of the field."""


class MemorySource:
    """An archive in memory; keeps the large bodies as a store would, and counts what passed through `take`."""

    def __init__(self, data: bytes, algorithm: Hash = "sha256") -> None:
        self.stream = io.BytesIO(data)
        self.algorithm: Hash = algorithm
        self.inline = 0
        self.objects: dict[str, bytes] = {}

    def take(self, size: int) -> bytes:
        data = self.stream.read(size)
        self.inline += len(data)
        return data

    def body(self, size: int) -> External:
        data = self.stream.read(size)
        digest = measure(data, self.algorithm)
        self.objects[digest.hex] = data
        return External(digest, len(data))


def entries(*parts: bytes, algorithm: Hash = "sha256") -> list[Entry]:
    """Return what our parser makes of the parts of an archive, which needs no end marker."""
    return list(read_tar(MemorySource(b"".join(parts), algorithm)))


def octal(number: int, width: int) -> bytes:
    return b"%0*o\0" % (width - 1, number)


def base256(number: int, width: int) -> bytes:
    """Write a number as GNU tar does where octal is too short, or the number is negative."""
    return (b"\xff" if number < 0 else b"\x80") + number.to_bytes(width, signed=True)[1:]


def header(
    name: bytes,
    flag: bytes = b"0",
    *,
    mode: Field = 0o644,
    uid: Field = 0,
    gid: Field = 0,
    size: Field = 0,
    mtime: Field = 1000,
    link: bytes = b"",
    magic: bytes = USTAR,
    major: Field = 0,
    minor: Field = 0,
    prefix: bytes = b"",
    checksum: bytes | None = None,
) -> bytes:
    """Return one block; bytes go in as they are, cut to the field."""

    def number(value: Field, width: int) -> bytes:
        return (octal(value, width) if isinstance(value, int) else value).ljust(width, b"\0")[:width]

    fields = (
        name.ljust(100, b"\0")[:100],
        *(number(mode, 8), number(uid, 8), number(gid, 8), number(size, 12), number(mtime, 12)),
        *(b" " * 8, flag, link.ljust(100, b"\0")[:100], magic.ljust(8, b"\0"), bytes(64)),
        *(number(major, 8), number(minor, 8), prefix.ljust(155, b"\0")[:155], bytes(12)),
    )
    block = b"".join(fields)
    if checksum is None:
        checksum = b"%06o\0 " % sum(block)
    return block[:148] + checksum.ljust(8, b"\0")[:8] + block[156:]


def pad(data: bytes) -> bytes:
    return data + bytes(-len(data) % BLOCK)


def file(name: bytes, content: bytes = b"", **fields: Any) -> bytes:
    return header(name, **{"size": len(content), **fields}) + pad(content)


def directory(name: bytes, **fields: Any) -> bytes:
    return header(name, b"5", **{"mode": 0o755, **fields})


def symlink(name: bytes, target: bytes, **fields: Any) -> bytes:
    return header(name, b"2", **{"mode": 0o777, "link": target, **fields})


def hard_link(name: bytes, target: bytes, **fields: Any) -> bytes:
    return header(name, b"1", **{"link": target, **fields})


def record(key: bytes, value: bytes) -> bytes:
    """Return one PAX record; its length counts its own digits."""
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    length = rest + len(str(length))
    return b"%d %s=%s\n" % (length, key, value)


def pax(*records: tuple[bytes, bytes] | bytes, flag: bytes = b"x", **fields: Any) -> bytes:
    """Return a PAX header of records, each a pair or raw bytes."""
    data = b"".join(one if isinstance(one, bytes) else record(*one) for one in records)
    return file(b"PaxHeaders.0/x", data, flag=flag, **fields)


def gnu_long(flag: bytes, text: bytes, **fields: Any) -> bytes:
    """Return a GNU long name (`L`) or long link name (`K`) with its NUL."""
    return file(b"././@LongLink", text + b"\0", flag=flag, magic=GNU, **fields)


def with_tarfile(members: Iterable[tuple[tarfile.TarInfo, bytes]], tar_format: int = tarfile.PAX_FORMAT) -> bytes:
    """Return an archive as Python's tarfile writes it."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tar_format, errors="surrogateescape") as archive:
        for member, content in members:
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return out.getvalue()


def unpack(layers: list[bytes], path: Path) -> Path:
    """Unpack layers one over the other, by Python's tarfile."""
    for layer in layers:
        with tarfile.open(fileobj=io.BytesIO(layer)) as archive:
            archive.extractall(path, filter="tar")
    return path
