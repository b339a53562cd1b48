"""Archives of Python's tarfile and of GNU tar, read as tarfile reads them."""

import hashlib
import io
import os
import shutil
import stat
import subprocess
import tarfile
from pathlib import Path

import pytest

from oci2boot.digest import External
from oci2boot.formats.tar import HARD_LINK, read_tar
from tests.tarballs import (
    MemorySource,
    with_tarfile,
)

ODD_NAMES = [
    b"plain",
    b"\xff\xfe",
    "ünï".encode(),
    b"n" * 101,
    b"d" * 90 + b"/" + b"e" * 90,
    b"a" * 200 + b"/" + b"b" * 200,
]


def members() -> list[tuple[tarfile.TarInfo, bytes]]:
    found = []
    for number, raw in enumerate(ODD_NAMES):
        info = tarfile.TarInfo(os.fsdecode(raw))
        info.mode, info.uid, info.gid, info.mtime = 0o4755, number * 1_000_000, 3_000_000_000, 1_600_000_000 + number
        found.append((info, bytes(number * 40)))
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
        info = tarfile.TarInfo("link" + kind.decode())
        info.type, info.linkname = kind, "t" * 150
        found.append((info, b""))
    for kind in (tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE):
        info = tarfile.TarInfo("type" + kind.decode())
        info.type, info.devmajor, info.devminor = kind, 8, 300
        found.append((info, b""))
    return found


Row = tuple[bytes, int, int, int, int, int, bytes, bytes, int]


def as_tarfile_reads(data: bytes) -> list[Row]:
    """What Python's tarfile makes of an archive, in our terms."""
    kinds = {
        **dict.fromkeys((tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE), stat.S_IFREG),
        tarfile.LNKTYPE: HARD_LINK,
        tarfile.SYMTYPE: stat.S_IFLNK,
        tarfile.DIRTYPE: stat.S_IFDIR,
        tarfile.CHRTYPE: stat.S_IFCHR,
        tarfile.BLKTYPE: stat.S_IFBLK,
        tarfile.FIFOTYPE: stat.S_IFIFO,
    }
    found: list[Row] = []
    with tarfile.open(fileobj=io.BytesIO(data), errors="surrogateescape", encoding="utf-8") as archive:
        for info in archive:
            reader = archive.extractfile(info) if info.isreg() else None
            path = os.fsencode(info.name).removeprefix(b"./")
            content = hashlib.sha256(reader.read() if reader else b"").digest()
            link = os.fsencode(info.linkname) if info.type in (tarfile.LNKTYPE, tarfile.SYMTYPE) else b""
            rdev = os.makedev(info.devmajor, info.devminor) if info.type in (tarfile.CHRTYPE, tarfile.BLKTYPE) else 0
            link = link.removeprefix(b"./") if info.type == tarfile.LNKTYPE else link
            path = b"" if path == b"." else path
            kind = kinds[info.type]
            found.append((path, kind, info.mode & 0o7777, info.uid, info.gid, int(info.mtime), content, link, rdev))
    return found


def as_we_read(data: bytes) -> list[Row]:
    source = MemorySource(data)
    found: list[Row] = []
    for path, kind, mode, uid, gid, mtime, _, _, content, link, rdev in read_tar(source):
        body = source.objects[content.digest.hex] if isinstance(content, External) else content
        found.append((path, kind, mode, uid, gid, mtime, hashlib.sha256(body).digest(), link, rdev))
    return found


@pytest.mark.parametrize("tar_format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_what_tarfile_writes_is_read_as_tarfile_reads_it(tar_format: int) -> None:
    data = with_tarfile(members(), tar_format)
    assert as_we_read(data) == as_tarfile_reads(data)


@pytest.fixture(scope="module")
def odd_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("odd")
    for number, raw in enumerate(ODD_NAMES):
        path = Path(os.fsdecode(os.fsencode(root) + b"/" + raw))
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"content" * number * 10)
        path.chmod(0o4711 if number % 2 else 0o600)
        os.utime(path, ns=(0, (1_500_000_000 + number) * 10**9 + 123_456_789 * number))
    os.link(root / "plain", root / "zz-hard")
    (root / "sym").symlink_to("t" * 180)
    os.mkfifo(root / "fifo")
    (root / "dir").mkdir(mode=0o1777)
    return root


@pytest.mark.parametrize("tar_format", ["pax", "gnu", "oldgnu", "ustar", "v7"])
def test_what_gnu_tar_writes_is_read_as_tarfile_reads_it(odd_tree: Path, tar_format: str) -> None:
    assert shutil.which("tar")
    argv: list[str | Path] = [
        "tar",
        "-c",
        f"--format={tar_format}",
        "--sort=name",
        "--owner=big:2000000",
        "--group=g:7",
        "-C",
        odd_tree,
        ".",
    ]
    if tar_format in ("ustar", "v7"):
        long = ["./" + os.fsdecode(name.partition(b"/")[0]) for name in ODD_NAMES if len(name) > 98]
        argv[1:1] = [*(f"--exclude={name}" for name in long), "--exclude=./sym"]
    if tar_format == "v7":
        argv[1:1] = ["--exclude=./fifo", "--no-recursion"]
        argv[-1:] = ["plain", "zz-hard"]
    data = subprocess.run(argv, check=True, capture_output=True).stdout
    ours = as_we_read(data)
    assert ours == as_tarfile_reads(data)
    assert len(ours) >= 2
    if tar_format == "pax":
        found = {entry.path: entry for entry in read_tar(MemorySource(data))}
        status = (odd_tree / "plain").stat()
        for raw in ODD_NAMES:
            status = Path(os.fsdecode(os.fsencode(odd_tree) + b"/" + raw)).stat()
            assert found[raw].mtime * 10**9 + found[raw].mtime_nsec == status.st_mtime_ns
