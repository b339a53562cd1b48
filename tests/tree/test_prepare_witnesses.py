"""One image with everything that is awkward and valid, as cfsctl (composefs-rs 0.9) and umoci make it."""

import os
import stat
import subprocess
from pathlib import Path

import pytest

from oci2boot.formats.tar import read_tar
from oci2boot.tree.dumpfile import write_dumpfile
from oci2boot.tree.merge import merge
from oci2boot.tree.model import Directory, File, Symlink, file_type, walk
from oci2boot.tree.prepare import Xattrs, prepare, prepare_for_boot
from tests.oci.layouts import Layout
from tests.tarballs import (
    END,
    GNU,
    MemorySource,
    base256,
    directory,
    file,
    gnu_long,
    hard_link,
    header,
    pax,
    symlink,
)
from tests.witness import program

ATTRIBUTES = tuple(
    (b"SCHILY.xattr." + name, b"\x01\0\xff")
    for name in (b"security.capability", b"security.selinux", b"user.a b", b"trusted.overlay.opaque")
)
BIG = bytes(range(256)) * 20

BASE = (
    directory(b"./", mode=0o700, uid=7),
    pax((b"mtime", b"1700000000.123456789"), *ATTRIBUTES) + directory(b"usr/", mode=0o751),
    directory(b"boot", mode=0o700) + file(b"boot/vmlinuz", BIG) + directory(b"sysroot") + directory(b"run"),
    file(b"run/x") + directory(b"etc") + file(b"/etc//./a", b"a", uid=b"   12 \0\0", mode=0o106755),
    pax(*ATTRIBUTES) + file(b"usr/tool", BIG, mode=0o4755),
    pax((b"uid", b"3000000000"), (b"path", "usr/ünï\n=\\ x".encode()), (b"mtime", b"5.5")) + file(b"x", b"\0\n\\="),
    pax((b"path", b"usr/again"), (b"path", b"usr/twice"), (b"comment", b"x")) + file(b"x", BIG[:65]),
    gnu_long(b"L", b"usr/" + b"n" * 200) + gnu_long(b"K", b"t/" * 100) + symlink(b"x", b"y", magic=GNU),
    file(b"usr/\xff\xfe", b"z" * 64, flag=b"7", gid=base256(0xFFFFFFFF, 8), mtime=base256(1 << 34, 12)),
    hard_link(b"etc/hard", b"./usr/tool", mode=0, uid=9)
    + gnu_long(b"K", b"/usr/" + b"n" * 200)
    + hard_link(b"etc/soft", b"", magic=GNU),
    file(b"name", b"p", prefix=b"etc")
    + directory(b"gone")
    + file(b"gone/x")
    + directory(b"opaque")
    + file(b"opaque/low"),
    pax((b"path", b"x"), flag=b"g") + file(b"etc/after-global"),
    END + b"whatever follows",
)
UPPER = (
    file(b".wh.gone") + file(b"opaque/.wh..wh..opq") + file(b"opaque/high", b"h") + file(b"etc/.wh.none"),
    directory(b"etc", mode=0o711, mtime=4000) + symlink(b"etc/a", b"tool") + file(b"etc/hard", b"own"),
    END + bytes(9216),
)
DEVICES = header(b"etc/c", b"3", major=5, minor=300) + header(b"etc/w", b"3") + header(b"etc/p", b"6")
LAYERS = b"".join(BASE[:-1]) + DEVICES + BASE[-1], b"".join(UPPER)


def layout(where: Path, *layers: bytes) -> Path:
    made = Layout(where)
    made.tag(made.image([made.layer(layer) for layer in layers]))
    return where


def merged(*layers: bytes) -> Directory:
    return merge((read_tar(MemorySource(layer)) for layer in layers), lambda _: None)


def run(*argv: str | Path) -> str:
    done = subprocess.run([program(str(argv[0])), *argv[1:]], check=False, capture_output=True)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    return done.stdout.decode()


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("cfsctl")
    source = layout(where / "image", *LAYERS)
    run("cfsctl", "--repo", where / "repo", "init", "--insecure", "--algorithm", "fsverity-sha256-12")
    run("cfsctl", "--repo", where / "repo", "oci", "pull", f"oci:{source}:v", "v")
    return where / "repo"


@pytest.mark.parametrize(
    ("xattrs", "option"), [("allowlist-only", "allowlist-only"), ("keep-user", "keep-user-xattrs")]
)
def test_the_plain_form_is_what_cfsctl_dumps(repository: Path, xattrs: Xattrs, option: str) -> None:
    wanted = run("cfsctl", "--repo", repository, "oci", "dump", "--xattrs", option, "v")
    assert b"".join(write_dumpfile(prepare(merged(*LAYERS), xattrs))).decode() == wanted


def test_the_bootable_form_is_what_cfsctl_dumps(repository: Path) -> None:
    """C.2, D.14; the nanoseconds of /usr reach /, /run, /boot and /sysroot."""
    wanted = run("cfsctl", "--repo", repository, "oci", "dump", "--bootable", "v")
    assert wanted.count(" 1700000000.123456789 ") == 5
    assert b"".join(write_dumpfile(prepare_for_boot(merged(*LAYERS), lambda _: None))).decode() == wanted


def test_layers_become_the_files_that_umoci_unpacks(tmp_path: Path) -> None:
    base = b"".join(
        part
        for part in BASE
        if b"trusted.overlay" not in part and b"after-global" not in part and b"\xff\xfe" not in part
    )
    base = directory(b"usr") + file(b"usr/tool", BIG) + base
    source = layout(tmp_path / "image", base, b"".join(UPPER))
    run("umoci", "raw", "unpack", "--rootless", "--image", f"{source}:v", tmp_path / "out")
    root = os.fsencode(tmp_path / "out")
    found = {}
    for path, inode in walk(merged(base, b"".join(UPPER))):
        status = os.lstat(root + path)
        assert stat.S_IFMT(status.st_mode) == file_type(inode)
        found[path] = inode
        if path == b"/":
            continue
        assert status.st_mtime_ns == inode.meta.mtime * 10**9 + inode.meta.mtime_nsec
        if isinstance(inode, Symlink):
            assert os.readlink(root + path) == inode.target  # noqa: PTH115 — pathlib drops a slash at the end
            continue
        assert stat.S_IMODE(status.st_mode) == inode.meta.mode
        if isinstance(inode, File):
            assert status.st_size == inode.size
    there = {top[len(root) :] + b"/" + name for top, dirs, files in os.walk(root) for name in dirs + files}
    assert there == found.keys() - {b"/"}
