"""SELinux labels of a tree. The answers come from cfsctl of composefs-rs 0.9, and from its rules in selabel.rs."""

import os
import stat
import subprocess
from collections.abc import Mapping
from pathlib import Path
from random import Random

import pytest

from oci2boot.digest import External
from oci2boot.errors import FormatError, LimitError
from oci2boot.formats.file_contexts.policy import Policy
from oci2boot.formats.fsverity import measure
from oci2boot.tree.dumpfile import parse_dumpfile, write_dumpfile
from oci2boot.tree.model import SELINUX_XATTR, Device, Directory, File, Inode, Metadata, Special, Symlink, find, walk
from oci2boot.tree.selinux import MAX_POLICY_FILE, disagreements, label, load_policy
from tests.formats.policies import PolicyMaker
from tests.witness import program

META = Metadata(mode=0o755)
CAPABILITY = b"security.capability"


def file(content: bytes = b"", **xattrs: bytes) -> File:
    return File(Metadata(mode=0o644, xattrs={b"security." + name.encode(): xattrs[name] for name in xattrs}), content)


def tree(paths: Mapping[str, Inode]) -> Directory:
    """Make a tree of paths; the directories above them come by themselves."""
    root: dict[bytes, Inode] = {}
    for path, inode in paths.items():
        *parents, name = path.encode().strip(b"/").split(b"/")
        at = root
        for parent in parents:
            below = at.setdefault(parent, Directory(META, {}))
            assert isinstance(below, Directory)
            assert isinstance(below.entries, dict)
            at = below.entries
        at[name] = inode
    return Directory(META, root)


def with_policy(specs: bytes, paths: Mapping[str, Inode], config: bytes = b"SELINUXTYPE=p\n") -> Directory:
    return tree(
        {"etc/selinux/config": file(config), "etc/selinux/p/contexts/files/file_contexts": file(specs), **paths}
    )


def read(inode: File) -> bytes:
    assert isinstance(inode.content, bytes)
    return inode.content


def labels(root: Directory) -> dict[str, bytes | None]:
    return {path.decode(): inode.meta.xattrs.get(SELINUX_XATTR) for path, inode in walk(root)}


def loaded(root: Directory) -> Policy:
    policy = load_policy(root, read)
    assert policy
    return policy


def test_every_kind_of_inode_is_labelled_by_its_path_and_kind() -> None:
    """C.30, P.4: without a NUL at the end, whatever the layer said, and nothing else of an inode changes."""
    specs = (
        b"/.* ANY\n/.* -d DIR\n/x/.* -- REG\n/x/.* -l LNK\n/x/.* -c CHR\n/x/.* -b BLK\n/x/.* -p FIFO\n/x/.* -s SOCK\n"
    )
    meta = Metadata(
        mode=0o4711, uid=1, gid=2, mtime=-3, mtime_nsec=4, xattrs={CAPABILITY: b"\1", SELINUX_XATTR: b"build_host\0"}
    )
    root = with_policy(
        specs,
        {
            "x/reg": File(meta, b"content"),
            "x/lnk": Symlink(META, b"reg"),
            "x/chr": Device(META, stat.S_IFCHR, 5),
            "x/blk": Device(META, stat.S_IFBLK, 6),
            "x/fifo": Special(META, stat.S_IFIFO),
            "x/sock": Special(META, stat.S_IFSOCK),
        },
    )
    made = label(root, loaded(root))
    found = labels(made)
    assert found["/"] == found["/x"] == b"DIR"
    for name in ("reg", "lnk", "chr", "blk", "fifo", "sock"):
        assert found[f"/x/{name}"] == name.upper().encode()
    regular = find(made, b"x/reg")
    assert isinstance(regular, File)
    assert (regular.content, dict(regular.meta.xattrs)) == (b"content", {CAPABILITY: b"\1", SELINUX_XATTR: b"REG"})
    assert regular.meta.mode == 0o4711
    assert (regular.meta.uid, regular.meta.gid, regular.meta.mtime, regular.meta.mtime_nsec) == (1, 2, -3, 4)
    assert labels(root)["/x/reg"] == b"build_host\0"


