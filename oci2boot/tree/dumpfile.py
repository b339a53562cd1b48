"""composefs dump files: a tree as text, one line for each name. composefs, man/composefs-dump(5).

Where C mkcomposefs and composefs-rs read a line differently, it is refused: the digest must not depend on the reader.
"""

import re
import stat
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from oci2boot.digest import External, Hash, VerityDigest
from oci2boot.errors import FormatError, LimitError
from oci2boot.tree.model import (
    NO_XATTRS,
    Content,
    Device,
    Directory,
    File,
    Inode,
    Leaf,
    Metadata,
    Sparse,
    Special,
    Symlink,
    file_type,
    walk,
)

DUMP_MAX: Final = 2 << 30
"""Bytes; a real root file system's dump has some megabytes."""
NAME_MAX: Final = 255

_FIELDS: Final = 11
_ABSENT: Final = b"-"
_NOT_NAMES: Final = frozenset((b"", b".", b".."))
_SHORT: Final = {b"\\": b"\\", b"n": b"\n", b"r": b"\r", b"t": b"\t"}
_ESCAPE: Final = re.compile(rb"\\(?:x([0-9A-Fa-f]{2})|([\\nrt])|)")
_U32: Final = (1 << 32) - 1
_U64: Final = (1 << 64) - 1


def parse_dumpfile(data: bytes, algorithm: Hash = "sha256") -> Directory:
    """Return the tree that a dump file describes; digests in it are of `algorithm`."""
    if len(data) > DUMP_MAX:
        raise LimitError(f"a dump file of {len(data)} bytes, at most {DUMP_MAX} are read")
    parser = _Parser(algorithm)
    for number, line in enumerate(data.removesuffix(b"\n").split(b"\n"), 1):
        try:
            parser.line(line)
        except FormatError as error:
            raise FormatError(f"line {number} of the dump file: {error.message}", error.hint) from None
    return parser.finish()


@dataclass(slots=True)
class _Linked:
    path: bytes
    """The name that has the inode's own line."""
    nlink: int
    """As that line promises."""
    first: bytes
    """The name in the same directory that sorts first."""
    names: int = 1


def _sorts_before(path: bytes) -> FormatError:
    return FormatError(
        f"{_show(path)} has a hard link that sorts before it", hint="the first name must have the file's own line"
    )


