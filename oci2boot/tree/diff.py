"""What differs between two trees, path by path and field by field; the fields of a path are also what a manifest has.

Text stands for bytes: UTF-8, a backslash doubled, a byte that is no UTF-8 as `\\xff`. So the text of any two differs.
"""

import heapq
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Final

from oci2boot.digest import External, Hash
from oci2boot.formats.fsverity import measure
from oci2boot.tree.model import SELINUX_XATTR, Device, Directory, File, Inode, Sparse, Symlink, file_type, walk

Fields = dict[str, Any]
"""Of one path, ready for JSON: type, mode, uid, gid, mtime, …; an xattr is a field of its own."""

TYPES: Final = {
    stat.S_IFDIR: "directory",
    stat.S_IFREG: "file",
    stat.S_IFLNK: "symlink",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
    stat.S_IFIFO: "FIFO",
    stat.S_IFSOCK: "socket",
}
ABSENT: Final = "absent"


@dataclass(frozen=True, slots=True)
class Difference:
    path: str
    field: str
    a: str
    b: str

    def to_json(self) -> dict[str, str]:
        return {"path": self.path, "field": self.field, "a": self.a, "b": self.b}


def text(raw: bytes) -> str:
    return raw.replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")


def describe(tree: Directory, algorithm: Hash | None) -> Iterator[tuple[str, Fields]]:
    """Yield (path, fields), parents first; contents by their fs-verity digest, not at all without an algorithm."""
    names: dict[int, str] = {}
    for raw, inode in walk(tree):
        path = text(raw)
        fields = _fields(inode, algorithm)
        if not isinstance(inode, Directory) and (first := names.setdefault(id(inode), path)) != path:
            fields["hard link of"] = first
        yield path, fields


def _fields(inode: Inode, algorithm: Hash | None) -> Fields:
    meta = inode.meta
    fields: Fields = {
        "type": TYPES[file_type(inode)],
        "mode": f"{meta.mode:04o}",
        "uid": meta.uid,
        "gid": meta.gid,
        "mtime": meta.mtime,
        "mtime nanoseconds": meta.mtime_nsec,
    }
    match inode:
        case File():
            fields["size"] = inode.size
            if algorithm:
                fields["fs-verity"] = _digest(inode, algorithm)
        case Symlink():
            fields["target"] = text(inode.target)
        case Device():
            fields["device"] = inode.rdev
    for name, value in meta.xattrs.items():
        fields[f"xattr {text(name)}"] = text(value)
    return fields


def _digest(file: File, algorithm: Hash) -> str:
    match file.content:
        case External(digest=digest):
            return str(digest)
        case Sparse():
            return "a hole"
        case bytes():
            return str(measure(file.content, algorithm))


def compare(
    a: Iterable[tuple[str, Mapping[str, Any]]], b: Iterable[tuple[str, Mapping[str, Any]]]
) -> Iterator[Difference]:
    """Yield every difference, in no order; of what only one has, the top alone. `b` has parents first."""
    left = dict(a)
    only_b: set[str] = set()
    for path, fields in b:
        other = left.pop(path, None)
        if other is None:
            if _parent(path) not in only_b:
                yield Difference(path, "path", ABSENT, str(fields["type"]))
            only_b.add(path)
        elif other != fields:
            yield from _field_differences(path, other, fields)
    for path, fields in left.items():
        if _parent(path) not in left:
            yield Difference(path, "path", str(fields.get("type", "something")), ABSENT)


def _field_differences(path: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[Difference]:
    names = ["type"] if a.get("type") != b.get("type") else dict.fromkeys((*a, *b))
    for name in names:
        if a.get(name) != b.get(name):
            yield Difference(path, name, str(a.get(name, ABSENT)), str(b.get(name, ABSENT)))


def _parent(path: str) -> str:
    return path.rpartition("/")[0] or "/"


def same_but_labels(labelled: Directory, tree: Directory, *, whole_seconds: bool) -> bool:
    """Say whether a tree differs from another in nothing but the SELinux labels that it was given.

    Where the names of one hard link got different labels, they are files of their own. With `whole_seconds` nanoseconds
    do not count.
    """
    pairs: list[tuple[Inode, Inode]] = [(labelled, tree)]
    links: dict[int, int] = {}  # by id()
    labels: dict[int, dict[int, bytes | None]] = {}  # of what one inode of `tree` became
    for one, other in pairs:
        if _but_labels(one, whole_seconds=whole_seconds) != _but_labels(other, whole_seconds=whole_seconds):
            return False
        if isinstance(one, Directory) and isinstance(other, Directory):
            if one.entries.keys() != other.entries.keys():
                return False
            pairs += [(inode, other.entries[name]) for name, inode in one.entries.items()]
        elif links.setdefault(id(one), id(other)) != id(other):
            return False
        else:
            labels.setdefault(id(other), {})[id(one)] = one.meta.xattrs.get(SELINUX_XATTR)
    return all(len(found) == 1 or len(set(found.values())) > 1 for found in labels.values())


def _but_labels(inode: Inode, *, whole_seconds: bool) -> tuple[object, ...]:
    meta = inode.meta
    kept = {name: value for name, value in meta.xattrs.items() if name != SELINUX_XATTR}
    own: object = None
    match inode:
        case File():
            own = inode.content
        case Symlink():
            own = inode.target
        case Device():
            own = inode.rdev
    nsec = 0 if whole_seconds else meta.mtime_nsec
    return file_type(inode), meta.mode, meta.uid, meta.gid, meta.mtime, nsec, kept, own


def first_of(differences: Iterable[Difference], limit: int) -> tuple[list[Difference], int]:
    """Return the first differences in order of path, and how many more there are."""
    count = 0

    def counted() -> Iterator[Difference]:
        nonlocal count
        for difference in differences:
            count += 1
            yield difference

    first = heapq.nsmallest(limit, counted(), key=attrgetter("path"))
    return first, count - len(first)
