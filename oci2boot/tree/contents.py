"""A tree with its files' contents under other names: for another hash than the store's."""

from collections.abc import Callable

from oci2boot.digest import External
from oci2boot.tree.model import Directory, File, Inode, rewrite


def renamed(root: Directory, rename: Callable[[File], External]) -> Directory:
    """Return the tree with what `rename` says for every file that is an object."""

    def change(inode: Inode) -> Inode:
        if isinstance(inode, File) and isinstance(inode.content, External):
            return File(inode.meta, rename(inode))
        return inode

    return rewrite(root, change)