class _Parser:
    def __init__(self, algorithm: Hash) -> None:
        self._algorithm: Hash = algorithm
        self._root: Directory | None = None
        self._children: dict[bytes, dict[bytes, Inode]] = {}
        """By path of the directory, that of the root being empty."""
        self._linked: dict[int, _Linked] = {}
        """By id() of a leaf: what is known of those whose NLINK is not 1."""
        self._xattrs: dict[bytes, dict[bytes, bytes]] = {}

    def line(self, line: bytes) -> None:
        fields = line.split(b" ", _FIELDS)
        if line.endswith(b"\r"):
            if len(fields) > _FIELDS:
                raise FormatError("an xattr ends with a carriage return, which may or may not belong to it")
            fields[-1] = fields[-1][:-1]
        if len(fields) < _FIELDS:
            raise FormatError(f"{len(fields)} fields instead of at least {_FIELDS}")
        path = fields[0]
        if b"\\" in path:
            path = _unescape(path)
        parent, slash, name = path.rpartition(b"/")
        if self._root is None:
            if path != b"/":
                raise FormatError(f"the first path is not `/` but {_show(path)}")
            inode = self._inode(fields, path)
            if not isinstance(inode, Directory):
                raise FormatError("the root is not a directory")
            self._root = inode
            return
        siblings = self._children.get(parent) if slash else None
        if siblings is None:
            raise FormatError(f"no directory for {_show(path)}", hint="it must have a line of its own, before this one")
        if name in _NOT_NAMES or len(name) > NAME_MAX or b"\0" in name:
            raise FormatError(f"not a file name: {_show(name)}")
        if name in siblings:
            raise FormatError(f"{_show(path)} is there twice")
        siblings[name] = self._link(fields, path) if fields[2][:1] == b"@" else self._inode(fields, path)

    def finish(self) -> Directory:
        if self._root is None:
            raise FormatError("the dump file is empty")
        in_order: dict[bytes, list[bytes]] = {}
        for linked in self._linked.values():
            if linked.nlink != linked.names:
                raise FormatError(f"{_show(linked.path)} should have {linked.nlink} names, and has {linked.names}")
            parent, _, name = linked.path.rpartition(b"/")
            if linked.first != name:
                siblings = self._children[parent]
                names = in_order.get(parent) or in_order.setdefault(parent, sorted(siblings))
                before = names[bisect_left(names, linked.first) : bisect_left(names, name)]
                if any(siblings[other] is not siblings[name] for other in before):
                    raise _sorts_before(linked.path)
        return self._root

    def _link(self, fields: list[bytes], path: bytes) -> Leaf:
        """Return what a line with `@` before its mode links to; the line's other fields mean nothing."""
        if stat.S_IFMT(_mode(fields[2][1:])) == stat.S_IFDIR:
            raise FormatError("a hard link to a directory")
        target = _unescape(fields[8])
        parent, slash, name = target.rpartition(b"/")
        inode = self._children.get(parent, {}).get(name) if slash else None
        if inode is None:
            raise FormatError(f"a hard link to {_show(target)}, which does not come before it")
        if isinstance(inode, Directory):
            raise FormatError(f"a hard link to the directory {_show(target)}")
        linked = self._linked.get(id(inode))
        if linked is None:
            raise FormatError(f"{_show(target)} should have one name, and has a second one")
        linked.names += 1
        components, own = path.split(b"/"), linked.path.split(b"/")
        if components < own:
            # C mkcomposefs puts the inode where its own line is, composefs-rs where its first name is.
            if components[:-1] != own[:-1]:
                raise _sorts_before(linked.path)
            linked.first = min(linked.first, components[-1])
        return inode

    def _inode(self, fields: list[bytes], path: bytes) -> Inode:
        _, size_text, mode_text, nlink, uid, gid, rdev_text, mtime, payload, content, digest, *rest = fields
        mode = _mode(mode_text)
        kind = stat.S_IFMT(mode)
        size = _number(size_text, _U64)
        rdev = _number(rdev_text, _U64)
        links = _number(nlink, _U32)
        seconds, dot, nanoseconds = mtime.partition(b".")
        if not dot:
            raise FormatError(f"the time {_show(mtime)} has no dot")
        meta = Metadata(
            mode=mode & 0o7777,
            uid=_number(uid, _U32),
            gid=_number(gid, _U32),
            mtime=_seconds(seconds),
            mtime_nsec=_number(nanoseconds, 999_999_999),
            xattrs=self._parse_xattrs(rest[0]) if rest else NO_XATTRS,
        )
        leaf: Leaf
        if kind == stat.S_IFREG:
            leaf = File(meta, self._content(size, payload, content, digest))
        elif content != _ABSENT or digest != _ABSENT:
            raise FormatError("only a regular file has content or a digest")
        elif kind == stat.S_IFDIR:
            _no_device(rdev)
            entries = self._children[path if path != b"/" else b""] = {}
            return Directory(meta, entries)
        elif kind == stat.S_IFLNK:
            target = b"" if payload == _ABSENT else _unescape(payload)
            if not target or b"\0" in target:
                raise FormatError(f"not the target of a symlink: {_show(target)}")
            leaf = Symlink(meta, target)
        elif kind in (stat.S_IFCHR, stat.S_IFBLK):
            if rdev > _U32 or size > _U32:
                raise FormatError(f"a device with number {rdev} and size {size}")
            leaf = Device(meta, kind, rdev)
        elif kind in (stat.S_IFIFO, stat.S_IFSOCK):
            if size > _U32:
                raise FormatError(f"a FIFO or socket of {size} bytes")
            leaf = Special(meta, kind)
        else:
            raise FormatError(f"the mode {_show(mode_text)} names no file type")
        if kind not in (stat.S_IFCHR, stat.S_IFBLK):
            _no_device(rdev)
        if links != 1:
            self._linked[id(leaf)] = _Linked(path, links, path.rpartition(b"/")[2])
        return leaf

    def _content(self, size: int, payload: bytes, content: bytes, digest: bytes) -> Content:
        if payload != _ABSENT:
            if content != _ABSENT:
                raise FormatError("a file with both a payload and content")
            if digest == _ABSENT:
                raise FormatError("a file with a payload and no digest", hint="nothing would verify its content")
            verity = VerityDigest.parse(digest.decode("latin-1"))
            if verity.algorithm != self._algorithm:
                raise FormatError(f"a {verity.algorithm} digest, where {self._algorithm} was asked for")
            if payload != verity.path.encode():
                raise FormatError(f"the payload {_show(payload)} is not the object {verity.path}")
            return External(verity, size)
        if digest != _ABSENT:
            raise FormatError("a file with a digest and no payload")
        if content == _ABSENT:
            return Sparse(size) if size else b""
        inline = _unescape(content)
        if len(inline) != size:
            raise FormatError(f"{len(inline)} bytes of content, where the size is {size}")
        return inline

    def _parse_xattrs(self, text: bytes) -> dict[bytes, bytes]:
        known = self._xattrs.get(text)
        if known is not None:
            return known
        xattrs: dict[bytes, bytes] = {}
        for word in text.split(b" "):
            key, equals, value = word.partition(b"=")
            name = _unescape(key)
            if not equals or not name or b"\0" in name:
                raise FormatError(f"not an xattr: {_show(word)}")
            if name in xattrs:
                raise FormatError(f"the xattr {_show(name)} is there twice")
            xattrs[name] = _unescape(value)
        self._xattrs[text] = xattrs
        return xattrs


