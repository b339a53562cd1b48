"""Layers become one tree. OCI image-spec 1.1, layer.md, "Whiteouts"; where it leaves a choice, as composefs-rs 0.9.

One point departs from the text, since digests must agree: whiteouts act in the order of the archive, also on what their
own layer has put there before. A warning names what the text would have kept.
"""

import stat
from collections.abc import Callable, Iterable, Mapping
from typing import Final, cast

from oci2boot.errors import ImageError, LimitError
from oci2boot.formats.tar import HARD_LINK, Entry, printable
from oci2boot.tree.model import NO_XATTRS, Device, Directory, File, Inode, Leaf, Metadata, Special, Symlink

MAX_ENTRIES: Final = 5_000_000
"""Of all layers together, counting directories that no layer has an entry for."""
MAX_DEPTH: Final = 2047
MAX_XATTRS: Final = 128
MAX_XATTR_BYTES: Final = 32 << 10
"""Names and values of one inode."""
WARNED_PATHS: Final = 5
"""How many paths one warning names; it counts the others."""

OVERLAY_XATTRS: Final = (b"trusted.overlay.", b"user.overlay.")
"""What overlayfs obeys: a layer could redirect a directory with it, so it never gets into a tree."""

_WHITEOUT: Final = b".wh."
_OPAQUE: Final = b".wh..wh..opq"
_AUFS: Final = b".wh..wh."

_TWICE: Final = "more than once in the layer, the last one counts"
_IMPLIED: Final = "without an entry of its own, taken as a directory 0755 of root (composefs-rs refuses such an image)"
_REMOVED: Final = (
    "removed by a later whiteout of the same layer, as composefs-rs does; the image specification would keep it"
)
_NOT_THERE: Final = "a whiteout in a directory that is not there"
_HOUSEKEEPING: Final = "left out, being housekeeping of AUFS"
_OBEYED: Final = "stripped of extended attributes that overlayfs would obey"

_Entries = dict[bytes, Inode]


def merge(layers: Iterable[Iterable[Entry]], warn: Callable[[str], None]) -> Directory:
    """Apply the layers, lowest first; `warn` gets a sentence on each thing that other tools might take differently."""
    tree = _Tree()
    for number, layer in enumerate(layers, 1):
        tree.apply(layer)
        for notice, paths in tree.notices.items():
            named = ", ".join(printable(b"/" + path) for path in paths[:WARNED_PATHS])
            others = f" and {len(paths) - WARNED_PATHS} more" if len(paths) > WARNED_PATHS else ""
            warn(f"layer {number}: {named}{others}: {notice}")
    return Directory(tree.root, tree.entries)


def _children(directory: Directory) -> _Entries:
    """Return the entries of a directory for change: until `merge` returns nobody else holds it."""
    return cast("_Entries", directory.entries)


