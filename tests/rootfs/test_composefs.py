"""Images and their witnesses: mkcomposefs and composefs-info of composefs-rs 0.9, and erofs-utils."""

import os
import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from oci2boot.digest import External, VerityDigest
from oci2boot.errors import Error, FormatError, LimitError
from oci2boot.rootfs import composefs
from oci2boot.rootfs.composefs import build_rootfs, default_c_version
from oci2boot.rootfs.inodes import DEPTH_MAX, Version
from oci2boot.tree.dumpfile import write_dumpfile
from oci2boot.tree.model import Device, Directory, File, Inode, Metadata, Sparse, Special, Symlink
from tests.rootfs.trees import trees
from tests.witness import program

VERSIONS: tuple[Version, ...] = (0, 1, 2)
META = Metadata(mode=0o755)
DIGEST = VerityDigest("sha256", bytes(range(32)))
witnessed = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def tree(**entries: Inode) -> Directory:
    return Directory(META, {name.encode(): inode for name, inode in entries.items()})


def cfsctl_as(name: str, directory: Path, *words: str | Path) -> str:
    """Run cfsctl under another of its names."""
    link = directory / name
    if not link.exists():
        link.symlink_to(program("cfsctl"))
    done = subprocess.run([link, *words], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def mkcomposefs(tree: Directory, version: int, directory: Path) -> bytes:
    dump, image = directory / "dump", directory / "image"
    dump.write_bytes(b"".join(write_dumpfile(tree)))
    cfsctl_as("mkcomposefs", directory, "--from-file", f"--min-version={version}", dump, image)
    return image.read_bytes()


@witnessed
@given(tree=trees())
def test_random_trees_get_the_bytes_of_mkcomposefs(tree: Directory, tmp_path: Path) -> None:
    """P.3, C.24, D.6."""
    assert build_rootfs(tree, 0).image == mkcomposefs(tree, 0, tmp_path)
    assert build_rootfs(tree, 1).image == mkcomposefs(tree, 1, tmp_path)


def test_tails_that_end_with_their_block_get_the_bytes_of_mkcomposefs(tmp_path: Path) -> None:
    """Inodes and tails of 64 bytes, so that at the end of each block one fits exactly."""
    exact = tree(**{f"{number:03}": File(META, bytes(32)) for number in range(300)})
    assert build_rootfs(exact).image == mkcomposefs(exact, 1, tmp_path)


def test_an_inode_of_many_names_gets_the_bytes_of_mkcomposefs(tmp_path: Path) -> None:
    """A compact inode counts to 65535."""
    for names in (65535, 65536):
        linked = File(META, b"x")
        many = tree(**{str(number): linked for number in range(names)})
        assert build_rootfs(many).image == mkcomposefs(many, 1, tmp_path)


def test_a_shared_digest_of_zeros_gets_the_bytes_of_mkcomposefs(tmp_path: Path) -> None:
    """Zeros also stand where each file's own digest is put in."""
    zeros = External(VerityDigest("sha256", bytes(32)), 1)
    shared = tree(a=File(META, zeros), b=File(META, zeros), c=File(META, External(DIGEST, 1)))
    assert build_rootfs(shared).image == mkcomposefs(shared, 1, tmp_path)


def test_v2_of_a_directory_is_that_of_cfsctl(tmp_path: Path) -> None:
    """Inodes of 64 bytes with tails of 30 to 66, of which some end with their block, and xattrs."""
    root = tmp_path / "root"
    root.mkdir()
    entries: dict[bytes, Inode] = {}
    for number in range(400):
        content = bytes(number % 64 + 1) if number < 200 else bytes(64)
        path = root / f"{number:03}"
        path.write_bytes(content)
        os.utime(path, (1000, 1000))
        entries[path.name.encode()] = File(Metadata(mode=0o644, uid=os.getuid(), gid=os.getgid(), mtime=1000), content)
        path.chmod(0o644)
    root.chmod(0o755)
    os.utime(root, (2000, 2000))
    ours = build_rootfs(Directory(Metadata(mode=0o755, uid=os.getuid(), gid=os.getgid(), mtime=2000), entries), 2)
    words = ("--hash", "sha256", "--erofs-version", "2", "compute-id", "--no-propagate-usr-to-root", str(root))
    said = subprocess.run([program("cfsctl"), *words], check=True, capture_output=True, text=True).stdout
    assert said.strip() == str(ours.digest)


@witnessed
@given(tree=trees(whiteouts=False))
def test_composefs_info_reads_the_tree_back_from_every_format(tree: Directory, tmp_path: Path) -> None:
    """D.7."""
    text = b"".join(write_dumpfile(tree)).decode()
    image = tmp_path / "image"
    for version in VERSIONS:
        image.write_bytes(build_rootfs(tree, version).image)
        # V2 has no nanoseconds.
        wanted = re.sub(r"(?m)^((?:\S+ ){7}-?\d+)\.\d+", r"\1.0", text) if version == 2 else text
        assert cfsctl_as("composefs-info", tmp_path, "dump", image) == wanted


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tree=trees(whiteouts=False))
def test_fsck_erofs_finds_no_fault(tree: Directory, tmp_path: Path) -> None:
    image = tmp_path / "image"
    for version in VERSIONS:
        image.write_bytes(build_rootfs(tree, version).image)
        done = subprocess.run([program("fsck.erofs"), image], check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("version", VERSIONS)
def test_dump_erofs_agrees(version: Version, tmp_path: Path) -> None:
    file = File(Metadata(mode=0o640, uid=70000, gid=5, mtime=1_700_000_000), b"hello")
    rootfs = build_rootfs(tree(d=tree(first=file, second=file)), version)
    image = tmp_path / "image"
    image.write_bytes(rootfs.image)

    def dump(*words: str) -> str:
        return subprocess.run(
            [program("dump.erofs"), *words, image], check=True, capture_output=True, text=True, env={"TZ": "UTC"}
        ).stdout

    whole = dump("-s")
    assert re.search(rf"inode count: +{rootfs.inodes}\n", whole)
    assert re.search(rf"blocks: +{len(rootfs.image) // 4096}\n", whole)
    one = dump("--path=/d/second")
    assert re.search(r"Size: 5 +On-disk size: 5 +regular file", one)
    assert re.search(r"Links: 2 ", one)
    assert re.search(r"Uid: 70000 +Gid: 5 +Access: 0640", one)
    assert "2023-11-14 22:13:20" in one


def test_a_tree_gives_one_image_whatever_the_order_of_its_entries() -> None:
    """C.24."""
    entries: dict[bytes, Inode] = {b"%d" % number: File(META, b"%d" % number) for number in range(50)}
    backwards = dict(reversed(entries.items()))
    for version in VERSIONS:
        assert build_rootfs(Directory(META, entries), version) == build_rootfs(Directory(META, backwards), version)


def test_a_whiteout_is_escaped_and_makes_c_mkcomposefs_choose_v1() -> None:
    """D.6."""
    with_whiteout = tree(d=tree(gone=Device(META, 0o020000, 0)))
    assert default_c_version(with_whiteout) == 1
    assert default_c_version(tree(d=tree(null=Device(META, 0o020000, 0x103)))) == 0
    image = build_rootfs(with_whiteout).image
    assert image.count(b"overlay.overlay.whiteouts") == 1
    assert image.count(b"overlay.opaquey") == 1  # of the root, and real
    assert image.count(b"overlay.overlay.opaquex") == 1


DEEP = tree()
for _ in range(DEPTH_MAX):
    DEEP = tree(d=DEEP)

BAD: dict[str, tuple[Directory, type[Error], str]] = {
    "slash": (tree(**{"a/b": File(META, b"")}), FormatError, "^/: a name"),
    "dots": (tree(d=tree(**{"..": File(META, b"")})), FormatError, "^/d: a name"),
    "long name": (tree(**{"n" * 256: File(META, b"")}), LimitError, "longer than 255"),
    "depth": (DEEP, LimitError, "2048 deep"),
    "mode": (tree(f=File(Metadata(mode=0o100644), b"")), FormatError, "^/f: mode"),
    "uid": (tree(f=File(Metadata(mode=0, uid=2**32), b"")), FormatError, "uid 4294967296"),
    "negative gid": (tree(f=File(Metadata(mode=0, gid=-1), b"")), FormatError, "gid -1"),
    "nanoseconds": (tree(f=File(Metadata(mode=0, mtime_nsec=10**9), b"")), FormatError, "ns is out of range"),
    "seconds": (tree(f=File(Metadata(mode=0, mtime=2**63), b"")), FormatError, "out of range"),
    "inline": (tree(f=File(META, bytes(5001))), LimitError, "5001 bytes"),
    "file size": (tree(f=File(META, Sparse(2**53 + 1))), LimitError, "9007199254740993 bytes"),
    "empty target": (tree(s=Symlink(META, b"")), FormatError, "^/s: a symlink's target"),
    "NUL in target": (tree(s=Symlink(META, b"a\0b")), FormatError, "NUL"),
    "long target": (tree(s=Symlink(META, b"t" * 4096)), LimitError, "4096 bytes"),
    "device number": (tree(c=Device(META, 0o020000, 2**32)), FormatError, "32 bits"),
    "other digest": (
        tree(f=File(META, External(VerityDigest("sha512", bytes(64)), 9))),
        FormatError,
        "has a sha512 digest, the image is for sha256",
    ),
    "xattr name": (
        tree(p=Special(Metadata(mode=0, xattrs={b"user." + b"x" * 251: b""}), 0o010000)),
        FormatError,
        "xattr",
    ),
    "xattr value": (
        tree(p=Special(Metadata(mode=0, xattrs={b"user.x": bytes(65536)}), 0o010000)),
        FormatError,
        "65536 bytes",
    ),
    "xattrs": (
        tree(p=Special(Metadata(mode=0, xattrs={b"user.x": bytes(20000), b"user.y": bytes(20000)}), 0o010000)),
        LimitError,
        "has 32767",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_no_image_can_hold_is_refused(name: str) -> None:
    bad, error, words = BAD[name]
    with pytest.raises(error, match=words):
        build_rootfs(bad)


def test_v2_refuses_what_composefs_rs_refuses_or_spoils() -> None:
    for bad, words in (
        (tree(f=File(META, bytes(513))), "513 bytes"),
        (tree(s=Symlink(META, b"t" * 1025)), "1025 bytes"),
        (tree(c=Device(META, 0o020000, 0)), "0:0"),
    ):
        with pytest.raises(Error, match=words):
            build_rootfs(bad, 2)


def test_a_whiteout_with_two_names_is_refused() -> None:
    whiteout = Device(META, 0o020000, 0)
    with pytest.raises(FormatError, match=r"^/b: .*second name"):
        build_rootfs(tree(a=whiteout, b=whiteout))


def test_an_image_over_the_limit_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(composefs, "IMAGE_MAX", 16383)
    with pytest.raises(LimitError, match="would be 16384 bytes"):
        build_rootfs(tree())
