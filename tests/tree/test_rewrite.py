"""One change for every inode of a tree."""

from dataclasses import replace

from oci2boot.tree.model import Directory, File, Inode, Metadata, Symlink, rewrite, walk

LINKED = File(Metadata(mode=0o644), b"linked")
UNCHANGED = Directory(
    Metadata(mode=0o755), {b"a": File(Metadata(mode=0o600), b"a"), b"b": Symlink(Metadata(mode=0o777), b"a")}
)
TREE = Directory(
    Metadata(mode=0o755),
    {b"one": LINKED, b"below": Directory(Metadata(mode=0o700), {b"two": LINKED}), b"unchanged": UNCHANGED},
)


def test_a_hard_link_is_changed_once_and_stays_one_inode() -> None:
    seen: list[Inode] = []

    def change(inode: Inode) -> Inode:
        seen.append(inode)
        return File(inode.meta, b"new") if inode is LINKED else inode

    paths = dict(walk(rewrite(TREE, change)))
    assert paths[b"/one"] is paths[b"/below/two"]
    assert isinstance(paths[b"/one"], File)
    assert paths[b"/one"].content == b"new"
    assert [inode for inode in seen if inode is LINKED] == [LINKED]


def test_what_does_not_change_stays_the_same_object() -> None:
    assert rewrite(TREE, lambda inode: inode) is TREE
    changed = rewrite(TREE, lambda inode: File(inode.meta, b"new") if inode is LINKED else inode)
    assert changed.entries[b"unchanged"] is UNCHANGED
    assert changed is not TREE


def test_none_takes_an_inode_out() -> None:
    without = rewrite(TREE, lambda inode: None if inode is LINKED else inode)
    assert [path for path, _ in walk(without)] == [b"/", b"/below", b"/unchanged", b"/unchanged/a", b"/unchanged/b"]


def test_a_directory_is_seen_with_what_was_made_of_its_content() -> None:
    def empty_out(inode: Inode) -> Inode | None:
        if inode is LINKED or (isinstance(inode, Directory) and not inode.entries):
            return None
        return inode

    assert [path for path, _ in walk(rewrite(TREE, empty_out))] == [
        b"/",
        b"/unchanged",
        b"/unchanged/a",
        b"/unchanged/b",
    ]


def test_the_root_and_every_directory_is_changed_too() -> None:
    made = rewrite(TREE, lambda inode: replace(inode, meta=replace(inode.meta, uid=7)))
    assert {inode.meta.uid for _, inode in walk(made)} == {7}
    assert [path for path, _ in walk(made)] == [path for path, _ in walk(TREE)]
