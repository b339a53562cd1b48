"""Modification times as older writers kept them: in whole seconds."""

from dataclasses import replace

from oci2boot.tree.model import Directory, Inode, rewrite, walk


def has_nanoseconds(root: Directory) -> bool:
    return any(inode.meta.mtime_nsec for _, inode in walk(root))


def whole_seconds(root: Directory) -> Directory:
    """Return the tree with every time cut to its second."""

    def change(inode: Inode) -> Inode:
        return replace(inode, meta=replace(inode.meta, mtime_nsec=0)) if inode.meta.mtime_nsec else inode

    return rewrite(root, change)
