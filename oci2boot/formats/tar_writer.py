"""Archives that are the same wherever they are made, for layers. POSIX.1-2017 pax; only what ustar cannot say goes into
extended headers.
"""

import stat
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from oci2boot.digest import External
from oci2boot.errors import FormatError
from oci2boot.formats.tar import BLOCK, HARD_LINK, Entry, printable

END: Final = bytes(2 * BLOCK)
_FLAGS: Final = {
    HARD_LINK: b"1",
    stat.S_IFREG: b"0",
    stat.S_IFLNK: b"2",
    stat.S_IFCHR: b"3",
    stat.S_IFBLK: b"4",
    stat.S_IFDIR: b"5",
    stat.S_IFIFO: b"6",
}
_MAX_OCTAL_7: Final = 0o7777777
_MAX_OCTAL_11: Final = 0o77777777777
_NAME: Final = 100

Content = Callable[[External], Iterable[bytes]]


def write_tar(entries: Iterable[Entry], content: Content) -> Iterator[bytes]:
    """Yield an archive in pieces; `content` gives what a regular file's name stands for."""
    for entry in entries:
        size = len(entry.content) if isinstance(entry.content, bytes) else entry.content.size
        yield header(entry, size)
        left = size
        for piece in [entry.content] if isinstance(entry.content, bytes) else content(entry.content):
            left -= len(piece)
            yield piece
        if left:
            raise FormatError(f"/{printable(entry.path)} does not have the {size} bytes that were promised")
        yield padding(size)
    yield END


def padding(size: int) -> bytes:
    return bytes(-size % BLOCK)


def header(entry: Entry, size: int) -> bytes:
    """Return what goes before a member's content of `size` bytes."""
    flag = _FLAGS.get(entry.kind)
    if flag is None:
        raise FormatError(f"/{printable(entry.path)}: a tar has no such kind of file ({entry.kind:#o})")
    path = entry.path + b"/" if entry.kind == stat.S_IFDIR else entry.path
    records: dict[bytes, bytes] = {}
    if len(path) > _NAME:
        records[b"path"] = path
    if len(entry.linkname) > _NAME:
        records[b"linkpath"] = entry.linkname
    for name, number, limit in (
        (b"uid", entry.uid, _MAX_OCTAL_7),
        (b"gid", entry.gid, _MAX_OCTAL_7),
        (b"size", size, _MAX_OCTAL_11),
    ):
        if number > limit:
            records[name] = b"%d" % number
    if not 0 <= entry.mtime <= _MAX_OCTAL_11 or entry.mtime_nsec:
        records[b"mtime"] = _time(entry.mtime, entry.mtime_nsec)
    for name, value in sorted(entry.xattrs.items()):
        records[b"SCHILY.xattr." + name] = value
    extended = b""
    if records:
        data = b"".join(_record(key, value) for key, value in records.items())
        extended = _header(b"PaxHeaders/" + path[:80], b"x", 0o644, 0, 0, len(data), 0, b"", 0)
        extended += data + padding(len(data))
    return extended + _header(
        path[:_NAME],
        flag,
        entry.mode,
        min(entry.uid, _MAX_OCTAL_7),
        min(entry.gid, _MAX_OCTAL_7),
        min(size, _MAX_OCTAL_11),
        min(max(entry.mtime, 0), _MAX_OCTAL_11),
        entry.linkname[:_NAME],
        entry.rdev,
    )


def _header(
    name: bytes, flag: bytes, mode: int, uid: int, gid: int, size: int, mtime: int, link: bytes, rdev: int
) -> bytes:
    # new_encode_dev() of the kernel: the major number within the minor's bits.
    major, minor = rdev >> 8 & 0xFFF, rdev & 0xFF | rdev >> 12 & 0xFFF00
    fields = (
        name.ljust(_NAME, b"\0"),
        *(b"%07o\0" % number for number in (mode, uid, gid)),
        *(b"%011o\0" % number for number in (size, mtime)),
        b" " * 8,
        flag,
        link.ljust(_NAME, b"\0"),
        b"ustar\x0000",
        bytes(64),
        *(b"%07o\0" % number for number in (major, minor)),
        bytes(155 + 12),
    )
    block = b"".join(fields)
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def _time(seconds: int, nanoseconds: int) -> bytes:
    """Return seconds as pax has them: the fraction of a negative time counts away from zero."""
    if not nanoseconds:
        return b"%d" % seconds
    whole = seconds * 1_000_000_000 + nanoseconds
    return b"%s%d.%09d" % (b"-" if whole < 0 else b"", *divmod(abs(whole), 1_000_000_000))


def _record(key: bytes, value: bytes) -> bytes:
    """Return one record, whose length counts its own digits."""
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    length = rest + len(str(length))
    return b"%d %s=%s\n" % (length, key, value)