def _show(text: bytes) -> str:
    return repr(text[:300])[1:]


def _unescape(text: bytes) -> bytes:
    if b"\\" not in text:
        return text
    return _ESCAPE.sub(_unescape_one, text)


def _unescape_one(match: re.Match[bytes]) -> bytes:
    hex_digits, short = match.groups()
    if hex_digits is not None:
        return bytes((int(hex_digits, 16),))
    if short is None:
        raise FormatError(f"an escape that is not known: {_show(match.string[match.start() : match.start() + 4])}")
    return _SHORT[short]


def _number(text: bytes, limit: int) -> int:
    digits = text.removeprefix(b"+")
    # More digits than 2^64 has would make int() slow, and at 4300 fail.
    if not digits.isdigit() or len(digits) > 20 or (value := int(digits)) > limit:
        raise FormatError(f"not a number from 0 to {limit}: {_show(text)}")
    return value


def _seconds(text: bytes) -> int:
    """Read signed seconds; C mkcomposefs and composefs-rs also take a negative number as its two's complement."""
    if text.startswith(b"-"):
        return -_number(text[1:], 1 << 63)
    value = _number(text, _U64)
    return value - (1 << 64) if value >> 63 else value


def _mode(text: bytes) -> int:
    if not re.fullmatch(rb"[0-7]{1,11}", text):
        raise FormatError(f"not an octal mode: {_show(text)}")
    return int(text, 8) & 0xFFFF


def _no_device(rdev: int) -> None:
    if rdev:
        raise FormatError(f"a device number, {rdev}, on what is no device")


_SPECIAL: Final = re.compile(rb"[^!-~]|\\")
_SPECIAL_XATTR: Final = re.compile(rb"[^!-~]|[\\=]")
_ESCAPES: Final = {bytes((byte,)): b"\\x%02x" % byte for byte in range(256)} | {
    value: b"\\" + letter for letter, value in _SHORT.items()
}


def _escape(text: bytes, special: re.Pattern[bytes] = _SPECIAL) -> bytes:
    return special.sub(lambda match: _ESCAPES[match[0]], text) if special.search(text) else text


def _field(text: bytes) -> bytes:
    return b"\\x2d" if text == _ABSENT else _escape(text) or _ABSENT


def write_dumpfile(tree: Directory) -> Iterator[bytes]:
    """Yield the lines, each with its newline, as composefs-rs 0.9 writes them."""
    names: dict[int, int] = {}
    for _, inode in walk(tree):
        names[id(inode)] = names.get(id(inode), 0) + 1
    written: dict[int, bytes] = {}
    for path, inode in walk(tree):
        if isinstance(inode, Directory):
            nlink = 2 + sum(isinstance(child, Directory) for child in inode.entries.values())
        else:
            nlink = names[id(inode)]
            first = written.setdefault(id(inode), path) if nlink > 1 else path
            if first is not path:
                yield b"%b 0 @120000 - - - - 0.0 %b - -\n" % (_field(path), _field(first))
                continue
        yield _line(path, inode, nlink)


def _line(path: bytes, inode: Inode, nlink: int) -> bytes:
    size, rdev = 0, 0
    payload = content = digest = b""
    match inode:
        case File():
            size = inode.size
            if isinstance(inode.content, bytes):
                content = inode.content
            elif isinstance(inode.content, External):
                payload, digest = inode.content.digest.path.encode(), inode.content.digest.hex.encode()
        case Symlink():
            size, payload = len(inode.target), inode.target
        case Device():
            rdev = inode.rdev
    meta = inode.meta
    xattrs = b"".join(
        [
            b" %b=%b" % (_escape(name, _SPECIAL_XATTR), _escape(value, _SPECIAL_XATTR))
            for name, value in sorted(meta.xattrs.items())
        ]
    )
    return b"%b %d %o %d %d %d %d %d.%d %b %b %b%b\n" % (
        _field(path), size, file_type(inode) | meta.mode, nlink, meta.uid, meta.gid, rdev, meta.mtime, meta.mtime_nsec,
        _field(payload), _field(content), digest or _ABSENT, xattrs,
    )  # fmt: skip
