"""Layers: tar archives. POSIX.1-2017 pax (ustar and extended headers) and the GNU tar manual, "Basic Tar Format".

A valid archive means what composefs-rs 0.9 takes it for, since digests must agree. What container tools read in
different ways (content behind a symbolic link, PAX path against GNU long name, sloppy numbers) is refused.
"""

import re
import stat
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType
from typing import Final, NamedTuple, NoReturn, Protocol
from zlib import adler32

from oci2boot.digest import External
from oci2boot.errors import FormatError, LimitError

BLOCK: Final = 512
INLINE_MAX: Final = 64
"""A regular file up to this size passes through `Source.take`, a larger one through `Source.body`."""
MAX_FILE_SIZE: Final = 1 << 43
MAX_EXTENSIONS: Final = 1 << 20
"""Bytes of PAX records and GNU long names for one entry; Go and tar-core have the same limit."""
MAX_PATH: Final = 4095
MAX_NAME: Final = 255
MAX_XATTR_NAME: Final = 255
MAX_XATTR_VALUE: Final = 1 << 16
MAX_ID: Final = 0xFFFF_FFFF
MAX_MAJOR: Final = 0xFFF
MAX_MINOR: Final = 0xF_FFFF
MAX_TIME: Final = (1 << 63) - 1

HARD_LINK: Final = 0
"""`Entry.kind` of a hard link; all others have their `stat.S_IFMT` bits."""

NO_XATTRS: Final[Mapping[bytes, bytes]] = MappingProxyType({})

_KINDS: Final = {
    b"0": stat.S_IFREG,
    b"\0": stat.S_IFREG,
    b"7": stat.S_IFREG,
    b"1": HARD_LINK,
    b"2": stat.S_IFLNK,
    b"3": stat.S_IFCHR,
    b"4": stat.S_IFBLK,
    b"5": stat.S_IFDIR,
    b"6": stat.S_IFIFO,
}
_USTAR: Final = b"ustar\x0000"
_GNU: Final = b"ustar  \0"
_ZERO_BLOCK: Final = bytes(BLOCK)
# name mode uid gid size mtime chksum typeflag linkname magic+version (uname gname) devmajor devminor prefix
_HEADER: Final = struct.Struct("100s8s8s8s12s12s8sc100s8s64x8s8s155s12x")
_OCTAL: Final = re.compile(rb" *([0-7]*)[ \0]*")
_PAX_TIME: Final = re.compile(rb"(-?)([0-9]{1,19})(?:\.([0-9]*))?")
_PAX_RECORD: Final = re.compile(rb"([0-9]{1,7}) ([^=]+)=")
_PAX_XATTR: Final = b"SCHILY.xattr."
_PAX_KEYS: Final = frozenset({b"path", b"linkpath", b"size", b"uid", b"gid", b"mtime"})


class Source(Protocol):
    """Where the bytes of an archive come from, in order: a fresh stream, or a splitstream of the store."""

    def take(self, size: int) -> bytes:
        """Return exactly `size` bytes, fewer only at the end of the data."""

    def body(self, size: int) -> External:
        """Consume the content of a regular file, without its padding, and return its name; it is over `INLINE_MAX`."""


class Entry(NamedTuple):
    """One member of an archive, its extended headers applied. A named tuple: a large image has a million of them."""

    path: bytes
    """Relative and normalised; empty for the root."""
    kind: int
    mode: int
    """Permission bits alone, 07777."""
    uid: int
    gid: int
    mtime: int
    mtime_nsec: int
    xattrs: Mapping[bytes, bytes]
    content: bytes | External
    """Of a regular file; else empty."""
    linkname: bytes
    """Of a symbolic link, verbatim; of a hard link, a path in the form of `path`."""
    rdev: int
    """Of a device: the kernel's new_encode_dev() number."""


@dataclass(slots=True)
class _Extensions:
    """What the extended headers before an entry say about it."""

    size: int = 0
    records: dict[bytes, bytes] | None = None
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    long_name: bytes | None = None
    long_link: bytes | None = None


_NO_EXTENSIONS: Final = _Extensions(records={})


