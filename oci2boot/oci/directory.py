"""A directory of files as a tree: what `dir:ROOTFS` names, without any registry or layer in between."""

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from oci2boot.digest import External, VerityDigest
from oci2boot.errors import LimitError, SourceError
from oci2boot.tree.model import INLINE_MAX, NO_XATTRS, Device, Directory, File, Inode, Leaf, Metadata, Special, Symlink

MAX_DEPTH: Final = 2047
MAX_FILES: Final = 5_000_000
MAX_FILE_SIZE: Final = 1 << 43
_PIECE: Final = 1 << 20
_NO_FOLLOW: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_NO_XATTRS_HERE: Final = (errno.ENOTSUP, errno.ENODATA)

Keep = Callable[[Iterator[bytes]], VerityDigest]
"""Takes the content of a regular file of more than 64 bytes, in pieces of a multiple of 4096 bytes, except the last."""


@dataclass(slots=True)
class _Open:
    """A directory that is being read."""

    fd: int
    path: bytes
    meta: Metadata
    entries: dict[bytes, Inode] = field(default_factory=dict)
    left: list[bytes] = field(default_factory=list)
    """Names of the directories in it that are not read yet, the last one first."""


def scan(root: Path, keep: Keep, max_files: int = MAX_FILES) -> Directory:
    """Return the tree beneath `root`, all of its extended attributes and nanoseconds included.

    Files with the same device and inode number are one inode. Symbolic links are taken, never followed; mount
    points are entered. `SourceError` says which file cannot be read, or changes meanwhile.
    """
    scanner = _Scanner(keep, max_files)
    try:
        return scanner.scan(os.fsencode(root))
    finally:
        scanner.close()


class _Scanner:
    def __init__(self, keep: Keep, max_files: int) -> None:
        self._keep = keep
        self._max_files = max_files
        self._leaves: dict[tuple[int, int], Leaf] = {}
        self._stack: list[_Open] = []
        self._count = 0

    def scan(self, root: bytes) -> Directory:
        with _explained(root):
            # The root may be named by a symbolic link.
            self._enter(os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), root.rstrip(b"/"))
        while True:
            here = self._stack[-1]
            if here.left:
                name = here.left.pop()
                path = here.path + b"/" + name
                with _explained(path):
                    self._enter(os.open(name, _NO_FOLLOW | os.O_DIRECTORY, dir_fd=here.fd), path)
                continue
            os.close(here.fd)
            self._stack.pop()
            directory = Directory(here.meta, here.entries)
            if not self._stack:
                return directory
            self._stack[-1].entries[here.path.rpartition(b"/")[2]] = directory

    def close(self) -> None:
        while self._stack:
            os.close(self._stack.pop().fd)

    def _enter(self, fd: int, path: bytes) -> None:
        """Take over an open directory: its own metadata, and all in it but the directories."""
        if len(self._stack) > MAX_DEPTH:
            os.close(fd)
            raise LimitError(f"{_shown(path)} is more than {MAX_DEPTH} directories deep")
        here = _Open(fd, path, Metadata(mode=0))
        self._stack.append(here)
        here.meta = _metadata(os.fstat(fd), fd)
        with os.scandir(fd) as entries:
            items = sorted(entries, key=lambda item: os.fsencode(item.name), reverse=True)
        self._count += len(items)
        if self._count > self._max_files:
            raise LimitError(f"more than {self._max_files} files")
        for item in items:
            name = os.fsencode(item.name)
            if item.is_dir(follow_symlinks=False):
                here.left.append(name)
            else:
                with _explained(path + b"/" + name):
                    here.entries[name] = self._leaf(here, name, item.stat(follow_symlinks=False))

    def _leaf(self, here: _Open, name: bytes, status: os.stat_result) -> Leaf:
        # st_nlink is not asked: fuse-overlayfs reports it wrongly (containers/fuse-overlayfs#435).
        key = (status.st_dev, status.st_ino)
        known = self._leaves.get(key)
        if known is None:
            known = self._leaves[key] = self._new_leaf(here, name, status)
        return known

    def _new_leaf(self, here: _Open, name: bytes, status: os.stat_result) -> Leaf:
        kind = stat.S_IFMT(status.st_mode)
        # There is no system call for the attributes of a name beneath a descriptor (before Linux 6.13).
        meta = _metadata(status, b"/proc/self/fd/%d/%b" % (here.fd, name))
        match kind:
            case stat.S_IFREG:
                return File(meta, self._content(here, name, status))
            case stat.S_IFLNK:
                return Symlink(meta, os.readlink(name, dir_fd=here.fd))
            case stat.S_IFCHR | stat.S_IFBLK:
                return Device(meta, kind, _encode_device(status.st_rdev))
            case _:
                return Special(meta, kind)

    def _content(self, here: _Open, name: bytes, status: os.stat_result) -> bytes | External:
        size = status.st_size
        if size == 0:
            return b""
        if size > MAX_FILE_SIZE:
            raise LimitError(f"{_shown(here.path + b'/' + name)} has {size} bytes, {MAX_FILE_SIZE} are allowed")
        fd = os.open(name, _NO_FOLLOW, dir_fd=here.fd)
        try:
            pieces = _pieces(fd, status, here.path + b"/" + name)
            if size <= INLINE_MAX:
                return b"".join(pieces)
            digest = self._keep(pieces)
            for _ in pieces:  # not left off before the check at the end
                pass
            return External(digest, size)
        finally:
            os.close(fd)


