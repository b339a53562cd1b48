"""Layers on a file system, one over the other, as container tools unpack them; a second opinion on merged layers.

The archives are read by Python's tarfile, whiteouts and hard links are the kernel's unlink() and link(), and the result
is read back from the disk. An ordinary user can neither give files away nor set every attribute: owner, mode, times and
attributes are kept in a table beside the files, as fakeroot does.
"""

import os
import stat
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from decimal import Decimal
from errno import ENOSPC
from pathlib import Path
from typing import Any, Final, Protocol

from oci2boot.errors import ImageError, LimitError
from oci2boot.oci.directory import Keep, scan
from oci2boot.tree.model import NO_XATTRS, Device, Directory, File, Inode, Leaf, Metadata, Special, Symlink

_WHITEOUT: Final = b".wh."
_OPAQUE: Final = b".wh..wh..opq"
_XATTR: Final = "SCHILY.xattr."
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PIECE: Final = 1 << 20


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class UnpackedView:
    """A directory that layers are unpacked into, and what could not be written into it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._metadata: dict[bytes, Metadata] = {}
        self._nodes: dict[bytes, Device | Special] = {}
        self._written: set[bytes] = set()

    def apply(self, layer: _Readable) -> None:
        """Unpack a layer's tar over what is there."""
        self._written = set()
        try:
            with tarfile.open(fileobj=layer, mode="r|", errors="surrogateescape") as archive:  # type: ignore[call-overload]
                for member in archive:
                    self._unpack(archive, member)
        except OSError as error:
            hint = "it takes as much room as the image; TMPDIR names a place for it" if error.errno == ENOSPC else None
            raise ImageError(f"a layer cannot be unpacked as container tools do: {error}", hint=hint) from error
        except (tarfile.TarError, ValueError, ArithmeticError, LookupError, RecursionError) as error:
            raise ImageError(f"a layer cannot be unpacked as container tools do: {error}") from error

    def tree(self, keep: Keep) -> Directory:
        """Read back what lies there."""
        changed: dict[int, Inode] = {}
        try:
            result = self._with_metadata(scan(self._folder, keep), b"", changed)
        except RecursionError as error:
            raise LimitError("the image has directories too deep to be unpacked and read back") from error
        assert isinstance(result, Directory)
        return result

    def _with_metadata(self, inode: Inode, path: bytes, changed: dict[int, Inode]) -> Inode:
        meta = self._metadata.get(path, Metadata(mode=0o755))
        match inode:
            case Directory():
                prefix = path + b"/" if path else b""
                entries = {
                    name: self._with_metadata(child, prefix + name, changed) for name, child in inode.entries.items()
                }
                return Directory(meta, entries)
            case File() if path in self._nodes:
                made: Leaf = self._nodes[path]
            case File():
                made = File(meta, inode.content)
            case Symlink():
                made = Symlink(meta, inode.target)
            case _:
                raise ImageError(f"{path!r} changed while it was unpacked")
        # A hard link is one inode, met under each of its names.
        return changed.setdefault(id(inode), made)

    def _unpack(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        path = _path(member.name)
        parent, _, name = path.rpartition(b"/")
        meta = _metadata(member)
        if not path:
            self._metadata[b""] = meta
            return
        with self._folder_at(parent) as at:
            if name.startswith(_WHITEOUT):
                self._whiteout(at, parent, name)
                return
            self._make_room(at, path, name, keep_directory=member.isdir())
            self._written.add(path)
            if member.islnk():
                self._link(at, path, name, _path(member.linkname))
                return
            self._metadata[path] = meta
            match member:
                case _ if member.isdir():
                    with suppress(FileExistsError):
                        os.mkdir(name, 0o700, dir_fd=at)
                case _ if member.issym():
                    os.symlink(os.fsencode(member.linkname), name, dir_fd=at)
                case _ if member.isfile():
                    self._write(at, name, archive.extractfile(member))
                case _:
                    self._nodes[path] = _node(member, meta)
                    self._write(at, name, None)

    def _write(self, at: int, name: bytes, content: Any) -> None:
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=at)
        with os.fdopen(fd, "wb") as file:
            while content and (piece := content.read(_PIECE)):
                file.write(piece)

    def _link(self, at: int, path: bytes, name: bytes, target: bytes) -> None:
        parent, _, target_name = target.rpartition(b"/")
        with self._folder_at(parent) as there:
            os.link(target_name, name, src_dir_fd=there, dst_dir_fd=at, follow_symlinks=False)
        self._metadata[path] = self._metadata[target]
        if target in self._nodes:
            self._nodes[path] = self._nodes[target]

    @contextmanager
    def _folder_at(self, path: bytes) -> Iterator[int]:
        """Open a directory beneath the folder, through no symbolic link; what is missing is made."""
        fd = os.open(self._folder, _FOLDER)
        try:
            for name in path.split(b"/") if path else ():
                with suppress(FileExistsError):
                    os.mkdir(name, 0o700, dir_fd=fd)
                inner = os.open(name, _FOLDER, dir_fd=fd)
                os.close(fd)
                fd = inner
            yield fd
        finally:
            os.close(fd)

    def _make_room(self, at: int, path: bytes, name: bytes, *, keep_directory: bool) -> None:
        try:
            status = os.stat(name, dir_fd=at, follow_symlinks=False)
        except FileNotFoundError:
            return
        if not (keep_directory and stat.S_ISDIR(status.st_mode)):
            self._remove(at, path, name, set())

    def _whiteout(self, at: int, parent: bytes, name: bytes) -> None:
        """Hide what lower layers have; what this layer has put there stays. image-spec, layer.md, "Whiteouts"."""
        prefix = parent + b"/" if parent else b""
        if name == _OPAQUE:
            for inner in _names(at):
                self._remove(at, prefix + inner, inner, self._written)
        elif not name.startswith(_WHITEOUT * 2):
            hidden = name.removeprefix(_WHITEOUT)
            with suppress(FileNotFoundError):
                self._remove(at, prefix + hidden, hidden, self._written)

    def _remove(self, at: int, path: bytes, name: bytes, kept: set[bytes]) -> None:
        status = os.stat(name, dir_fd=at, follow_symlinks=False)
        if not stat.S_ISDIR(status.st_mode):
            if path not in kept:
                os.unlink(name, dir_fd=at)
                self._metadata.pop(path, None)
                self._nodes.pop(path, None)
            return
        inner = os.open(name, _FOLDER, dir_fd=at)
        try:
            for child in _names(inner):
                self._remove(inner, path + b"/" + child, child, kept)
            empty = not _names(inner)
        finally:
            os.close(inner)
        if empty and path not in kept:
            os.rmdir(name, dir_fd=at)
            self._metadata.pop(path, None)


