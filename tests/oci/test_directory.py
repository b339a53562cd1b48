"""A directory as a tree: the same as `cfsctl create-dumpfile` sees, file by file."""

import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from oci2boot.digest import Hash, VerityDigest
from oci2boot.errors import Error, LimitError, SourceError
from oci2boot.formats.fsverity import Hasher
from oci2boot.oci import directory
from oci2boot.oci.directory import Keep, scan
from oci2boot.tree.dumpfile import write_dumpfile
from oci2boot.tree.model import Device, Directory, File, Special, Symlink, find
from tests.witness import program


def keeping(algorithm: Hash = "sha256") -> Keep:
    def keep(pieces: Iterator[bytes]) -> VerityDigest:
        hasher = Hasher(algorithm)
        for piece in pieces:
            hasher.update(piece)
        return hasher.digest()

    return keep


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Every kind of inode, odd names and times."""
    root = tmp_path / "root"
    (root / "usr/bin").mkdir(parents=True)
    (root / "usr/bin/small").write_bytes(b"x" * 64)
    (root / "usr/bin/large").write_bytes(b"x" * 65)
    (root / "usr/bin/huge").write_bytes(os.urandom(3_000_001))
    (root / "usr/bin/empty").touch()
    (root / "usr/bin/small").chmod(0o4755)
    (root / "usr/link").symlink_to("/nowhere\n")
    (root / "usr/fifo").touch()
    os.link(root / "usr/bin/large", root / "usr/large-too")
    os.link(root / "usr/link", root / "usr/link-too", follow_symlinks=False)
    (root / "usr/fifo").unlink()
    os.mkfifo(root / "usr/fifo", 0o600)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(root / "s"))
    Path(os.fsdecode(bytes(root) + b"/\xff\xfe \\\n")).write_bytes(b"\0\xff")
    (root / "deep" / "/".join("d" * 100)).mkdir(parents=True)
    os.setxattr(root / "usr", "user.dir", b"\0\xff")
    os.setxattr(root / "usr/bin/large", "user.empty", b"")
    os.utime(root / "usr/bin/small", ns=(0, 1_600_000_000_123_456_789))
    os.utime(root / "usr/bin/empty", ns=(0, -1_500_000_000))
    return root


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_a_scan_is_what_composefs_rs_sees(root: Path, algorithm: Hash) -> None:
    """C.28: not tied to OCI, the same from a plain directory."""
    if os.getuid() == 0:
        os.mknod(root / "char", stat.S_IFCHR | 0o600, os.makedev(1, 300))
        os.mknod(root / "block", stat.S_IFBLK | 0o640, os.makedev(259, 70_000))
        os.setxattr(root / "usr/link", "trusted.x", b"y", follow_symlinks=False)
        os.chown(root / "usr/bin/large", 70_000, 3_000_000_000)
    argv = [program("cfsctl"), "--hash", algorithm, "create-dumpfile", "--no-propagate-usr-to-root", str(root)]
    expected = subprocess.run(argv, check=True, capture_output=True).stdout
    assert b"".join(write_dumpfile(scan(root, keeping(algorithm)))) == expected


def test_a_tree_has_its_kinds_and_its_hard_links(root: Path) -> None:
    tree = scan(root, keeping())
    assert find(tree, b"/usr/bin/large") is find(tree, b"/usr/large-too")
    assert find(tree, b"/usr/link") is find(tree, b"/usr/link-too")
    kinds = {b"usr": Directory, b"usr/link": Symlink, b"usr/fifo": Special, b"s": Special, b"usr/bin/huge": File}
    for path, kind in kinds.items():
        assert isinstance(find(tree, path), kind)
    small = find(tree, b"/usr/bin/small")
    assert isinstance(small, File)
    assert (small.content, small.meta.mode) == (b"x" * 64, 0o4755)
    usr = find(tree, b"/usr")
    assert usr
    assert dict(usr.meta.xattrs) == {b"user.dir": b"\0\xff"}
    assert not any(isinstance(inode, Device) for inode in tree.entries.values())


def test_a_root_that_is_named_by_a_link_is_entered(root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(root)
    assert b"usr" in scan(tmp_path / "link", keeping()).entries


@pytest.mark.parametrize("name", ["nowhere", "root/usr/bin/small"])
def test_what_is_no_directory_is_said_so(tmp_path: Path, name: str) -> None:
    with pytest.raises(SourceError, match=f"{name} cannot be read"):
        scan(tmp_path / name, keeping())


@pytest.mark.parametrize("change", ["longer", "shorter", "same size"])
def test_a_file_that_changes_while_it_is_read_is_an_error(root: Path, change: str) -> None:
    path = root / "usr/bin/huge"

    def keep(pieces: Iterator[bytes]) -> VerityDigest:
        for _ in pieces:
            with path.open("r+b") as file:
                if change == "longer":
                    file.seek(0, os.SEEK_END)
                    file.write(b"x")
                elif change == "shorter":
                    file.truncate(1 << 20)
                else:
                    file.write(b"y")
        return VerityDigest("sha256", bytes(32))

    (root / "usr/bin/large").unlink()
    (root / "usr/large-too").unlink()
    with pytest.raises(SourceError, match="huge changed while it was read"):
        scan(root, keep)


def test_an_error_of_who_keeps_the_files_comes_through(root: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))

    def keep(_: Iterator[bytes]) -> VerityDigest:
        raise Error("no space left")

    with pytest.raises(Error, match="no space left"):
        scan(root, keep)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


UNREADABLE = """
import sys, os
from pathlib import Path
from oci2boot.oci.directory import scan
from oci2boot.errors import SourceError
os.setgroups([]); os.setgid(65534); os.setuid(65534)
try:
    scan(Path(sys.argv[1]), lambda pieces: 1 / 0)
