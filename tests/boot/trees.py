"""A directory of the host as a tree whose contents stay on disk."""

import hashlib
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from oci2boot.digest import External, VerityDigest
from oci2boot.tree.files import Read
from oci2boot.tree.model import Directory, File, Inode, Metadata, Symlink


def scan(root: Path) -> tuple[Directory, Read]:
    """Return the directories, files and symlinks beneath `root`, and what reads the files."""
    paths: dict[bytes, str] = {}

    def look(path: str) -> Inode | None:
        status = os.lstat(path)
        meta = Metadata(mode=stat.S_IMODE(status.st_mode))
        if stat.S_ISDIR(status.st_mode):
            found = {os.fsencode(entry.name): look(entry.path) for entry in os.scandir(path)}
            return Directory(meta, {name: inode for name, inode in found.items() if inode})
        if stat.S_ISLNK(status.st_mode):
            return Symlink(meta, os.fsencode(Path(path).readlink()))
        if not stat.S_ISREG(status.st_mode):
            return None
        if status.st_size <= 64:
            return File(meta, Path(path).read_bytes())
        name = hashlib.sha256(path.encode(errors="surrogateescape")).digest()
        paths[name] = path
        return File(meta, External(VerityDigest("sha256", name), status.st_size))

    def read(file: File) -> bytes:
        if isinstance(file.content, bytes):
            return file.content
        assert isinstance(file.content, External)
        return Path(paths[file.content.digest.raw]).read_bytes()

    tree = look(str(root))
    assert isinstance(tree, Directory)
    return tree, read


def tree_of(files: Mapping[str, bytes | Path]) -> Directory:
    """Return a tree with these files; a `Path` is the target of a symlink."""
    entries: dict[bytes, Inode] = {}
    below: dict[str, dict[str, bytes | Path]] = {}
    for path, content in files.items():
        first, slash, rest = path.partition("/")
        if slash:
            below.setdefault(first, {})[rest] = content
        elif isinstance(content, Path):
            entries[first.encode()] = Symlink(Metadata(mode=0o777), bytes(content))
        else:
            entries[first.encode()] = File(Metadata(mode=0o644), content)
    entries |= {name.encode(): tree_of(inside) for name, inside in below.items()}
    return Directory(Metadata(mode=0o755), entries)


def read_inline(file: File) -> bytes:
    assert isinstance(file.content, bytes)
    return file.content


def joined(first: Directory, second: Directory) -> Directory:
    """Return both trees as one; where both have a file, the second's."""
    entries = dict(first.entries)
    for name, inode in second.entries.items():
        other = entries.get(name)
        both = isinstance(inode, Directory) and isinstance(other, Directory)
        entries[name] = joined(other, inode) if both else inode  # type: ignore[arg-type]
    return Directory(first.meta, entries)