def _names(fd: int) -> list[bytes]:
    with os.scandir(fd) as entries:
        return [os.fsencode(item.name) for item in entries]


def _path(name: str) -> bytes:
    parts = [part for part in os.fsencode(name).split(b"/") if part not in (b"", b".")]
    if b".." in parts:
        raise ValueError(f"the path {name!r} leads upwards")
    return b"/".join(parts)


def _metadata(member: tarfile.TarInfo) -> Metadata:
    seconds, nanoseconds = divmod(int(Decimal(member.pax_headers.get("mtime", str(member.mtime))).scaleb(9)), 10**9)
    xattrs = {
        name.removeprefix(_XATTR).encode("utf-8", "surrogateescape"): value.encode("utf-8", "surrogateescape")
        for name, value in member.pax_headers.items()
        if name.startswith(_XATTR)
    }
    return Metadata(
        mode=member.mode & 0o7777,
        uid=member.uid,
        gid=member.gid,
        mtime=seconds,
        mtime_nsec=nanoseconds,
        xattrs=xattrs or NO_XATTRS,
    )


def _node(member: tarfile.TarInfo, meta: Metadata) -> Device | Special:
    if member.isfifo():
        return Special(meta, stat.S_IFIFO)
    if member.ischr() or member.isblk():
        major, minor = member.devmajor, member.devminor
        kind = stat.S_IFCHR if member.ischr() else stat.S_IFBLK
        return Device(meta, kind, minor & 0xFF | major << 8 | (minor & ~0xFF) << 12)
    raise ValueError(f"{member.name!r} is of the unknown type {member.type!r}")