def _pieces(fd: int, expected: os.stat_result, path: bytes) -> Iterator[bytes]:
    """Yield a file's content; it must be the inode, and have the size, that `expected` tells, until its end."""
    left = expected.st_size
    while data := os.read(fd, _PIECE if left >= _PIECE else left + 1):
        left -= len(data)
        if left < 0:
            break
        yield data
    found = os.fstat(fd)
    before = (expected.st_dev, expected.st_ino, expected.st_mtime_ns)
    if left or (found.st_dev, found.st_ino, found.st_mtime_ns) != before:
        raise SourceError(f"{_shown(path)} changed while it was read", hint="stop what writes there, and try again")


def _metadata(status: os.stat_result, place: int | bytes) -> Metadata:
    seconds, nanoseconds = divmod(status.st_mtime_ns, 1_000_000_000)
    return Metadata(
        mode=status.st_mode & 0o7777,
        uid=status.st_uid,
        gid=status.st_gid,
        mtime=seconds,
        mtime_nsec=nanoseconds,
        xattrs=_xattrs(place) or NO_XATTRS,
    )


def _xattrs(place: int | bytes) -> dict[bytes, bytes]:
    follow = isinstance(place, int)
    xattrs = {}
    try:
        for name in os.listxattr(place, follow_symlinks=follow):
            xattrs[os.fsencode(name)] = os.getxattr(place, name, follow_symlinks=follow)
    except OSError as error:
        if error.errno not in _NO_XATTRS_HERE:
            raise
    return xattrs


def _encode_device(number: int) -> int:
    """Return the kernel's new_encode_dev() of a device number of glibc's."""
    major, minor = os.major(number), os.minor(number)
    return (minor & 0xFF) | major << 8 | (minor & ~0xFF) << 12


def _shown(path: bytes) -> str:
    return path.decode(errors="backslashreplace")


@contextmanager
def _explained(path: bytes) -> Iterator[None]:
    """Say which file an `OSError` within is about, and what to do."""
    try:
        yield
    except OSError as error:
        hint = None
        if error.errno in (errno.EACCES, errno.EPERM):
            hint = "run it as root, or in `unshare --map-auto --map-root-user` where the files' owners are mapped"
        elif error.errno == errno.ENOENT and path:
            hint = "is the name right? or it vanished meanwhile"
        raise SourceError(f"{_shown(path)} cannot be read: {error.strerror}", hint=hint) from error
