"""An upper directory of /etc on disk: there whole, under its name, or not at all."""

import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final

from oci2boot.digest import External
from oci2boot.errors import DigestError, TargetError
from oci2boot.formats.fsverity import Hasher
from oci2boot.system.files import exchange, plain_errors, sync_directory, syncfs
from oci2boot.tree.model import Device, Directory, File, Leaf, Metadata, Special, Symlink

Source = Callable[[External], Path]
"""Says where a content lies: in the upper directory that was read, or in the store."""

_PIECE: Final = 1 << 20


def write_upper(tree: Directory, destination: Path, source: Source) -> None:
    """Make `destination` hold `tree`, with owners, modes, times and attributes; what was there before is removed.

    Nothing may have it mounted. It is written beside, under a fixed name, synced, and takes its place at once: a run
    that was cut short leaves the old one, and the next run removes what it left. Needs root.
    """
    beside = destination.with_name(f".{destination.name}.new")
    with plain_errors(TargetError, f"write {destination}"):
        _remove(beside)
        beside.mkdir(mode=0o700)
        _Writer(source).fill(tree, beside)
        _finish(tree.meta, beside)
        syncfs(beside)
        if destination.exists():
            exchange(beside, destination)
        else:
            beside.rename(destination)
        sync_directory(destination.parent)
        _remove(beside)


def _remove(path: Path) -> None:
    if path.exists():
        shutil.rmtree(path)


class _Writer:
    def __init__(self, source: Source) -> None:
        self._source = source
        self._written: dict[int, Path] = {}

    def fill(self, tree: Directory, folder: Path) -> None:
        for name, inode in sorted(tree.entries.items()):
            path = folder / os.fsdecode(name)
            if isinstance(inode, Directory):
                path.mkdir(mode=0o700)
                self.fill(inode, path)
                _finish(inode.meta, path)
            elif first := self._written.get(id(inode)):
                path.hardlink_to(first)
            else:
                self._make(inode, path)
                _finish(inode.meta, path, symlink=isinstance(inode, Symlink))
                self._written[id(inode)] = path

    def _make(self, inode: Leaf, path: Path) -> None:
        match inode:
            case File(content=External() as content):
                self._copy(content, path)
            case File(content=bytes() as data):
                path.write_bytes(data)
            case Symlink():
                path.symlink_to(os.fsdecode(inode.target))
            case Device(kind=kind, rdev=rdev):
                # the kernel's new_decode_dev()
                os.mknod(path, kind | 0o600, os.makedev(rdev >> 8 & 0xFFF, rdev & 0xFF | rdev >> 12 & 0xFFF00))
            case Special(kind=stat.S_IFIFO):
                os.mkfifo(path, 0o600)
            case _:
                raise TargetError(f"{path} cannot be written: its content is missing")

    def _copy(self, content: External, path: Path) -> None:
        origin = self._source(content)
        hasher = Hasher(content.digest.algorithm)
        with origin.open("rb") as reader, path.open("xb") as writer:
            while piece := reader.read(_PIECE):
                hasher.update(piece)
                writer.write(piece)
        if hasher.digest() != content.digest:
            raise DigestError(f"{origin} changed while /etc was merged", hint="run the command again")


def _finish(meta: Metadata, path: Path, *, symlink: bool = False) -> None:
    # In this order: a new owner takes set-id bits and capabilities away.
    os.chown(path, meta.uid, meta.gid, follow_symlinks=False)
    if not symlink:
        path.chmod(meta.mode)
    for name, value in meta.xattrs.items():
        os.setxattr(path, name, value, follow_symlinks=False)
    mtime = meta.mtime * 10**9 + meta.mtime_nsec
    os.utime(path, ns=(mtime, mtime), follow_symlinks=False)
