"""Reading files out of a tree, symlinks followed as the booted system would."""

from collections.abc import Callable

from oci2boot.errors import LimitError
from oci2boot.tree.lookup import look_up
from oci2boot.tree.model import Directory, File, Inode

Read = Callable[[File], bytes]
"""Gives a file's content, inline or from the store."""


def find_file(root: Directory, path: bytes) -> File | None:
    found = look_up(root, path)
    return found[1] if found and isinstance(found[1], File) else None


def read_file(root: Directory, read: Read, path: bytes, limit: int) -> bytes | None:
    """Return the content of the file at `path`, of at most `limit` bytes; None where no file is."""
    file = find_file(root, path)
    return None if file is None else read_content(file, read, path, limit)


def read_content(file: File, read: Read, path: bytes, limit: int) -> bytes:
    if file.size > limit:
        raise LimitError(f"/{show(path)} has {file.size} bytes, at most {limit} are read")
    return read(file)


def list_directory(root: Directory, path: bytes) -> list[tuple[bytes, Inode]]:
    """Return (name, inode) in order of name; nothing where no directory is."""
    found = look_up(root, path)
    return sorted(found[1].entries.items()) if found and isinstance(found[1], Directory) else []


def show(path: bytes) -> str:
    return path.decode(errors="backslashreplace").lstrip("/")
