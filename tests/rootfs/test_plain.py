"""An EROFS image with its data, judged by erofs-utils: fsck.erofs takes every file out, dump.erofs reads inodes."""

import os
import re
import stat
import subprocess
from pathlib import Path
from uuid import UUID

import pytest

from oci2boot.digest import External
from oci2boot.errors import Error, FormatError
from oci2boot.formats.erofs.structs import BLOCK
from oci2boot.rootfs.plain import PlainImage, plan_plain
from oci2boot.tree.model import Device, Directory, File, Inode, Metadata, Sparse, Symlink, walk
from tests.boot import debian
from tests.rootfs.plain import Contents, every_kind, stored
from tests.witness import program

IMAGE_UUID = UUID("01234567-89ab-cdef-0123-456789abcdef")


def write(image: PlainImage, contents: Contents, path: Path) -> Path:
    with path.open("wb") as file:
        for piece in image.pieces(lambda external: [contents[external]]):
            file.write(piece)
    assert path.stat().st_size == image.size
    return path


@pytest.fixture(scope="module")
def contents() -> Contents:
    return {}


@pytest.fixture(scope="module")
def tree(contents: Contents) -> Directory:
    return every_kind(contents)


@pytest.fixture(scope="module")
def image(tree: Directory, contents: Contents, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(plan_plain(tree, IMAGE_UUID, "root"), contents, tmp_path_factory.mktemp("plain") / "root.erofs")


def test_every_file_comes_out_of_it(tree: Directory, contents: Contents, image: Path, tmp_path: Path) -> None:
    """K0.1, D.7"""
    out = tmp_path / "out"
    words = ["--extract=" + str(out), "--xattrs", *([] if os.geteuid() == 0 else ["--no-xattrs"])]
    done = subprocess.run([debian.erofs_utils("fsck.erofs"), *words, image], check=False, capture_output=True)
    assert done.returncode == 0, done.stderr
    links: dict[int, int] = {}
    for path, inode in walk(tree):
        if path == b"/":
            continue
        there = os.fsencode(out) + path
        found = os.lstat(there)
        assert links.setdefault(id(inode), found.st_ino) == found.st_ino
        match inode:
            case File(content=External() as content):
                assert Path(os.fsdecode(there)).read_bytes() == contents[content], path
            case File(content=bytes() as data):
                assert Path(os.fsdecode(there)).read_bytes() == data, path
            case Symlink():
                assert os.readlink(there) == inode.target  # noqa: PTH115 (bytes)
        if os.geteuid() == 0:
            assert stat.S_IMODE(found.st_mode) == (0o777 if isinstance(inode, Symlink) else inode.meta.mode), path
            assert (found.st_uid, found.st_gid) == (inode.meta.uid, inode.meta.gid), path
            if not isinstance(inode, Symlink):
                wanted = {name: value for name, value in inode.meta.xattrs.items() if name != b"security.capability"}
                names = [name.encode() for name in os.listxattr(there, follow_symlinks=False)]
                values = {name: os.getxattr(there, name, follow_symlinks=False) for name in names}
                assert {name: values.get(name) for name in wanted} == wanted, path
            if isinstance(inode, Device):
                assert found.st_rdev == os.makedev(
                    inode.rdev >> 8 & 0xFFF, inode.rdev & 0xFF | inode.rdev >> 12 & ~0xFF
                )


def dumped(image: Path, path: str) -> dict[str, str]:
    text = subprocess.check_output([debian.erofs_utils("dump.erofs"), f"--path={path}", image], text=True)
    found = dict(re.findall(r"(\w+): +([^\s]+)", text))
    return {"links": found["Links"], "uid": found["Uid"], "gid": found["Gid"], "mode": found["Access"].split("/")[0]}


def test_inodes_read_as_the_tree_has_them(image: Path) -> None:
    assert dumped(image, "/files/link-2") == {"links": "2", "uid": "1000", "gid": "70000", "mode": "0644"}
    assert dumped(image, "/many")["links"] == "2"
    assert dumped(image, "/")["links"] == "6"


def test_the_superblock_says_what_it_is(image: Path) -> None:
    text = subprocess.check_output([debian.erofs_utils("dump.erofs"), "-s", image], text=True)
    assert str(IMAGE_UUID) in text
    assert int(re.search(r"blocks: +(\d+)", text)[1]) * BLOCK == image.stat().st_size  # type: ignore[index]


def test_an_older_checker_takes_it_too(image: Path) -> None:
    subprocess.run([program("fsck.erofs"), image], check=True, capture_output=True)


def test_equal_files_lie_in_it_once(contents: Contents) -> None:
    same = stored(contents, b"same" * 100_000)
    once = plan_plain(Directory(Metadata(mode=0o755), {b"a": File(Metadata(mode=0), same)}), IMAGE_UUID)
    twice = plan_plain(
        Directory(Metadata(mode=0o755), {b"a": File(Metadata(mode=0), same), b"b": File(Metadata(mode=0), same)}),
        IMAGE_UUID,
    )
    assert twice.size == once.size


@pytest.mark.parametrize(
    ("inode", "words"),
    [
        (File(Metadata(mode=0o644), Sparse(5)), "no content"),
        (File(Metadata(mode=0o10644), b""), "out of range"),
        (File(Metadata(mode=0o644, xattrs={b"user.x": bytes(70000)}), b""), "cannot be stored"),
        (File(Metadata(mode=0o644, xattrs={b"user.x": bytes(5000)}), b""), "at most 4096"),
    ],
)
def test_what_it_cannot_hold_is_refused(inode: Inode, words: str) -> None:
    with pytest.raises(Error, match=words):
        plan_plain(Directory(Metadata(mode=0o755), {b"f": inode}), IMAGE_UUID)


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"a\0b", b"x" * 256])
def test_a_name_that_is_none_is_refused(name: bytes) -> None:
    with pytest.raises(FormatError, match="not a file name"):
        plan_plain(Directory(Metadata(mode=0o755), {name: File(Metadata(mode=0o644), b"")}), IMAGE_UUID)


def test_content_of_another_size_is_refused(contents: Contents) -> None:
    external = stored(contents, b"a" * 5000)
    image = plan_plain(Directory(Metadata(mode=0o755), {b"f": File(Metadata(mode=0o644), external)}), IMAGE_UUID)
    with pytest.raises(FormatError, match="has 4999 bytes, the tree says 5000"):
        list(image.pieces(lambda _: [b"a" * 4999]))
