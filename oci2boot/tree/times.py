"""Modification times as the layers of an image will carry them, while a directory of its build still has others.

A layer that buildah, podman, Docker or BuildKit writes has whole seconds, cut and not rounded (containers/storage and
containerd both do so); the one layer of `buildah --squash` has the nearest second, as Go's tar writer has it where
nobody cut before. What a build is told about times is done to new
layers alone: `buildah --timestamp` gives everything in them one time, and `rewrite-timestamp` of BuildKit and of newer
buildah lowers what is later than SOURCE_DATE_EPOCH. What the image is built on keeps its times in both cases.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final, Literal, Self

from oci2boot.errors import FormatError
from oci2boot.tree.model import Device, Directory, File, Inode, Metadata, Special, Symlink, rewrite, walk

Kind = Literal["seconds", "nearest", "exact", "set", "clamp"]
WORDS: Final[tuple[Kind, ...]] = ("seconds", "nearest", "exact")
CLAMP: Final = "clamp:"
_HALF: Final = 500_000_000


@dataclass(frozen=True, slots=True)
class Times:
    """What becomes of a directory's times; `parse` and `str()` have the words for it."""

    kind: Kind = "seconds"
    epoch: int = 0
    """Seconds since 1970, where all times, or later ones, become one."""

    @classmethod
    def parse(cls, text: str) -> Self:
        if word := next((word for word in WORDS if word == text), None):
            return cls(word)
        number = text.removeprefix(CLAMP)
        if not re.fullmatch(r"[0-9]{1,11}", number):
            raise FormatError(
                f"not a rule for times: {text[:80]!r}",
                hint=f"seconds, nearest, exact, or seconds since 1970: 1700000000, or {CLAMP}1700000000",
            )
        return cls("set" if number == text else "clamp", int(number))

    def __str__(self) -> str:
        match self.kind:
            case "set":
                return str(self.epoch)
            case "clamp":
                return f"{CLAMP}{self.epoch}"
        return self.kind

    @property
    def of_new_layers(self) -> bool:
        return self.kind in ("set", "clamp")

    def of(self, root: Directory, below: Directory | None = None) -> Directory:
        """Return the tree with such times; what is as it is in `below`, what it was built on, keeps its seconds."""
        if self.kind == "exact":
            return root
        if self.kind == "nearest":
            root = _nearest_second(root)
        cut = whole_seconds(root)
        if not self.of_new_layers:
            return cut
        return _with_epoch(cut, self, _Kept(whole_seconds(below)) if below else None)

    def change(self, meta: Metadata) -> Metadata:
        """Return what a file has that is new in its image."""
        if self.kind == "set" or meta.mtime > self.epoch:
            return replace(meta, mtime=self.epoch)
        return meta


SECONDS: Final = Times()


def has_nanoseconds(root: Directory) -> bool:
    return any(inode.meta.mtime_nsec for _, inode in walk(root))


def whole_seconds(root: Directory) -> Directory:
    """Return the tree with every time cut to its second."""

    def change(inode: Inode) -> Inode:
        return replace(inode, meta=replace(inode.meta, mtime_nsec=0)) if inode.meta.mtime_nsec else inode

    return rewrite(root, change)


def _nearest_second(root: Directory) -> Directory:
    def change(inode: Inode) -> Inode:
        meta = inode.meta
        return replace(inode, meta=replace(meta, mtime=meta.mtime + 1)) if meta.mtime_nsec >= _HALF else inode

    return rewrite(root, change)


class _Kept:
    """Which inodes of a tree are those that it was built on."""

    def __init__(self, below: Directory) -> None:
        self._below = {path: _described(inode) for path, inode in walk(below)}

    def old(self, root: Directory) -> set[int]:
        """Return the ids of inodes that no new layer has: of a directory, nothing beneath it may be new either."""
        paths: dict[bytes, Inode] = dict(walk(root))
        changed = {id(inode) for path, inode in paths.items() if self._below.get(path) != _described(inode)}
        # A whiteout has the directories above it in the new layer. Those above what is there change with it anyway.
        removed = self._below.keys() - paths.keys()
        changed |= {id(paths[parent]) for path in removed for parent in _parents(path) if parent in paths}
        return {id(inode) for inode in paths.values()} - changed


def _parents(path: bytes) -> Iterator[bytes]:
    while path != b"/":
        path = path.rpartition(b"/")[0] or b"/"
        yield path


def _with_epoch(root: Directory, times: Times, kept: _Kept | None) -> Directory:
    old = kept.old(root) if kept else set()

    # `rewrite` gives a directory with something new in it as a new object, which is not among the old ones.
    def change(inode: Inode) -> Inode:
        return inode if id(inode) in old else replace(inode, meta=times.change(inode.meta))

    return rewrite(root, change)


def _described(inode: Inode) -> tuple[object, ...]:
    """Return all that an inode is, for a comparison; of a directory its own metadata alone."""
    meta = inode.meta
    own = (meta.mode, meta.uid, meta.gid, meta.mtime, dict(meta.xattrs))
    match inode:
        case Directory():
            return ("directory", *own)
        case File():
            return ("file", *own, inode.content)
        case Symlink():
            return ("symlink", *own, inode.target)
        case Device():
            return ("device", *own, inode.kind, inode.rdev)
        case Special():
            return ("special", *own, inode.kind)
