"""SELinux labels from the image's own policy, as composefs-rs 0.9 gives them, by libselinux's rules or by its own."""

import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from operator import itemgetter
from typing import Final

from oci2boot.errors import FormatError
from oci2boot.formats.file_contexts.policy import FILES, Place, Policy
from oci2boot.formats.file_contexts.specs import Rules, parse_policy_type
from oci2boot.tree.files import Read, read_content
from oci2boot.tree.lookup import resolve
from oci2boot.tree.model import (
    NO_XATTRS,
    SELINUX_XATTR,
    Device,
    Directory,
    File,
    Inode,
    Leaf,
    Metadata,
    Special,
    Symlink,
    walk,
)

MAX_POLICY_FILE: Final = 8 << 20
"""Bytes; the file_contexts of distributions have about half a million."""
MAX_NAMED: Final = 5
"""Hard links named in the warning about them."""

CONFIG: Final = b"etc/selinux/config"

Warn = Callable[[str], None]
Label = bytes | None
Item = tuple[bytes, Inode]


def load_policy(tree: Directory, read: Read, rules: Rules = "libselinux", warn: Warn = lambda _: None) -> Policy | None:
    """Read the policy that the image's /etc/selinux/config names; None where there is no config, or it names none."""
    config = _read_file(tree, CONFIG, read)
    name = parse_policy_type(config, rules) if config is not None else None
    if name is None:
        targeted = resolve(tree, b"etc/selinux/targeted")
        if targeted and isinstance(targeted[1], Directory):
            warn("/etc/selinux has a policy but no config that names it: the files get no SELinux labels")
        return None
    if name in (b"", b".", b"..") or b"/" in name:
        raise FormatError(f"/etc/selinux/config: SELINUXTYPE is no name of a policy: {_show(name)!r}")
    directory = b"etc/selinux/" + name + b"/contexts/files"
    shown = f"/{_show(directory)}"
    files: dict[str, bytes] = {}
    for file in FILES:
        content = _read_file(tree, directory + b"/" + file.encode(), read)
        if content is not None:
            files[file] = content
    if FILES[0] not in files:
        raise FormatError(
            f"{shown}/{FILES[0]} is missing, and /etc/selinux/config names this policy",
            hint="install the policy in the image, or remove /etc/selinux/config",
        )
    return Policy.parse(files, shown, rules)


def label(tree: Directory, policy: Policy | None, warn: Warn = lambda _: None) -> Directory:
    """Return `tree` with every inode labelled as `policy` says, and labels removed where it says nothing.

    A hard link whose name asks for another label than its first name becomes a file of its own.
    """
    if policy is None and not any(SELINUX_XATTR in inode.meta.xattrs for _, inode in walk(tree)):
        return tree
    relabelling = _Relabelling()
    survey = _survey(tree, (policy,))
    _, root_items, (root_labels,) = next(survey)
    root_label = policy.label(b"/", stat.S_IFDIR) if policy else None
    root_entries: dict[bytes, Inode] = {}
    stack = [(b"/", zip(root_items, root_labels, strict=True), root_entries)]
    while stack:
        prefix, rest, entries = stack[-1]
        for (name, inode), wanted in rest:
            if isinstance(inode, Directory):
                inner: dict[bytes, Inode] = {}
                entries[name] = Directory(relabelling.metadata(inode.meta, wanted), inner)
                path, items, (labels,) = next(survey)
                stack.append((path, zip(items, labels, strict=True), inner))
                break
            entries[name] = relabelling.leaf(inode, wanted, prefix, name)
        else:
            stack.pop()
    relabelling.report(warn)
    return Directory(relabelling.metadata(tree.meta, root_label), root_entries)


def disagreements(
    tree: Directory, libselinux: Policy | None, composefs_rs: Policy | None
) -> list[tuple[bytes, Label, Label]]:
    """Return the paths that two policies label differently, in order, with both labels."""
    differing: list[tuple[bytes, Label, Label]] = []
    roots = [policy.label(b"/", stat.S_IFDIR) if policy else None for policy in (libselinux, composefs_rs)]
    if roots[0] != roots[1]:
        differing.append((b"/", roots[0], roots[1]))
    for prefix, items, (ours, theirs) in _survey(tree, (libselinux, composefs_rs)):
        if ours != theirs:
            differing += [
                (prefix + name, one, other)
                for (name, _), one, other in zip(items, ours, theirs, strict=True)
                if one != other
            ]
    return sorted(differing, key=itemgetter(0))


