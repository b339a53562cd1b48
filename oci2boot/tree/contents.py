"""A tree with its files' contents under other names: for another hash than the store's."""

from collections.abc import Callable

from oci2boot.digest import External
from oci2boot.tree.model import Directory, File, Inode


def renamed(root: Directory, rename: Callable[[File], External]) -> Directory:
    """Return the tree with what `rename` says for every file that is an object; hard links stay hard links."""
    changed: dict[int, Inode] = {}
    directories = [root]
    for directory in directories:
        for inode in directory.entries.values():
            if isinstance(inode, Directory):
                directories.append(inode)
            elif isinstance(inode, File) and isinstance(inode.content, External) and id(inode) not in changed:
                changed[id(inode)] = File(inode.meta, rename(inode))
    for directory in reversed(directories):
        entries = {name: changed.get(id(inode), inode) for name, inode in directory.entries.items()}
        changed[id(directory)] = Directory(directory.meta, entries)
    result = changed[id(root)]
    assert isinstance(result, Directory)
    return result
