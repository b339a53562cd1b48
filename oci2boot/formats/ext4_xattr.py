"""Extended attributes as ext4 stores them. Linux, Documentation/filesystems/ext4/attributes.rst; fs/ext4/acl.h."""

from collections.abc import Mapping
from typing import Final, NamedTuple

from oci2boot.errors import FormatError
from oci2boot.formats.ext4 import crc32c

MAGIC: Final = 0xEA020000
_HEADER: Final = 32
_ENTRY: Final = 16

_PREFIXES: Final = {
    b"system.posix_acl_access": 2,
    b"system.posix_acl_default": 3,
    b"user.": 1,
    b"trusted.": 4,
    b"security.": 6,
    b"system.": 7,
}
"""Longer names before the prefixes that they begin with."""
_PREFIX_OF: Final = {number: prefix for prefix, number in _PREFIXES.items()}
_ACL_NUMBERS: Final = (2, 3)
_ACL_NAMED: Final = (2, 8)
"""ACL_USER and ACL_GROUP, the entries that carry an id."""


class _Attribute(NamedTuple):
    prefix: int
    name: bytes
    value: bytes

    @property
    def size(self) -> int:
        return _ENTRY + _padded(len(self.name)) + _padded(len(self.value))


def _padded(size: int) -> int:
    return size + 3 & ~3


def _attribute(name: bytes, value: bytes) -> _Attribute:
    for prefix, number in _PREFIXES.items():
        if number in _ACL_NUMBERS and name == prefix:
            return _Attribute(number, b"", _pack_acl(value))
        if number not in _ACL_NUMBERS and name.startswith(prefix) and len(name) > len(prefix):
            rest = name[len(prefix) :]
            if len(rest) > 255 or b"\0" in rest:
                raise FormatError(f"not the name of an extended attribute: {name[:80]!r}")
            return _Attribute(number, rest, value)
    raise FormatError(f"ext4 has no place for the extended attribute {name[:80]!r}")


def _pack_acl(value: bytes) -> bytes:
    """Turn the ACL of the system call (version 2, 8 bytes an entry) into ext4's (version 1, ids only where needed)."""
    if len(value) < 4 or len(value) % 8 != 4 or value[:4] != b"\2\0\0\0":
        raise FormatError("not a POSIX ACL")
    packed = [b"\1\0\0\0"]
    for at in range(4, len(value), 8):
        tag = int.from_bytes(value[at : at + 2], "little")
        packed.append(value[at : at + 8] if tag in _ACL_NAMED else value[at : at + 4])
    return b"".join(packed)


def _unpack_acl(value: bytes) -> bytes:
    unpacked = [b"\2\0\0\0"]
    at = 4
    while at < len(value):
        size = 8 if int.from_bytes(value[at : at + 2], "little") in _ACL_NAMED else 4
        unpacked.append(value[at : at + size].ljust(8, b"\xff"))
        at += size
    if value[:4] != b"\1\0\0\0" or at != len(value):
        raise FormatError("not a POSIX ACL as ext4 keeps it")
    return b"".join(unpacked)


def _rotated(number: int, by: int) -> int:
    return (number << by | number >> 32 - by) & 0xFFFFFFFF


def _hash(attribute: _Attribute) -> int:
    number = 0
    for byte in attribute.name:
        number = _rotated(number, 5) ^ byte
    value = attribute.value.ljust(_padded(len(attribute.value)), b"\0")
    for at in range(0, len(value), 4):
        number = _rotated(number, 16) ^ int.from_bytes(value[at : at + 4], "little")
    return number


def _pack_entries(attributes: list[_Attribute], size: int, origin: int, *, with_hashes: bool) -> bytes:
    """Return `size` bytes, entries from the front and values from the back; offsets count from `origin` before."""
    body = bytearray(size)
    at, end = 0, size
    for attribute in attributes:
        end -= _padded(len(attribute.value))
        body[end : end + len(attribute.value)] = attribute.value
        body[at] = len(attribute.name)
        body[at + 1] = attribute.prefix
        body[at + 2 : at + 4] = (end + origin if attribute.value else 0).to_bytes(2, "little")
        body[at + 8 : at + 12] = len(attribute.value).to_bytes(4, "little")
        if with_hashes:
            body[at + 12 : at + 16] = _hash(attribute).to_bytes(4, "little")
        body[at + _ENTRY : at + _ENTRY + len(attribute.name)] = attribute.name
        at += _ENTRY + _padded(len(attribute.name))
    return bytes(body)


def split_xattrs(xattrs: Mapping[bytes, bytes], in_inode: int, block_size: int) -> tuple[bytes, bytes | None]:
    """Return (what follows the fixed part of an inode, `in_inode` bytes; the attribute block, still without checksum).

    All attributes live in the inode where they fit, else all in the block; more than a block holds is a `FormatError`.
    """
    attributes = sorted(
        (_attribute(name, value) for name, value in xattrs.items()),
        key=lambda one: (one.prefix, len(one.name), one.name),
    )
    if not attributes:
        return bytes(in_inode), None
    needed = sum(attribute.size for attribute in attributes) + 4
    if needed <= in_inode - 4:
        return MAGIC.to_bytes(4, "little") + _pack_entries(attributes, in_inode - 4, 0, with_hashes=False), None
    if needed > block_size - _HEADER:
        raise FormatError(f"the extended attributes take {needed} bytes, ext4 has room for {block_size - _HEADER}")
    whole = 0
    for attribute in attributes:
        whole = _rotated(whole, 16) ^ _hash(attribute)
    header = b"".join(number.to_bytes(4, "little") for number in (MAGIC, 1, 1, whole)).ljust(_HEADER, b"\0")
    return bytes(in_inode), header + _pack_entries(attributes, block_size - _HEADER, _HEADER, with_hashes=True)


def seal_xattr_block(block: bytes, seed: int, number: int) -> bytes:
    """Return the attribute block with its checksum; `seed` is the file system's, `number` the block's."""
    checksum = crc32c(crc32c(seed, number.to_bytes(8, "little")), block)
    return block[:16] + checksum.to_bytes(4, "little") + block[20:]


def unpack_xattrs(area: bytes, *, block: bool) -> dict[bytes, bytes]:
    """Read the attributes of a block, or of the part of an inode that follows its fixed part."""
    if int.from_bytes(area[:4], "little") != MAGIC:
        if block:
            raise FormatError("an extended attribute block without its magic number")
        return {}
    at = _HEADER if block else 4
    origin = 0 if block else 4
    xattrs: dict[bytes, bytes] = {}
    while area[at : at + 4] != b"\0\0\0\0":
        if at + _ENTRY > len(area):
            raise FormatError("the extended attributes do not end")
        length, prefix = area[at], area[at + 1]
        start = int.from_bytes(area[at + 2 : at + 4], "little") + origin
        size = int.from_bytes(area[at + 8 : at + 12], "little")
        name = area[at + _ENTRY : at + _ENTRY + length]
        if prefix not in _PREFIX_OF or len(name) < length or start + size > len(area) or any(area[at + 4 : at + 8]):
            raise FormatError(f"an extended attribute that cannot be read: {name!r}")
        value = area[start : start + size]
        xattrs[_PREFIX_OF[prefix] + name] = _unpack_acl(value) if prefix in _ACL_NUMBERS else value
        at += _ENTRY + _padded(length)
    return xattrs