_KINDS: Final = {Directory: stat.S_IFDIR, File: stat.S_IFREG, Symlink: stat.S_IFLNK}


def _kind(inode: Inode) -> int:
    return inode.kind if isinstance(inode, Device | Special) else _KINDS[type(inode)]


def _survey(
    tree: Directory, policies: Sequence[Policy | None]
) -> Iterator[tuple[bytes, Sequence[Item], Sequence[Sequence[Label]]]]:
    """Yield each directory, parents first and siblings in order of name, as (path with a slash, items, labels).

    The items come in order of name; of labels there is one list for each policy.
    """
    stack: list[tuple[bytes, Directory, Sequence[Place | None]]] = [
        (b"/", tree, [policy.root if policy else None for policy in policies])
    ]
    while stack:
        prefix, directory, places = stack.pop()
        items = sorted(directory.entries.items())
        kinds = [(name, _kind(inode)) for name, inode in items]
        yield (
            prefix,
            items,
            [
                policy.labels(place, kinds) if policy and place else [None] * len(items)
                for policy, place in zip(policies, places, strict=True)
            ],
        )
        for name, inode in reversed(items):
            if isinstance(inode, Directory):
                below = [
                    policy.enter(place, name) if policy and place else None
                    for policy, place in zip(policies, places, strict=True)
                ]
                stack.append((prefix + name + b"/", inode, below))


class _Relabelling:
    """What has been relabelled so far: hard links stay one inode as long as their names get one label."""

    def __init__(self) -> None:
        self._done: dict[int, Leaf] = {}
        self._plain: dict[tuple[int, int, int, int, int, Label], Metadata] = {}
        self._split: list[bytes] = []

    def leaf(self, inode: Leaf, wanted: Label, prefix: bytes, name: bytes) -> Leaf:
        done = self._done.get(id(inode))
        if done is None:
            done = self._done[id(inode)] = self._copy(inode, self.metadata(inode.meta, wanted))
        elif done.meta.xattrs.get(SELINUX_XATTR) != wanted:
            self._split.append(prefix + name)
            return self._copy(inode, self.metadata(inode.meta, wanted))
        return done

    def metadata(self, meta: Metadata, wanted: Label) -> Metadata:
        xattrs = meta.xattrs
        if xattrs.get(SELINUX_XATTR) == wanted:
            return meta
        if xattrs:
            changed = {name: xattrs[name] for name in xattrs if name != SELINUX_XATTR}
            if wanted is not None:
                changed[SELINUX_XATTR] = wanted
            return Metadata(
                mode=meta.mode, uid=meta.uid, gid=meta.gid, mtime=meta.mtime, mtime_nsec=meta.mtime_nsec, xattrs=changed
            )
        # Most files of a package differ in content alone: one object for all of them halves what a tree takes.
        key = meta.mode, meta.uid, meta.gid, meta.mtime, meta.mtime_nsec, wanted
        plain = self._plain.get(key)
        if plain is None:
            own = {SELINUX_XATTR: wanted} if wanted is not None else NO_XATTRS
            plain = self._plain[key] = replace(meta, xattrs=own)
        return plain

    @staticmethod
    def _copy(inode: Leaf, meta: Metadata) -> Leaf:
        match inode:
            case File():
                return File(meta, inode.content)
            case Symlink():
                return Symlink(meta, inode.target)
            case Device():
                return Device(meta, inode.kind, inode.rdev)
            case Special():
                return Special(meta, inode.kind)

    def report(self, warn: Warn) -> None:
        if self._split:
            names = ", ".join(map(_show, self._split[:MAX_NAMED])) + (", …" if len(self._split) > MAX_NAMED else "")
            warn(f"{len(self._split)} hard links became files, as SELinux labels their names differently: {names}")


def _read_file(tree: Directory, path: bytes, read: Read) -> bytes | None:
    found = resolve(tree, path)
    if found is None:
        return None
    _, inode = found
    if not isinstance(inode, File):
        raise FormatError(f"/{_show(path)} is not a regular file")
    return read_content(inode, read, path, MAX_POLICY_FILE)


def _show(text: bytes) -> str:
    return text.decode("utf-8", "backslashreplace")