def test_a_label_goes_where_the_policy_has_none() -> None:
    root = with_policy(b"/x/.* <<none>>\n", {"x/a": file(selinux=b"old", capability=b"\1"), "y": file(selinux=b"old")})
    made = label(root, loaded(root))
    assert set(labels(made).values()) == {None}
    kept = find(made, b"x/a")
    assert kept
    assert dict(kept.meta.xattrs) == {CAPABILITY: b"\1"}


@pytest.mark.parametrize("config", [None, b"SELINUX=enforcing\n", b"# SELINUXTYPE=p\n"])
def test_without_a_named_policy_labels_go(config: bytes | None) -> None:
    """C.30: a label of the build host must not reach the machine."""
    paths: dict[str, Inode] = {"a/b": file(selinux=b"container_t"), "c": file()}
    root = tree(paths if config is None else {**paths, "etc/selinux/config": file(config)})
    assert load_policy(root, read) is None
    assert set(labels(label(root, None)).values()) == {None}


def test_a_tree_without_labels_and_policy_stays_the_same_object() -> None:
    root = tree({"a/b": file()})
    assert label(root, None) is root


def test_a_policy_that_nothing_names_is_warned_about() -> None:
    warnings: list[str] = []
    root = tree({"etc/selinux/targeted/contexts/files/file_contexts": file(b"/.* X\n")})
    assert load_policy(root, read, warn=warnings.append) is None
    assert len(warnings) == 1


def test_hard_links_stay_one_inode_while_their_labels_agree() -> None:
    shared = file(b"shared")
    root = with_policy(b"/.* X\n", {"a": shared, "b/c": shared})
    made = label(root, loaded(root))
    assert find(made, b"a") is find(made, b"b/c")


def test_hard_links_are_split_where_their_labels_differ() -> None:
    """As selabel.rs does: the first name keeps the inode, every later name that differs gets one of its own."""
    shared = file(b"shared")
    warnings: list[str] = []
    # The names in order of a walk: a/1, a/2, b, c, d. The file after the directory shows that the walk is depth first.
    root = with_policy(b"/.* X\n/a/2 Y\n/b Y\n/c X\n", {"a/1": shared, "a/2": shared, "c": shared, "b": shared})
    made = label(root, loaded(root), warnings.append)
    one, two, b, c = (find(made, path) for path in (b"a/1", b"a/2", b"b", b"c"))
    assert one is c
    assert len({id(one), id(two), id(b)}) == 3
    assert [labels(made)[path] for path in ("/a/1", "/a/2", "/b", "/c")] == [b"X", b"Y", b"Y", b"X"]
    assert warnings == ["2 hard links became files, as SELinux labels their names differently: /a/2, /b"]


def test_policy_files_are_found_through_symlinks_inside_the_image() -> None:
    root = tree(
        {
            "etc/selinux/config": Symlink(META, b"../../usr/config"),
            "usr/config": file(b"SELINUXTYPE=p\n"),
            "etc/selinux/p": Symlink(META, b"/../usr/./policy"),
            "usr/policy/contexts": Symlink(META, b"/usr/deeper"),
            "usr/deeper/files/file_contexts": file(b"/.* X\n"),
        }
    )
    assert loaded(root).label(b"/y", stat.S_IFREG) == b"X"


BROKEN: dict[str, tuple[dict[str, Inode], str]] = {
    "no file_contexts": ({}, "/etc/selinux/p/contexts/files/file_contexts is missing"),
    "a loop": ({"etc/selinux/p": Symlink(META, b"p")}, "leads through more than 40 symbolic links"),
    "a directory": (
        {"etc/selinux/p/contexts/files/file_contexts/x": file()},
        "/etc/selinux/p/contexts/files/file_contexts is not a regular file",
    ),
    "a broken line": (
        {"etc/selinux/p/contexts/files/file_contexts": file(b"\n/a(b X\n")},
        "/etc/selinux/p/contexts/files/file_contexts, line 2: ",
    ),
    "a type with a slash": ({"etc/selinux/config": file(b"SELINUXTYPE=../p\n")}, "no name of a policy: '../p'"),
    "a type that is ..": ({"etc/selinux/config": file(b"SELINUXTYPE=..\n")}, "no name of a policy: '..'"),
    "a type that is empty": ({"etc/selinux/config": file(b"SELINUXTYPE=\n")}, "no name of a policy: ''"),
    "a type that is not UTF-8": ({"etc/selinux/config": file(b"SELINUXTYPE=\xff\n")}, "is missing"),
}


