"""Looking into a tree as the booted system would, symlinks followed."""

from collections.abc import Callable
from typing import Final

from oci2boot.errors import LimitError
from oci2boot.tree.model import Directory, File, Inode, Symlink

MAX_SYMLINKS: Final = 40
"""Followed in resolving one path; the kernel's limit."""

Read = Callable[[File], bytes]
"""Gives a file's content, inline or from the store."""


def resolve(root: Directory, path: bytes) -> tuple[bytes, Inode] | None:
    """Return the path without symlinks (and without leading `/`) and the inode; None where nothing is or links loop."""
    names = path.split(b"/")[::-1]
    parents: list[tuple[bytes, Directory]] = []
    inode: Inode = root
    here: Directory = root
    followed = 0
    while names:
        name = names.pop()
        if name in (b"", b"."):
            continue
        if not isinstance(inode, Directory):
            return None
        if name == b"..":
            here = parents.pop()[1] if parents else root
            inode = here
            continue
        found = here.entries.get(name)
        if found is None:
            return None
        if isinstance(found, Symlink):
            followed += 1
            if followed > MAX_SYMLINKS:
                return None
            if found.target.startswith(b"/"):
                parents, here, inode = [], root, root
            names += found.target.split(b"/")[::-1]
            continue
        inode = found
        parents.append((name, here))
        if isinstance(found, Directory):
            here = found
    return b"/".join(name for name, _ in parents), inode


def find_file(root: Directory, path: bytes) -> File | None:
    found = resolve(root, path)
    return found[1] if found and isinstance(found[1], File) else None


def read_file(root: Directory, read: Read, path: bytes, limit: int) -> bytes | None:
    """Return the content of the file at `path`, of at most `limit` bytes; None where no file is."""
    file = find_file(root, path)
    return None if file is None else read_limited(file, read, path, limit)


def read_limited(file: File, read: Read, path: bytes, limit: int) -> bytes:
    if file.size > limit:
        raise LimitError(f"/{show(path)} has {file.size} bytes, at most {limit} are read")
    return read(file)


def list_directory(root: Directory, path: bytes) -> list[tuple[bytes, Inode]]:
    """Return (name, inode) in order of name; nothing where no directory is."""
    found = resolve(root, path)
    return sorted(found[1].entries.items()) if found and isinstance(found[1], Directory) else []


def show(path: bytes) -> str:
    return path.decode(errors="backslashreplace").lstrip("/")
