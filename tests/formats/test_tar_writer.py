"""Archives that we write, as GNU tar, Python's tarfile and our own strict reader take them."""

import gzip as python_gzip
import io
import os
import stat
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oci2boot.digest import External
from oci2boot.errors import FormatError
from oci2boot.formats.fsverity import measure
from oci2boot.formats.gzip import store
from oci2boot.formats.tar import HARD_LINK, NO_XATTRS, Entry
from oci2boot.formats.tar_writer import write_tar
from tests.tarballs import entries
from tests.witness import program


def entry(path: bytes, kind: int = stat.S_IFREG, **fields: object) -> Entry:
    plain = Entry(path, kind, 0o644, 0, 0, 1000, 0, NO_XATTRS, b"", b"", 0)
    return plain._replace(**fields)  # type: ignore[arg-type]


def written(*given: Entry) -> bytes:
    return b"".join(write_tar(given, lambda _: []))


EVERYTHING = [
    entry(b"usr", stat.S_IFDIR, mode=0o755),
    entry(b"usr/file", content=b"content", uid=1, gid=2, mode=0o4755),
    entry(b"usr/hard", HARD_LINK, linkname=b"usr/file"),
    entry(b"usr/link", stat.S_IFLNK, linkname=b"../t" + b"o" * 150, mode=0o777),
    entry(b"usr/tty", stat.S_IFCHR, rdev=0x0401),
    entry(b"usr/disk", stat.S_IFBLK, rdev=0x1000_0302),
    entry(b"usr/fifo", stat.S_IFIFO),
    entry(b"usr/" + b"d" * 120 + b"/" + b"n" * 200, content=b"x", uid=3_000_000, mtime=-5, mtime_nsec=250_000_000),
    entry(b"usr/capable", xattrs={b"security.capability": b"\1\0\0\2\n=\0", b"user.x": b""}),
    entry(b"usr/\xff\xfe", content=b"not UTF-8"),
]


def test_what_is_written_is_read_back() -> None:
    assert entries(written(*EVERYTHING)) == EVERYTHING


def test_tarfile_reads_the_same() -> None:
    with tarfile.open(fileobj=io.BytesIO(written(*EVERYTHING)), errors="surrogateescape") as archive:
        members = archive.getmembers()
    assert [os.fsencode(member.name) for member in members] == [one.path for one in EVERYTHING]
    by_path = {one.path: (member, one) for member, one in zip(members, EVERYTHING, strict=True)}
    for member, one in by_path.values():
        assert (member.mode, member.uid, member.gid) == (one.mode, one.uid, one.gid)
        if one.kind in (stat.S_IFREG, stat.S_IFDIR):
            assert member.mtime == one.mtime + one.mtime_nsec / 1e9
        assert os.fsencode(member.linkname) == one.linkname
    assert (by_path[b"usr/tty"][0].devmajor, by_path[b"usr/tty"][0].devminor) == (4, 1)
    assert (by_path[b"usr/disk"][0].devmajor, by_path[b"usr/disk"][0].devminor) == (3, 0x1_0002)


def test_gnu_tar_lists_it(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(written(*EVERYTHING[:7]))
    said = subprocess.run([program("tar"), "-tvf", path], check=True, capture_output=True, text=True).stdout
    assert [line.split()[0] for line in said.splitlines()] == [
        "drwxr-xr-x", "-rwsr-xr-x", "hrw-r--r--", "lrwxrwxrwx", "crw-r--r--", "brw-r--r--", "prw-r--r--",
    ]  # fmt: skip


def test_large_contents_come_from_elsewhere() -> None:
    data = b"large" * 1000
    one = entry(b"file", content=External(measure(data), len(data)))
    assert entries(b"".join(write_tar([one], lambda _: [data[:7], b"", data[7:]]))) == [one]
    with pytest.raises(FormatError, match="does not have the 5000 bytes"):
        b"".join(write_tar([one], lambda _: [data[:-1]]))


def test_a_socket_is_no_member() -> None:
    with pytest.raises(FormatError, match="no such kind of file"):
        written(entry(b"socket", stat.S_IFSOCK))


NAMES = st.binary(min_size=1, max_size=130).filter(lambda name: not set(name) & {0, 0x2F} and name not in (b".", b".."))


@given(NAMES, st.integers(0, 0xFFFF_FFFF), st.integers(-(1 << 40), 1 << 40), st.integers(0, 999_999_999))
def test_any_name_owner_and_time_comes_back(name: bytes, owner: int, mtime: int, nsec: int) -> None:
    one = entry(b"a/" + name, uid=owner, gid=owner, mtime=mtime, mtime_nsec=nsec)
    assert entries(written(one)) == [one]


@given(st.lists(st.binary(max_size=200), max_size=5))
def test_python_reads_our_gzip(pieces: list[bytes]) -> None:
    assert python_gzip.decompress(b"".join(store(pieces))) == b"".join(pieces)


def test_gzip_reads_blocks_of_every_size(tmp_path: Path) -> None:
    for size in (0, 1, 0xFFFF, 0x10000, 200_000):
        path = tmp_path / f"{size}.gz"
        path.write_bytes(b"".join(store([b"x" * size])))
        done = subprocess.run([program("gzip"), "-dc", path], check=True, capture_output=True)
        assert done.stdout == b"x" * size