except SourceError as error:
    print(error.message, "|", error.hint)
"""


def test_a_file_that_may_not_be_read_is_named_with_a_hint(tmp_path: Path) -> None:
    """As nobody when the tests run as root, who may read anything."""
    root = tmp_path / "root"
    root.mkdir(mode=0o755)
    (root / "shadow").write_bytes(b"x" * 100)
    (root / "shadow").chmod(0)
    script = (
        UNREADABLE if os.getuid() == 0 else "\n".join(line for line in UNREADABLE.splitlines() if "setuid" not in line)
    )
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.getuid() and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o711)
    done = subprocess.run([sys.executable, "-c", script, root], capture_output=True, text=True, check=False)
    assert f"{root}/shadow cannot be read: Permission denied | run it as root" in done.stdout, done.stderr


@pytest.mark.parametrize("change", ["a link", "gone"])
def test_a_directory_that_becomes_a_link_is_not_entered(tmp_path: Path, change: str) -> None:
    """Between the look at a name and its opening somebody may put another thing there."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret").write_bytes(b"of this machine")
    (tmp_path / "root/later").mkdir(parents=True)
    (tmp_path / "root/now").write_bytes(b"x" * 100)

    def keep(pieces: Iterator[bytes]) -> VerityDigest:
        (tmp_path / "root/later").rmdir()
        if change == "a link":
            (tmp_path / "root/later").symlink_to(tmp_path / "outside")
        return keeping()(pieces)

    with pytest.raises(SourceError, match="later cannot be read"):
        scan(tmp_path / "root", keep)


def test_what_is_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a/b/c").mkdir(parents=True)
    with pytest.raises(LimitError, match="more than 2 files"):
        scan(tmp_path, keeping(), max_files=2)
    monkeypatch.setattr(directory, "MAX_DEPTH", 2)
    with pytest.raises(LimitError, match="a/b/c is more than 2 directories deep"):
        scan(tmp_path, keeping())
    (tmp_path / "a/b/c").rmdir()
    (tmp_path / "a/large").write_bytes(bytes(4097))
    monkeypatch.setattr(directory, "MAX_FILE_SIZE", 4096)
    with pytest.raises(LimitError, match="large has 4097 bytes, 4096 are allowed"):
        scan(tmp_path, keeping())
