"""/etc as an overlay: what a machine sees of the image's directory and its own upper one; the upper to show a tree.

Linux, Documentation/filesystems/overlayfs.rst: "Whiteouts and opaque directories", "renaming directories", "Metadata
only copy up". The mounts are made without `userxattr`, so `user.overlay.*` means nothing here.
"""

import stat
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from oci2boot.digest import External
from oci2boot.errors import TargetError
from oci2boot.rootfs.overlay import ESCAPED, METACOPY, OPAQUE, PREFIX, REDIRECT
from oci2boot.tree.model import SELINUX_XATTR, Device, Directory, File, Inode, Leaf, Metadata, Symlink, file_type, find

WHITEOUT_XATTR: Final = b"trusted.overlay.whiteout"
_PROTECTED: Final = b"trusted.overlay.protattr"
"""`chattr +i` and `+a` of a file in the overlay: what the user said, not how overlayfs keeps books."""


def view(base: Directory, upper: Directory) -> Directory:
    """Return what the overlay of `upper` on `base` shows; what only `base` has is the same object."""
    return _merged(base, base, upper, {})


def is_whiteout(inode: Inode) -> bool:
    match inode:
        case Device(kind=stat.S_IFCHR, rdev=0):
            return True
        case File(content=b""):
            return WHITEOUT_XATTR in inode.meta.xattrs
    return False


def _merged(root: Directory, lower: Directory | None, upper: Directory, links: dict[int, Leaf]) -> Directory:
    entries: dict[bytes, Inode] = {}
    below: Mapping[bytes, Inode] = lower.entries if lower else {}
    for name, inode in upper.entries.items():
        if is_whiteout(inode):
            continue
        beneath = _beneath(root, below, name, inode)
        if isinstance(inode, Directory):
            opaque = inode.meta.xattrs.get(OPAQUE) == b"y"
            entries[name] = _merged(
                root, beneath if isinstance(beneath, Directory) and not opaque else None, inode, links
            )
        elif METACOPY in inode.meta.xattrs:
            if not isinstance(inode, File) or not isinstance(beneath, File):
                raise TargetError(f"the state of /etc is damaged: {name!r} has the content of a file that is not there")
            entries[name] = File(_native(inode.meta), beneath.content)
        else:
            entries[name] = links.setdefault(id(inode), replace(inode, meta=_native(inode.meta)))
    return Directory(_native(upper.meta), {name: below[name] for name in below if name not in upper.entries} | entries)


def _beneath(root: Directory, below: Mapping[bytes, Inode], name: bytes, inode: Inode) -> Inode | None:
    redirect = inode.meta.xattrs.get(REDIRECT)
    if redirect is None:
        return below.get(name)
    return find(root, redirect) if redirect.startswith(b"/") else below.get(redirect)


def _native(meta: Metadata) -> Metadata:
    if not any(name.startswith(PREFIX) for name in meta.xattrs):
        return meta
    kept = {
        name: value
        for name, value in meta.xattrs.items()
        if not name.startswith(PREFIX) or name.startswith(ESCAPED) or name == _PROTECTED
    }
    return replace(meta, xattrs=kept)


def upper_of(base: Directory, shown: Directory) -> Directory:
    """Return the smallest upper directory whose overlay on `base` shows `shown`; times alone are no difference."""
    entries: dict[bytes, Inode] = {}
    for name in base.entries.keys() | shown.entries.keys():
        lower, wanted = base.entries.get(name), shown.entries.get(name)
        if wanted is None:
            entries[name] = Device(Metadata(mode=0), stat.S_IFCHR, 0)
        elif isinstance(lower, Directory) and isinstance(wanted, Directory):
            upper = upper_of(lower, wanted)
            if upper.entries or not same_metadata(lower.meta, wanted.meta) or label(lower) != label(wanted):
                entries[name] = upper
        elif lower is None or not same(lower, wanted) or label(lower) != label(wanted):
            if isinstance(wanted, Directory) and lower is not None:
                wanted = replace(wanted, meta=replace(wanted.meta, xattrs={**wanted.meta.xattrs, OPAQUE: b"y"}))
            entries[name] = wanted
    return Directory(shown.meta, entries)


def label(inode: Inode) -> bytes | None:
    """Return the SELinux context; the kernel ends it with a NUL, images do not."""
    context = inode.meta.xattrs.get(SELINUX_XATTR)
    return None if context is None else context.removesuffix(b"\0")


def same_metadata(a: Metadata, b: Metadata) -> bool:
    """Compare all but time and label."""
    return (a.mode, a.uid, a.gid) == (b.mode, b.uid, b.gid) and _xattrs(a) == _xattrs(b)


def _xattrs(meta: Metadata) -> dict[bytes, bytes]:
    return {name: value for name, value in meta.xattrs.items() if name != SELINUX_XATTR}


def same_content(a: Inode | None, b: Inode | None) -> bool:
    """Compare type and content of two inodes, of directories not what is in them; nothing is only like nothing."""
    if a is None or b is None:
        return a is b
    if file_type(a) != file_type(b):
        return False
    match a, b:
        case File(content=External(digest=one)), File(content=External(digest=other)):
            if one.algorithm != other.algorithm:
                raise TargetError("contents measured by sha256 and by sha512 cannot be compared")
            return one == other
        case File(), File():
            return a.content == b.content
        case Symlink(), Symlink():
            return a.target == b.target
        case Device(), Device():
            return a.rdev == b.rdev
    return True


def same(a: Inode | None, b: Inode | None) -> bool:
    """Compare two inodes and all beneath them, except times and labels."""
    if a is b:
        return True
    if a is None or b is None or not same_content(a, b) or not same_metadata(a.meta, b.meta):
        return False
    if not isinstance(a, Directory) or not isinstance(b, Directory):
        return True
    return a.entries.keys() == b.entries.keys() and all(
        same(child, b.entries[name]) for name, child in a.entries.items()
    )
