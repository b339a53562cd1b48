"""A second model of /etc: flat dictionaries from path to fields, merged naively, and random directories."""

import random
import stat
from collections.abc import Callable
from typing import Any

from oci2boot.tree.model import Device, Directory, File, Inode, Metadata, Special, Symlink, walk

Flat = dict[bytes, tuple[Any, ...]]
Choose = Callable[[bytes], str]

NAMES = (b"a", b"b.conf", b"c", b"\xff")
LONG = (b"1" * 100, b"2" * 5000)


def flat(tree: Directory) -> Flat:
    """Return what an administrator sees, without times; overlayfs keeps its books in trusted.overlay.*."""
    found: Flat = {}
    for path, inode in walk(tree):
        meta = inode.meta
        xattrs = {name: value for name, value in meta.xattrs.items() if not name.startswith(b"trusted.overlay.")}
        fields = (meta.mode if not isinstance(inode, Symlink) else 0, meta.uid, meta.gid, tuple(sorted(xattrs.items())))
        match inode:
            case Directory():
                found[path] = ("directory", *fields)
            case File():
                found[path] = ("file", *fields, inode.content)
            case Symlink():
                found[path] = ("symlink", *fields, inode.target)
            case Device():
                found[path] = ("device", *fields, inode.kind, inode.rdev)
            case Special():
                found[path] = ("special", *fields, inode.kind)
    return found


def merge(base: Flat, ours: Flat, theirs: Flat, choose: Choose) -> Flat:
    """Merge three dictionaries: parents first; what is settled for a path as a whole is so for all below it."""
    result: Flat = {}
    settled: list[bytes] = []
    rests: list[bytes] = []
    for path in sorted(base.keys() | ours.keys() | theirs.keys(), key=lambda one: one.split(b"/")):
        if any(below(path, one) for one in settled):
            continue
        old, mine, new = base.get(path), ours.get(path), theirs.get(path)
        if is_directory(mine) and is_directory(new):
            if mine in (old, new):
                result[path] = new  # type: ignore[assignment]
            elif old == new or choose(path) != "theirs":
                result[path] = mine  # type: ignore[assignment]
            else:
                result[path] = new  # type: ignore[assignment]
            if not is_directory(old):
                base = {one: fields for one, fields in base.items() if not below(one, path)}
            continue
        if is_directory(mine) and is_directory(old) and new is None:
            rests.append(path)
            if mine != old and choose(path) != "theirs":
                rests.pop()
            result[path] = mine  # type: ignore[assignment]
            continue
        settled.append(path)
        a, b, c = part(base, path), part(ours, path), part(theirs, path)
        if b in (a, c):
            result |= c
        elif c == a or choose(path) != "theirs":
            result |= b
        else:
            result |= c
    for path in reversed(rests):
        if not any(below(one, path) and one != path for one in result):
            del result[path]
    return result


def is_directory(fields: tuple[Any, ...] | None) -> bool:
    return fields is not None and fields[0] == "directory"


def below(path: bytes, top: bytes) -> bool:
    return path == top or path.startswith(top.rstrip(b"/") + b"/")


def part(tree: Flat, top: bytes) -> Flat:
    return {path: fields for path, fields in tree.items() if below(path, top)}


# ---- random directories


def random_tree(chance: random.Random, depth: int = 3, *, devices: bool = True) -> Directory:
    entries: dict[bytes, Inode] = {}
    for name in NAMES:
        if chance.random() < 0.6:
            entries[name] = random_inode(chance, depth - 1, devices=devices)
    return Directory(random_meta(chance, 0o755), entries)


def random_meta(chance: random.Random, mode: int = 0o644) -> Metadata:
    xattrs: dict[bytes, bytes] = {}
    if chance.random() < 0.15:
        xattrs[b"security.capability"] = bytes.fromhex("0100000200200000000000000000000000000000")
    if chance.random() < 0.15:
        mode |= stat.S_IWGRP
    return Metadata(
        mode=mode,
        uid=chance.choice((0, 0, 0, 7)),
        gid=chance.choice((0, 0, 0, 8)),
        mtime=1000,
        mtime_nsec=5,
        xattrs=xattrs,
    )


def random_inode(chance: random.Random, depth: int, *, devices: bool) -> Inode:
    kind = chance.random()
    if kind < 0.35 and depth > 0:
        return random_tree(chance, depth, devices=devices)
    if kind < 0.45:
        return Symlink(Metadata(mode=0o777), chance.choice((b"a", b"b")))
    if kind < 0.5 and devices:
        return Device(Metadata(mode=0o600), stat.S_IFCHR, 0x103)
    if kind < 0.55 and devices:
        return Special(Metadata(mode=0o600), stat.S_IFIFO)
    return File(random_meta(chance), chance.choice((b"", b"x", b"y")))


def changed(chance: random.Random, inode: Inode, depth: int = 3) -> Inode:
    """Return an inode, some of it changed."""
    if not isinstance(inode, Directory):
        return inode if chance.random() < 0.7 else random_inode(chance, depth, devices=True)
    entries: dict[bytes, Inode] = {}
    for name in NAMES:
        child, kind = inode.entries.get(name), chance.random()
        if child is None:
            if kind < 0.2:
                entries[name] = random_inode(chance, depth - 1, devices=True)
        elif kind < 0.8:
            entries[name] = changed(chance, child, depth - 1)
        elif kind < 0.9:
            entries[name] = random_inode(chance, depth - 1, devices=True)
    return Directory(inode.meta if chance.random() < 0.8 else random_meta(chance, 0o755), entries)


def some_upper(chance: random.Random, base: Directory, ours: Directory) -> Directory:
    """Return one of the many upper directories that show `ours` over `base`, most of them wasteful."""
    entries: dict[bytes, Inode] = {}
    for name in base.entries.keys() | ours.entries.keys():
        lower, wanted = base.entries.get(name), ours.entries.get(name)
        if wanted is None:
            file = File(Metadata(mode=0o600, xattrs={b"trusted.overlay.whiteout": b"y"}), b"")
            entries[name] = chance.choice((file, Device(Metadata(mode=0), stat.S_IFCHR, 0)))
        elif lower is wanted and chance.random() < 0.8:
            pass
        elif isinstance(wanted, Directory):
            meta = wanted.meta
            if isinstance(lower, Directory) and chance.random() < 0.7:
                entries[name] = some_upper(chance, lower, wanted)
            else:
                opaque = {**meta.xattrs, b"trusted.overlay.opaque": b"y"}
                entries[name] = Directory(
                    Metadata(mode=meta.mode, uid=meta.uid, gid=meta.gid, xattrs=opaque), wanted.entries
                )
        else:
            entries[name] = wanted
    if chance.random() < 0.5:
        return Directory(ours.meta, entries)
    books = {**ours.meta.xattrs, b"trusted.overlay.impure": b"y", b"trusted.overlay.origin": b"\0\xfb"}
    return Directory(Metadata(mode=ours.meta.mode, uid=ours.meta.uid, gid=ours.meta.gid, xattrs=books), entries)