def printable(path: bytes) -> str:
    """Return a name for a message: what could steer a terminal is escaped, the middle of a long one left out."""
    text = path.decode("utf-8", "backslashreplace")
    if not text.isprintable():
        text = repr(path)[2:-1]
    return text if len(text) <= 200 else f"{text[:100]}…{text[-90:]}"


def read_tar(source: Source) -> Iterator[Entry]:
    """Yield the members of an archive; stops behind the end-of-archive marker, or at a clean end of data.

    What follows the marker is the caller's, which hashes it too.
    """
    take = source.take
    extensions: _Extensions | None = None
    while header := take(BLOCK):
        if header == _ZERO_BLOCK:
            _check_end(take(BLOCK))
            break
        if len(header) != BLOCK:
            _cut_short("a header")
        flag = header[156:157]
        kind = _KINDS.get(flag)
        if kind is None:
            size = _parse_extension_size(header, flag, extensions)
            data = take(size + -size % BLOCK)
            if len(data) != size + -size % BLOCK:
                _cut_short("an extended header")
            if flag != b"g":
                extensions = _extend(extensions or _Extensions(), flag, data[:size])
            continue
        yield _read_entry(source, header, kind, extensions or _NO_EXTENSIONS)
        extensions = None
    if extensions:
        raise FormatError("the tar archive ends with an extended header that belongs to no entry")


def _cut_short(where: str) -> NoReturn:
    raise FormatError(f"the tar archive is cut short in {where}")


def _check_end(second: bytes) -> None:
    if len(second) != BLOCK:
        _cut_short("its end-of-archive marker")
    if second != _ZERO_BLOCK:
        raise FormatError(
            "the tar archive goes on after a lone zero block", hint="tar programs disagree whether it has ended"
        )


def _check_sum(header: bytes, checksum: bytes) -> None:
    # The low half of Adler-32 is 1 + the sum of the bytes modulo 65521: exact for 256 bytes, and faster than sum().
    total = (adler32(header[:256]) & 0xFFFF) + (adler32(header[256:]) & 0xFFFF) - 2
    total += 8 * ord(" ") - sum(checksum)
    if checksum != b"%06o\0 " % total and total != _number(checksum):
        raise FormatError("a tar header's checksum is wrong", hint="the archive is damaged, or no tar archive")


@lru_cache(maxsize=4096)
def _number(text: bytes) -> int:
    """Read a numeric field: octal digits with spaces before and spaces or NULs behind, or GNU's base-256."""
    if text[0] >= 0x80:
        # GNU tar starts a number with 0x80, a negative one with 0xff. Readers differ on any other first byte.
        number = int.from_bytes(text[1:]) if text[0] == 0x80 else int.from_bytes(text, signed=True)
        if text[0] not in (0x80, 0xFF) or abs(number) > MAX_TIME:
            raise FormatError(f"a number in a tar header is out of range: {text!r}")
        return number
    digits = _OCTAL.fullmatch(text)
    if not digits:
        raise FormatError(f"a number in a tar header is not octal: {text!r}")
    return int(digits[1] or b"0", 8)


def _decimal(text: bytes, key: str) -> int:
    if not text.isdigit() or len(text) > 19:
        raise FormatError(f"PAX {key} is not a number: {text[:40]!r}")
    return int(text)


@lru_cache(maxsize=4096)
def _pax_time(text: bytes) -> tuple[int, int]:
    """Split a decimal fraction into seconds (rounded down) and nanoseconds (further digits cut)."""
    match = _PAX_TIME.fullmatch(text)
    if not match:
        raise FormatError(f"PAX mtime is not a time: {text[:40]!r}")
    seconds, nanoseconds = int(match[2]), int(((match[3] or b"") + b"000000000")[:9])
    if seconds > MAX_TIME:
        raise FormatError(f"PAX mtime is out of range: {text[:40]!r}")
    if match[1]:
        return (-seconds - 1, 1_000_000_000 - nanoseconds) if nanoseconds else (-seconds, 0)
    return seconds, nanoseconds


