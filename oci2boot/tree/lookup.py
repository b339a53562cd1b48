"""Looking into a tree as the booted system would, symlinks followed. path_resolution(7), chroot(2)."""

from typing import Final

from oci2boot.errors import FormatError
from oci2boot.tree.model import Directory, Inode, Symlink

MAX_SYMLINKS: Final = 40
"""Followed in resolving one path; the kernel's limit."""


class LinkLoopError(FormatError):
    """Symbolic links lead nowhere."""


def look_up(root: Directory, path: bytes) -> tuple[bytes, Inode] | None:
    """As `resolve`, but where links lead in a circle, nothing is."""
    try:
        return resolve(root, path)
    except LinkLoopError:
        return None


def resolve(root: Directory, path: bytes) -> tuple[bytes, Inode] | None:
    """Return the path without symlinks (and without leading `/`) and the inode; None where nothing is.

    Raises `LinkLoopError` for links that lead in a circle, which the kernel refuses too (ELOOP).
    """
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
            if parents:
                parents.pop()
            inode = here = parents[-1][1] if parents else root
            continue
        inner = here.entries.get(name)
        if inner is None:
            return None
        if isinstance(inner, Symlink):
            followed += 1
            if followed > MAX_SYMLINKS:
                shown = path.decode(errors="backslashreplace").lstrip("/")
                raise LinkLoopError(f"/{shown} leads through more than {MAX_SYMLINKS} symbolic links")
            if inner.target.startswith(b"/"):
                parents, here, inode = [], root, root
            names += inner.target.split(b"/")[::-1]
            continue
        inode = inner
        if isinstance(inner, Directory):
            here = inner
            parents.append((name, inner))
        elif any(names):
            return None
        else:
            return b"/".join([*(name for name, _ in parents), name]), inner
    return b"/".join(name for name, _ in parents), inode