class _Tree:
    """A tree under construction, of frozen inodes: new metadata makes a new directory around the same entries."""

    def __init__(self) -> None:
        self.root = Metadata(mode=0o755)
        self.entries: _Entries = {}
        self.budget = MAX_ENTRIES
        self.start_layer()

    def start_layer(self) -> None:
        self.notices: dict[str, list[bytes]] = {}
        self.written: set[bytes] = set()
        """Paths that the layer has put there, or replaced."""
        self.implied: set[bytes] = set()
        """Directories that the layer takes for granted."""

    def apply(self, layer: Iterable[Entry]) -> None:
        self.start_layer()
        written = self.written
        entries, current = self.entries, b""  # most entries lie in the same directory as the one before
        for entry in layer:
            self.spend()
            path = entry.path
            parent, _, name = path.rpartition(b"/")
            if _WHITEOUT in path and self.apply_whiteout(path, parent, name):
                entries, current = self.entries, b""
                continue
            inode = self.make(entry)
            if not name:
                self.set_root(inode)
                continue
            if parent != current:
                entries, current = self.enter(parent), parent
            old = entries.get(name)
            if old is not None:
                if path in written:
                    self.note(_TWICE, path)
                if isinstance(old, Directory):
                    if isinstance(inode, Directory):
                        inode = Directory(inode.meta, old.entries)
                    else:
                        self.forget(path, old)
            entries[name] = inode
            written.add(path)
        for path in sorted(self.implied - written):
            self.note(_IMPLIED, path)

    def spend(self) -> None:
        self.budget -= 1
        if self.budget < 0:
            raise LimitError(f"the image has over {MAX_ENTRIES} entries")

    def note(self, notice: str, path: bytes) -> None:
        self.notices.setdefault(notice, []).append(path)

    def set_root(self, inode: Inode) -> None:
        if not isinstance(inode, Directory):
            raise ImageError("a layer has an entry for / that is not a directory")
        self.root = inode.meta

    def find_directory(self, path: bytes) -> _Entries | None:
        """Return the entries of a directory, None where nothing is; no symbolic link is followed."""
        entries = self.entries
        for name in path.split(b"/") if path else ():
            inode = entries.get(name)
            if not isinstance(inode, Directory):
                if inode is None:
                    return None
                raise ImageError(
                    f"a layer reaches for {printable(path)}, where {printable(name)} is not a directory",
                    hint="symbolic links are not followed: tools make different trees of such a layer",
                )
            entries = _children(inode)
        return entries

    def enter(self, path: bytes) -> _Entries:
        """Return the entries of a directory; where nothing is, it is made."""
        if path.count(b"/") + 2 > MAX_DEPTH:
            raise LimitError(f"{printable(path)} lies over {MAX_DEPTH} directories deep")
        directory = self.find_directory(path)
        if directory is not None:
            return directory
        entries, at = self.entries, b""
        for name in path.split(b"/"):
            at = at + b"/" + name if at else name
            inode = entries.get(name)
            if not isinstance(inode, Directory):
                self.spend()
                self.implied.add(at)
                inode = entries[name] = Directory(Metadata(mode=0o755), {})
            entries = _children(inode)
        return entries

    def make(self, entry: Entry) -> Inode:
        path, kind, mode, uid, gid, mtime, mtime_nsec, xattrs, content, linkname, rdev = entry
        if kind == HARD_LINK:
            return self.find_link_target(path, linkname)
        meta = Metadata(
            mode=mode,
            uid=uid,
            gid=gid,
            mtime=mtime,
            mtime_nsec=mtime_nsec,
            xattrs=self.check_xattrs(path, xattrs) if xattrs else NO_XATTRS,
        )
        match kind:
            case stat.S_IFREG:
                return File(meta, content)
            case stat.S_IFDIR:
                return Directory(meta, {})
            case stat.S_IFLNK:
                return Symlink(meta, linkname)
            case stat.S_IFCHR | stat.S_IFBLK:
                return Device(meta, kind, rdev)
        return Special(meta, kind)

    def find_link_target(self, path: bytes, linkname: bytes) -> Leaf:
        parent, _, name = linkname.rpartition(b"/")
        entries = self.find_directory(parent)
        target = entries.get(name) if entries else None
        if target is None or linkname == path:
            raise ImageError(f"{printable(path)} is a hard link to {printable(linkname)}, which is not there")
        if isinstance(target, Directory):
            raise ImageError(f"{printable(path)} is a hard link to the directory {printable(linkname)}")
        return target

    def check_xattrs(self, path: bytes, xattrs: Mapping[bytes, bytes]) -> Mapping[bytes, bytes]:
        kept = {name: value for name, value in xattrs.items() if not name.startswith(OVERLAY_XATTRS)}
        if len(kept) < len(xattrs):
            self.note(_OBEYED, path)
        if len(kept) > MAX_XATTRS or sum(map(len, kept)) + sum(map(len, kept.values())) > MAX_XATTR_BYTES:
            raise LimitError(
                f"{printable(path)} has over {MAX_XATTRS} extended attributes, or over {MAX_XATTR_BYTES} bytes of them"
            )
        return kept

    def apply_whiteout(self, path: bytes, parent: bytes, name: bytes) -> bool:
        """Do what a whiteout marker says; False where the path only looks like one."""
        names = path.split(b"/")
        if name != _OPAQUE and any(each.startswith(_AUFS) for each in names):
            self.note(_HOUSEKEEPING, path)
            return True
        if any(each.startswith(_WHITEOUT) for each in names[:-1]):
            raise ImageError(f"a layer has an entry for {printable(path)}, beneath a whiteout")
        if not name.startswith(_WHITEOUT):
            return False
        hidden = name.removeprefix(_WHITEOUT)
        if hidden in (b"", b".", b".."):
            raise ImageError(f"a layer has a whiteout of no name: {printable(path)}")
        entries = self.find_directory(parent)
        if entries is None:
            self.note(_NOT_THERE, path)
            return True
        for one in list(entries) if name == _OPAQUE else [hidden]:
            if one in entries:
                where = parent + b"/" + one if parent else one
                for lost in self.forget(where, entries.pop(one)):
                    self.note(_REMOVED, lost)
        return True

    def forget(self, path: bytes, inode: Inode) -> list[bytes]:
        """Take what leaves the tree off the layer's account; returns what of it the layer itself has put there."""
        lost = []
        left = [(path, inode)]
        while left:
            path, inode = left.pop()
            if path in self.written:
                self.written.remove(path)
                lost.append(path)
            self.implied.discard(path)
            if isinstance(inode, Directory):
                left += [(path + b"/" + name, child) for name, child in inode.entries.items()]
        return lost