def _parse_extension_size(header: bytes, flag: bytes, before: _Extensions | None) -> int:
    """Check the header of an extended header and return how many bytes of it follow."""
    if flag not in (b"x", b"g", b"L", b"K"):
        if flag == b"S":
            raise FormatError(
                "the tar archive has a sparse file", hint="make it without --sparse; composefs refuses such layers"
            )
        raise FormatError(f"the tar archive has an entry of unknown type {printable(flag)}")
    _, _, _, _, size_text, _, checksum, _, _, magic, *_ = _HEADER.unpack(header)
    _check_sum(header, checksum)
    if magic not in (_USTAR, _GNU):
        raise FormatError(f"a tar entry of type {printable(flag)} has no ustar header")
    size = _number(size_text)
    if not 0 <= size <= MAX_EXTENSIONS - (before.size if before else 0):
        raise LimitError(f"a tar entry has over {MAX_EXTENSIONS} bytes of extended headers")
    if flag == b"g" and before:
        raise FormatError("the tar archive has an extended header that belongs to no entry")
    return size


def _extend(extensions: _Extensions, flag: bytes, data: bytes) -> _Extensions:
    extensions.size += len(data)
    if flag == b"x":
        if extensions.records is not None:
            raise FormatError("a tar entry has two PAX headers")
        extensions.records = _parse_pax(data, extensions.xattrs)
    elif flag == b"L":
        if extensions.long_name is not None:
            raise FormatError("a tar entry has two GNU long names")
        extensions.long_name = data.removesuffix(b"\0")
    else:
        if extensions.long_link is not None:
            raise FormatError("a tar entry has two GNU long link names")
        extensions.long_link = data.removesuffix(b"\0")
    return extensions


def _parse_pax(data: bytes, xattrs: dict[bytes, bytes]) -> dict[bytes, bytes]:
    """Return the records that matter here, the last of each key; extended attributes go to `xattrs`."""
    records: dict[bytes, bytes] = {}
    start = 0
    while start < len(data):
        record = _PAX_RECORD.match(data, start)
        end = start + int(record[1]) if record else 0
        if not record or not record.end() < end <= len(data) or data[end - 1] != ord("\n"):
            raise FormatError(f"not a PAX record: {data[start : start + 40]!r}")
        key, value = record[2], data[record.end() : end - 1]
        if key in _PAX_KEYS:
            # composefs-rs 0.9 takes the seconds of the last one and the nanoseconds of the first.
            if key == b"mtime" and key in records:
                raise FormatError("a tar entry has two PAX mtimes")
            records[key] = value
        elif key.startswith(_PAX_XATTR):
            _check_xattr(name := key.removeprefix(_PAX_XATTR), value)
            xattrs[name] = value
        elif key.startswith(b"GNU.sparse."):
            raise FormatError(
                "the tar archive has a sparse file", hint="make it without --sparse; composefs refuses such layers"
            )
        start = end
    return records


def _check_xattr(name: bytes, value: bytes) -> None:
    if not name or b"\0" in name:
        raise FormatError(f"not the name of an extended attribute: {name[:40]!r}")
    if len(name) > MAX_XATTR_NAME or len(value) > MAX_XATTR_VALUE:
        raise LimitError(f"extended attribute {printable(name)} is too long")


def _read_entry(source: Source, header: bytes, kind: int, extensions: _Extensions) -> Entry:
    name, mode, uid, gid, size_text, mtime, checksum, flag, link, magic, major, minor, prefix = _HEADER.unpack(header)
    _check_sum(header, checksum)
    records = extensions.records or {}
    path = _resolve_path(name, magic, prefix, extensions, records)
    try:
        size, user, group, seconds, nanoseconds = _number(size_text), _number(uid), _number(gid), _number(mtime), 0
        if records:
            if b"size" in records:
                size = _decimal(records[b"size"], "size")
            if b"uid" in records:
                user = _decimal(records[b"uid"], "uid")
            if b"gid" in records:
                group = _decimal(records[b"gid"], "gid")
            if b"mtime" in records:
                seconds, nanoseconds = _pax_time(records[b"mtime"])
        if not (0 <= user <= MAX_ID and 0 <= group <= MAX_ID):
            raise FormatError(f"owner {user}:{group} is beyond 32 bits")
        linkname, rdev = b"", 0
        if kind == stat.S_IFREG:
            if path[-1:] == b"/":
                raise FormatError(
                    "a regular file with a slash at its end, which some tar programs take for a directory"
                )
            if not 0 <= size <= MAX_FILE_SIZE:
                raise LimitError(f"a size of {size} bytes, over the limit of {MAX_FILE_SIZE}")
        elif size:
            raise FormatError(
                f"an entry of type {flag.decode()} with {size} bytes of content, which tar programs read differently"
            )
        elif kind == stat.S_IFLNK:
            linkname = _resolve_link(link, extensions, records)
        elif kind == HARD_LINK:
            linkname = normalise(_resolve_link(link, extensions, records))
        elif kind in (stat.S_IFCHR, stat.S_IFBLK):
            rdev = _parse_device(magic, major, minor)
        permissions = _number(mode)
        if permissions < 0:
            raise FormatError("a negative mode")
        path = normalise(path)
    except (FormatError, LimitError) as error:
        raise type(error)(f"tar entry {printable(path)}: {error.message}", error.hint) from None
    content = _read_content(source, size, path) if size else b""
    xattrs = extensions.xattrs or NO_XATTRS
    return Entry(path, kind, permissions & 0o7777, user, group, seconds, nanoseconds, xattrs, content, linkname, rdev)


