"""The xattrs of an EROFS inode: a name filter, references into a shared table, and entries of its own.

Linux, fs/erofs/erofs_fs.h, "EROFS_XATTR_…", and fs/erofs/xattr.c.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Final

import xxhash

from oci2boot.formats.erofs.structs import XattrAreaHeader, XattrEntry

FILTER_SEED: Final = 0x25BBE08F
VALUE_MAX: Final = 0xFFFF
NAME_MAX: Final = 255
AREA_MAX: Final = XattrAreaHeader.layout().size + 4 * 0xFFFE
"""Bytes that `xattr_icount` can express."""
SHARED_COUNT_MAX: Final = 255

HEADER_SIZE: Final = XattrAreaHeader.layout().size
ENTRY_SIZE: Final = XattrEntry.layout().size

_PREFIXES: Final = {
    1: b"user.",
    2: b"system.posix_acl_access",
    3: b"system.posix_acl_default",
    4: b"trusted.",
    6: b"security.",
}
_LUSTRE: Final = {5: b"lustre."}
_PREFIX_OF: Final = {0: b""} | _PREFIXES | _LUSTRE

_pack_header = XattrAreaHeader.layout().pack
_pack_entry = XattrEntry.layout().pack


def split_name(name: bytes, *, lustre: bool) -> tuple[int, bytes]:
    """Return (prefix index, suffix). C mkcomposefs does not know the prefix `lustre.`, composefs-rs's V2 does."""
    for index, prefix in _PREFIXES.items():
        if name.startswith(prefix):
            return index, name[len(prefix) :]
    if lustre and name.startswith(_LUSTRE[5]):
        return 5, name[len(_LUSTRE[5]) :]
    return 0, name


def join_name(index: int, suffix: bytes) -> bytes | None:
    prefix = _PREFIX_OF.get(index)
    return None if prefix is None else prefix + suffix


@lru_cache(maxsize=4096)
def _filter_bit(index: int, suffix: bytes) -> int:
    bit: int = xxhash.xxh32_intdigest(suffix, (FILTER_SEED + index) & 0xFFFFFFFF) & 31
    return 1 << bit


def entry_size(suffix: bytes, value: bytes) -> int:
    return (ENTRY_SIZE + len(suffix) + len(value) + 3) & ~3


def encode_entry(index: int, suffix: bytes, value: bytes) -> bytes:
    entry = _pack_entry(len(suffix), index, len(value)) + suffix + value
    return entry + bytes(-len(entry) & 3)


def encode_header(names: Iterable[tuple[int, bytes]], shared: Sequence[int]) -> bytes:
    """Return the head of an xattr area: the filter over all its `names`, and the ids of the shared entries."""
    absent = 0xFFFFFFFF
    for index, suffix in names:
        absent &= ~_filter_bit(index, suffix)
    return _pack_header(absent, len(shared), b"") + b"".join([number.to_bytes(4, "little") for number in shared])


def icount(area_size: int) -> int:
    """Return how an inode writes the size of its xattr area, which is not empty."""
    return (area_size - HEADER_SIZE) // 4 + 1
