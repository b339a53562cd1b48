"""What makes the digest of a tree the same however the tree was had: the canonical rules of composefs-rs 0.9.

composefs-rs, doc/oci.md: container tools disagree about the metadata of the root, leave mount points in /run and let
attributes of the build host through, so none of these may count.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Final, Literal

from oci2boot.errors import ImageError
from oci2boot.formats.tar import printable
from oci2boot.tree.merge import OVERLAY_XATTRS
from oci2boot.tree.model import NO_XATTRS, Directory, Inode, Metadata, Symlink, rewrite

Xattrs = Literal["allowlist-only", "keep-user", "keep-all"]
"""`keep-user` lets `user.*` through besides the allowlist, composefs-rs calls it keep-user-xattrs; `keep-all` is what
composefs-rs did with images before 0.9."""

ALLOWED_XATTRS: Final = frozenset({b"security.capability"})
BOOT_DIRECTORIES: Final = (b"boot", b"sysroot")
"""The UKI that carries the digest lies in /boot, the store is mounted at /sysroot: the digest must not cover them."""
API_MOUNT_POINTS: Final[Mapping[bytes, int]] = MappingProxyType(
    {b"dev": 0o755, b"efi": 0o755, b"proc": 0o555, b"run": 0o755, b"sys": 0o555, b"tmp": 0o1777, b"var": 0o755}
)
"""Name → mode. file-hierarchy(7); on /efi systemd mounts the EFI system partition by itself."""


def prepare(tree: Directory, xattrs: Xattrs = "allowlist-only") -> Directory:
    """Return the tree in plain form: attributes filtered, the root as /usr is, /run empty."""
    filtered = _filter_xattrs(tree, xattrs)
    usr = _usr(filtered)
    entries = dict(filtered.entries)
    if b"run" in entries:
        entries[b"run"] = _emptied(entries[b"run"], b"run", usr)
    return Directory(usr, entries)


def prepare_for_boot(tree: Directory, warn: Callable[[str], None], xattrs: Xattrs = "allowlist-only") -> Directory:
    """Return the tree in bootable form: as `prepare` does, and /boot and /sysroot are there and empty.

    SELinux labels come after it.
    """
    plain = prepare(tree, xattrs)
    usr = _usr(plain)
    missing = {name: Directory(_mount_point(usr), {}) for name in BOOT_DIRECTORIES if name not in plain.entries}
    if missing:
        names = " and ".join(f"/{name.decode()}" for name in missing)
        warn(f"the image has no {names}: made 0755 root:root, mtime that of /usr (composefs-rs refuses such an image)")
    present = {name: _emptied(plain.entries[name], name, usr) for name in BOOT_DIRECTORIES if name not in missing}
    return Directory(plain.meta, {**plain.entries, **present, **missing})


def with_mount_points(tree: Directory, places: Iterable[bytes], warn: Callable[[str], None]) -> Directory:
    """Return the tree with the directories of `API_MOUNT_POINTS` and `places`; those that it lacks are empty.

    On a root file system that cannot be written nobody else could make them. A place of `places` that a symlink leads
    to elsewhere is an `ImageError`.
    """
    added: list[str] = []
    for place in places:
        tree = _with_directory(tree, place.strip(b"/").split(b"/"), b"", _mount_point(tree.meta), added)
    names = [name for name in API_MOUNT_POINTS if name not in tree.entries]
    added += [name.decode() for name in names]
    if added:
        shown = ", ".join(f"/{name}" for name in added)
        warn(f"the image has no {shown}: made empty, root:root, for what is mounted there")
    meta = _mount_point(tree.meta)
    made = {name: Directory(replace(meta, mode=API_MOUNT_POINTS[name]), {}) for name in names}
    return Directory(tree.meta, {**tree.entries, **made})


def _with_directory(at: Directory, names: Sequence[bytes], above: bytes, new: Metadata, added: list[str]) -> Directory:
    name, *below = names
    path = above + b"/" + name
    inode = at.entries.get(name)
    if inode is None:
        inode = Directory(new, {})
        added.append(path.lstrip(b"/").decode())
    elif not isinstance(inode, Directory):
        leads = f"a symlink to {printable(inode.target)}" if isinstance(inode, Symlink) else "no directory"
        raise ImageError(f"{printable(path)} of the image is {leads}: nothing can be mounted over it")
    if below:
        inode = _with_directory(inode, below, path, new, added)
    return Directory(at.meta, {**at.entries, name: inode})


def _usr(tree: Directory) -> Metadata:
    usr = tree.entries.get(b"usr")
    if not isinstance(usr, Directory):
        raise ImageError(
            "the image has no directory /usr, whose metadata the root takes",
            hint="is it the image of an operating system?",
        )
    return usr.meta


def _mount_point(usr: Metadata) -> Metadata:
    return Metadata(mode=0o755, mtime=usr.mtime, mtime_nsec=usr.mtime_nsec)


def _emptied(inode: Inode, name: bytes, usr: Metadata) -> Directory:
    if not isinstance(inode, Directory):
        raise ImageError(f"/{name.decode()} of the image is not a directory")
    return Directory(replace(inode.meta, mtime=usr.mtime, mtime_nsec=usr.mtime_nsec), {})


def _filter_xattrs(root: Directory, xattrs: Xattrs) -> Directory:
    """Return the tree without the attributes that may not count."""

    def allowed(name: bytes) -> bool:
        if xattrs == "keep-all":
            return True
        if xattrs == "keep-user" and name.startswith(b"user."):
            return not name.startswith(OVERLAY_XATTRS)
        return name in ALLOWED_XATTRS

    def change(inode: Inode) -> Inode:
        here = inode.meta.xattrs
        kept: Mapping[bytes, bytes] = {name: value for name, value in here.items() if allowed(name)}
        if len(kept) == len(here):
            return inode
        return replace(inode, meta=replace(inode.meta, xattrs=kept or NO_XATTRS))

    return rewrite(root, change)
