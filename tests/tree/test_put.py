"""One inode put into a tree, and trees that differ in labels alone."""

from dataclasses import replace

import pytest

from oci2boot.tree.diff import same_but_labels
from oci2boot.tree.model import SELINUX_XATTR, Device, Directory, File, Inode, Metadata, Symlink, find, put

META = Metadata(mode=0o755)
NEW = File(META, b"new")


def folder(**entries: Inode) -> Directory:
    return Directory(META, {name.encode(): inode for name, inode in entries.items()})


def test_an_inode_is_put_into_a_tree() -> None:
    tree = folder(a=folder(b=File(META, b"old")), c=File(META, b""))
    assert find(put(tree, b"a/b", NEW), b"a/b") is NEW
    assert find(put(tree, b"/c/d/e", NEW), b"c/d/e") is NEW
    assert find(put(tree, b"new", NEW), b"new") is NEW
    assert find(put(tree, b"a/b", None), b"a/b") is None
    assert isinstance(find(put(tree, b"a/b", None), b"a"), Directory)
    assert put(tree, b"none/below", None).entries.keys() == tree.entries.keys()
    assert put(tree, b"none", None).entries.keys() == tree.entries.keys()
    assert isinstance(find(tree, b"a/b"), File)  # the old tree is as it was


def label(inode: Inode, text: bytes) -> Inode:
    return replace(inode, meta=replace(inode.meta, xattrs={**inode.meta.xattrs, SELINUX_XATTR: text}))


FILE, LINK, DEVICE = File(META, b"x"), Symlink(META, b"x"), Device(META, 0o020000, 5)
TREE = folder(a=FILE, b=FILE, link=LINK, device=DEVICE, below=folder(c=File(META, b"y")))


def test_labels_alone_are_no_difference() -> None:
    """Two names of one file may have got different labels, and are then two files."""
    labelled = label(FILE, b"t")
    same = folder(a=labelled, b=labelled, link=label(LINK, b"l"), device=DEVICE, below=TREE.entries[b"below"])
    assert same_but_labels(same, TREE, whole_seconds=False)
    apart = folder(a=label(FILE, b"one"), b=label(FILE, b"two"), link=LINK, device=DEVICE, below=TREE.entries[b"below"])
    assert same_but_labels(apart, TREE, whole_seconds=False)
    twice = folder(a=label(FILE, b"t"), b=label(FILE, b"t"), link=LINK, device=DEVICE, below=TREE.entries[b"below"])
    assert not same_but_labels(twice, TREE, whole_seconds=False)


@pytest.mark.parametrize(
    "changed",
    [
        {"a": File(META, b"z")},
        {"a": File(replace(META, mode=0o700), b"x")},
        {"link": Symlink(META, b"elsewhere")},
        {"device": Device(META, 0o020000, 6)},
        {"device": Device(META, 0o060000, 5)},
        {"below": folder()},
        {"below": folder(c=File(replace(META, uid=7), b"y"))},
        {"below": FILE},
        {"more": FILE},
        {"a": File(replace(META, xattrs={b"user.x": b"1"}), b"x")},
        {"a": File(replace(META, mtime=1), b"x")},
    ],
)
def test_everything_else_is_a_difference(changed: dict[str, Inode]) -> None:
    entries = {name.decode(): inode for name, inode in TREE.entries.items()}
    assert not same_but_labels(folder(**{**entries, **changed}), TREE, whole_seconds=True)


def test_two_files_do_not_become_one() -> None:
    one, two = File(META, b"x"), File(META, b"x")
    assert not same_but_labels(folder(a=one, b=one), folder(a=one, b=two), whole_seconds=False)


def test_nanoseconds_count_where_they_are_kept() -> None:
    early = folder(a=File(replace(META, mtime_nsec=5), b"x"))
    late = folder(a=File(META, b"x"))
    assert same_but_labels(early, late, whole_seconds=True)
    assert not same_but_labels(early, late, whole_seconds=False)