def _read_content(source: Source, size: int, path: bytes) -> bytes | External:
    padding = -size % BLOCK
    if size <= INLINE_MAX:
        data = source.take(size + padding)
        if len(data) != size + padding:
            _cut_short(printable(path))
        return data[:size]
    content = source.body(size)
    if content.size != size or len(source.take(padding)) != padding:
        _cut_short(printable(path))
    return content


def _resolve_path(
    name: bytes, magic: bytes, prefix: bytes, extensions: _Extensions, records: dict[bytes, bytes]
) -> bytes:
    if magic not in (_USTAR, _GNU) and magic.startswith(b"ustar"):
        raise FormatError(f"a tar header of unknown version: {magic!r}")
    path = records.get(b"path")
    if path is None:
        path = extensions.long_name
    elif extensions.long_name is not None:
        raise FormatError(
            f"tar entry {printable(path)} has both a PAX path and a GNU long name, tar programs take either"
        )
    if path is None:
        path = name.partition(b"\0")[0]
        # The GNU format has access and change times where ustar has the prefix.
        if magic == _USTAR and prefix[0]:
            path = prefix.partition(b"\0")[0] + b"/" + path
    if not path:
        raise FormatError("a tar entry has no name")
    return path


def _resolve_link(link: bytes, extensions: _Extensions, records: dict[bytes, bytes]) -> bytes:
    target = records.get(b"linkpath")
    if target is None:
        target = extensions.long_link
    elif extensions.long_link is not None:
        raise FormatError("both a PAX linkpath and a GNU long link name, tar programs take either")
    if target is None:
        target = link.partition(b"\0")[0]
    if not target or b"\0" in target:
        raise FormatError(f"not a link target: {target[:40]!r}")
    if len(target) > MAX_PATH:
        raise LimitError(f"a link target of over {MAX_PATH} bytes")
    return target


def _parse_device(magic: bytes, major_text: bytes, minor_text: bytes) -> int:
    if magic not in (_USTAR, _GNU):
        raise FormatError("a device without device numbers")
    major, minor = _number(major_text), _number(minor_text)
    if not (0 <= major <= MAX_MAJOR and 0 <= minor <= MAX_MINOR):
        raise FormatError(f"device number {major}:{minor}, which Linux does not have")
    return minor & 0xFF | major << 8 | (minor & ~0xFF) << 12


def normalise(path: bytes) -> bytes:
    """Return a path in an archive relative to the root, without empty and `.` components; `..` is refused."""
    names = path.split(b"/")
    if b"" in names or b"." in names:
        names = [name for name in names if name not in (b"", b".")]
    if b".." in names:
        raise FormatError("a path with ..", hint="the layer tries to leave its root")
    if b"\0" in path:
        raise FormatError("a path with a NUL byte")
    if len(path) > MAX_NAME and (len(path) > MAX_PATH or max(map(len, names), default=0) > MAX_NAME):
        raise LimitError(f"a path of over {MAX_PATH} bytes, or a name in it of over {MAX_NAME}")
    return b"/".join(names)
