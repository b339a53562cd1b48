"""Modification times as older writers kept them: in whole seconds."""

from dataclasses import replace

from oci2boot.tree.model import Directory, Inode, walk


def has_nanoseconds(root: Directory) -> bool:
    return any(inode.meta.mtime_nsec for _, inode in walk(root))


def whole_seconds(root: Directory) -> Directory:
    """Return the tree with every time cut to its second; hard links stay hard links."""
    changed: dict[int, Inode] = {}  # by id() of the inode that is replaced
    directories = [root]
    for directory in directories:
        for inode in directory.entries.values():
            if isinstance(inode, Directory):
                directories.append(inode)
            elif id(inode) not in changed:
                changed[id(inode)] = replace(inode, meta=replace(inode.meta, mtime_nsec=0))
    for directory in reversed(directories):
        entries = {name: changed[id(inode)] for name, inode in directory.entries.items()}
        changed[id(directory)] = Directory(replace(directory.meta, mtime_nsec=0), entries)
    result = changed[id(root)]
    assert isinstance(result, Directory)
    return result
