"""The canonical forms; digests and dumps of composefs-rs itself are in test_prepare_vectors."""

import pytest

from oci2boot.errors import ImageError
from oci2boot.tree.merge import merge
from oci2boot.tree.model import Directory, Metadata, walk
from oci2boot.tree.prepare import prepare, prepare_for_boot
from tests.tarballs import directory, entries, file, hard_link, pax, symlink

XATTRS = ("security.capability", "security.selinux", "user.mine", "system.posix_acl_access")


def with_xattrs(member: bytes) -> bytes:
    return pax(*((b"SCHILY.xattr." + name.encode(), b"v") for name in XATTRS)) + member


USR = pax((b"mtime", b"77.25")) + directory(b"usr", mode=0o751, uid=3, gid=4)


def tree(*parts: bytes) -> Directory:
    return merge([entries(*parts)], lambda _: None)


def as_tuple(meta: Metadata) -> tuple[int, int, int, int, int]:
    return meta.mode, meta.uid, meta.gid, meta.mtime, meta.mtime_nsec


def names(meta: Metadata) -> set[str]:
    return {name.decode() for name in meta.xattrs}


def test_the_root_is_as_usr_is() -> None:
    made = prepare(tree(directory(b"./", mode=0o700, uid=9), with_xattrs(directory(b"usr", mode=0o751, uid=3))))
    assert as_tuple(made.meta) == (0o751, 3, 0, 1000, 0)
    assert names(made.meta) == {"security.capability"}


@pytest.mark.parametrize("form", [prepare, lambda tree: prepare_for_boot(tree, lambda _: None)])
def test_file_capabilities_alone_survive_by_default(form: object) -> None:
    assert callable(form)
    made = form(tree(USR, with_xattrs(file(b"usr/f")), with_xattrs(symlink(b"l", b"t")), with_xattrs(directory(b"d"))))
    assert [names(inode.meta) for path, inode in walk(made) if path in (b"/usr/f", b"/l", b"/d")] == [
        {"security.capability"}
    ] * 3


def test_keep_user_keeps_what_users_set() -> None:
    layer = tree(USR, with_xattrs(file(b"usr/f")))
    for made in (prepare(layer, "keep-user"), prepare_for_boot(layer, lambda _: None, "keep-user")):
        usr = made.entries[b"usr"]
        assert isinstance(usr, Directory)
        assert names(usr.entries[b"f"].meta) == {"security.capability", "user.mine"}


def test_hard_links_stay_one_inode() -> None:
    parts = (USR, with_xattrs(file(b"usr/a")), directory(b"d"), hard_link(b"d/b", b"usr/a"), hard_link(b"c", b"d/b"))
    found = dict(walk(prepare(tree(*parts))))
    assert found[b"/usr/a"] is found[b"/d/b"] is found[b"/c"]
    assert names(found[b"/c"].meta) == {"security.capability"}


def test_the_tree_that_comes_in_stays_as_it_is() -> None:
    before = tree(
        USR, with_xattrs(file(b"usr/a")), directory(b"run"), file(b"run/x"), directory(b"boot"), file(b"boot/x")
    )
    seen = [(path, id(inode), dict(inode.meta.xattrs)) for path, inode in walk(before)]
    prepare_for_boot(before, lambda _: None)
    assert [(path, id(inode), dict(inode.meta.xattrs)) for path, inode in walk(before)] == seen


def test_run_boot_and_sysroot_are_emptied_with_the_mtime_of_usr() -> None:
    """C.2, D.14: what lies in /boot, a UKI with the digest above all, does not change the digest."""
    layers = [USR]
    for number, name in enumerate((b"run", b"boot", b"sysroot"), 1):
        layers += [directory(name, mode=0o700 + number, uid=number), file(name + b"/x"), directory(name + b"/y")]
    warnings: list[str] = []
    made = prepare_for_boot(tree(*layers), warnings.append)
    assert warnings == []
    assert sorted(path for path, _ in walk(made)) == [b"/", b"/boot", b"/run", b"/sysroot", b"/usr"]
    times = 77, 250_000_000
    assert as_tuple(made.entries[b"run"].meta) == (0o701, 1, 0, *times)
    assert as_tuple(made.entries[b"boot"].meta) == (0o702, 2, 0, *times)
    assert as_tuple(made.entries[b"sysroot"].meta) == (0o703, 3, 0, *times)


def test_the_plain_form_leaves_boot_alone() -> None:
    assert (b"/boot/x", 1000) in [
        (path, inode.meta.mtime) for path, inode in walk(prepare(tree(USR, directory(b"boot"), file(b"boot/x"))))
    ]


def test_missing_mount_points_are_made_and_named() -> None:
    warnings: list[str] = []
    made = prepare_for_boot(tree(USR, directory(b"boot")), warnings.append)
    assert as_tuple(made.entries[b"sysroot"].meta) == (0o755, 0, 0, 77, 250_000_000)
    assert b"run" not in made.entries
    assert len(warnings) == 1
    assert warnings[0].startswith("the image has no /sysroot: made 0755")


@pytest.mark.parametrize("name", [b"run", b"boot", b"sysroot"])
def test_a_mount_point_that_is_no_directory_is_refused(name: bytes) -> None:
    with pytest.raises(ImageError, match="is not a directory"):
        prepare_for_boot(tree(USR, symlink(name, b"usr")), lambda _: None)


@pytest.mark.parametrize("layer", [file(b"f"), file(b"usr"), symlink(b"usr", b"f"), b""])
def test_an_image_without_usr_is_refused(layer: bytes) -> None:
    with pytest.raises(ImageError, match="no directory /usr"):
        prepare(tree(layer))


def test_preparing_twice_changes_nothing() -> None:
    once = prepare_for_boot(tree(USR, with_xattrs(file(b"usr/f")), directory(b"run"), file(b"run/x")), lambda _: None)
    twice = prepare_for_boot(once, lambda _: None)
    shown = [[(path, as_tuple(inode.meta), names(inode.meta)) for path, inode in walk(tree)] for tree in (once, twice)]
    assert shown[0] == shown[1]


def test_a_tree_2047_directories_deep_is_prepared() -> None:
    deep = pax((b"path", b"/".join([b"d"] * 2047)), (b"SCHILY.xattr.user.x", b"")) + directory(b"x")
    assert all(not inode.meta.xattrs for _, inode in walk(prepare(tree(USR, deep))))