@pytest.mark.parametrize(("paths", "why"), BROKEN.values(), ids=BROKEN)
def test_a_policy_that_cannot_be_read_stops_the_work(paths: dict[str, Inode], why: str) -> None:
    root = tree({"etc/selinux/config": file(b"SELINUXTYPE=p\n"), **paths})
    with pytest.raises(FormatError) as caught:
        load_policy(root, read)
    assert why in caught.value.message


def test_a_policy_file_is_not_read_when_it_is_too_large() -> None:
    huge = File(META, External(measure(b""), MAX_POLICY_FILE + 1))
    root = tree({"etc/selinux/config": file(b"SELINUXTYPE=p\n"), "etc/selinux/p/contexts/files/file_contexts": huge})
    with pytest.raises(LimitError, match="bytes, at most"):
        load_policy(root, read)


def test_deep_trees_are_labelled_without_recursion() -> None:
    depth = 3000
    root = with_policy(b"/.* X\n", {"/".join("d" * depth): file()})
    assert sum(value == b"X" for value in labels(label(root, loaded(root))).values()) > depth


def test_the_two_rule_sets_disagreements_are_named() -> None:
    """To composefs-rs, the last line that matches counts: no literal beats it, and nothing hangs in a tree."""
    root = with_policy(b"/ -- FILE\n/.* R\n/lit LIT\n/.*t LATER\n/a/b/? ODD\n", {"lit": file(), "a/b": file()})
    ours, theirs = (load_policy(root, read, rules) for rules in ("libselinux", "composefs-rs"))
    assert disagreements(root, ours, theirs) == [(b"/a/b", b"R", b"ODD"), (b"/lit", b"LIT", b"LATER")]
    assert disagreements(root, None, None) == []
    assert len(disagreements(root, ours, None)) == len(list(walk(root)))


def make_rootfs(root: Path, maker: PolicyMaker) -> None:
    """Write a root file system with a policy and names that it speaks of."""
    policy = root / "etc/selinux/p/contexts/files"
    for directory in (policy, *(root / name for name in ("usr", "boot", "sysroot", "run"))):
        directory.mkdir(parents=True)
    (root / "etc/selinux/config").write_text("SELINUXTYPE = p\nSELINUXTYPE=q\n")
    for name, data in maker.files(optional=0.6).items():
        (policy / name).write_bytes(data)
    files: list[Path] = []
    for path, kind in maker.lookups(60):
        at = root / os.fsdecode(path[1:] + maker.random.choice([b"", b"", b"", b"\n"]))
        if any(parent.is_symlink() or parent.is_file() for parent in (at, *at.parents)) or at.exists():
            continue
        at.parent.mkdir(parents=True, exist_ok=True)
        if kind == stat.S_IFDIR:
            at.mkdir()
        elif kind == stat.S_IFLNK:
            at.symlink_to("target")
        elif files and maker.random.random() < 0.3:
            at.hardlink_to(maker.random.choice(files))
        else:
            at.write_bytes(b"")
            files.append(at)
    for at_directory, names, others in os.walk(root):
        for name in (".", *names, *others):
            os.utime(Path(at_directory, name), (1000, 1000), follow_symlinks=False)


@pytest.mark.parametrize("seed", range(40))
def test_made_up_policies_give_the_dump_of_composefs_rs(seed: int, tmp_path: Path) -> None:
    """P.4 by the rules of composefs-rs: hard links, substitutions and order of files are its own."""
    root = tmp_path / "root"
    make_rootfs(root, PolicyMaker(Random(seed), every_version=seed % 2 == 0))
    objects = {measure(at.read_bytes()): at.read_bytes() for at in (root / "etc").rglob("*") if at.is_file()}

    def read_object(inode: File) -> bytes:
        assert not isinstance(inode.content, External) or inode.content.digest in objects
        return objects[inode.content.digest] if isinstance(inode.content, External) else read(inode)

    def dump(*options: str) -> bytes:
        argv = ["--hash", "sha256", "create-dumpfile", *options, str(root)]
        return subprocess.run([program("cfsctl"), *argv], check=True, capture_output=True).stdout

    plain = parse_dumpfile(dump())
    policy = load_policy(plain, read_object, "composefs-rs")
    assert b"".join(write_dumpfile(label(plain, policy))) == dump("--bootable")
