import contextlib
import gzip
import lzma
import random
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from oci2boot.errors import Error, FormatError, LimitError
from oci2boot.formats import cpio
from tests.witness import program

MEMBERS = [
    cpio.directory(b"usr"),
    cpio.directory(b"usr/lib"),
    cpio.file(b"usr/lib/a", b"some content\n", 0o755),
    cpio.file(b"usr/lib/empty", b""),
    cpio.symlink(b"lib", b"usr/lib"),
]


def everything(_: bytes) -> bool:
    return True


def contents(data: bytes) -> dict[bytes, bytes | None]:
    return {path: found.content for path, found in cpio.read(data, everything).items()}


def gnu_cpio(directory: Path) -> bytes:
    names = "\0".join(sorted(str(path.relative_to(directory)) for path in directory.rglob("*")))
    argv = [program("cpio"), "--quiet", "-0", "-o", "-H", "newc"]
    return subprocess.run(argv, cwd=directory, input=names.encode(), check=True, capture_output=True).stdout


def test_gnu_cpio_unpacks_what_is_written(tmp_path: Path) -> None:
    argv = [program("cpio"), "--quiet", "-i", "-m", "--no-absolute-filenames"]
    subprocess.run(argv, cwd=tmp_path, input=cpio.write(MEMBERS), check=True)
    assert (tmp_path / "lib/a").read_bytes() == b"some content\n"
    assert stat.S_IMODE((tmp_path / "usr/lib/a").stat().st_mode) == 0o755
    assert (tmp_path / "usr/lib/a").stat().st_mtime == 0
    assert (tmp_path / "usr/lib/empty").read_bytes() == b""
    assert (tmp_path / "lib").readlink() == Path("usr/lib")


def test_the_owner_is_root_and_the_bytes_do_not_vary() -> None:
    """C.24"""
    listed = subprocess.run(
        [program("cpio"), "--quiet", "-i", "-t", "-v", "-n"], input=cpio.write(MEMBERS), check=True, capture_output=True
    ).stdout.decode()
    assert [line.split()[2:4] for line in listed.splitlines()] == [["0", "0"]] * len(MEMBERS)
    assert cpio.write(MEMBERS) == cpio.write(MEMBERS)


def compress(argv: list[str]) -> Callable[[bytes], bytes]:
    return lambda data: (
        subprocess.run([program(argv[0]), *argv[1:]], input=data, check=True, capture_output=True).stdout
    )


@pytest.mark.parametrize(
    "compressed",
    [
        bytes,
        compress(["gzip", "-9"]),
        compress(["xz", "--check=crc32"]),
        compress(["xz", "--format=lzma"]),
        compress(["zstd", "-q", "-19"]),
        compress(["zstd", "-q", "--no-content-size", "--long=27"]),
    ],
    ids=["plain", "gzip", "xz", "lzma", "zstd", "zstd-long"],
)
def test_archives_of_gnu_cpio_are_read_however_compressed(compressed: Callable[[bytes], bytes], tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir/file").write_bytes(random.Random(1).randbytes(100_001))
    (tmp_path / "link").symlink_to("dir/file")
    first, last = gnu_cpio(tmp_path), cpio.write(MEMBERS)
    middle = compressed(first)
    found = contents(last + bytes(512) + middle + bytes(-len(middle) % 4) + last)
    assert found[b"dir/file"] == (tmp_path / "dir/file").read_bytes()
    assert found[b"link"] == b"dir/file"
    assert found[b"usr/lib/a"] == b"some content\n"


def test_a_later_file_replaces_an_earlier_one() -> None:
    assert contents(cpio.write([cpio.file(b"a", b"1")]) + cpio.write([cpio.file(b"a", b"2")])) == {b"a": b"2"}


def test_only_what_is_asked_for_is_kept() -> None:
    found = cpio.read(cpio.write(MEMBERS), lambda path: path.endswith(b"empty"))
    assert (found[b"usr/lib/a"].content, found[b"usr/lib/a"].size) == (None, 13)
    assert found[b"usr/lib/empty"].content == b""


def test_a_plain_archive_off_its_four_bytes_is_refused_as_by_the_kernel() -> None:
    """init/initramfs.c takes it for a compressed one, of no known kind, and drops it: with it the check of the root."""
    packed = gzip.compress(cpio.write(MEMBERS))
    for padding in range(4):
        data = packed + bytes(padding) + cpio.write([cpio.file(b"glue", b"")])
        if (len(packed) + padding) % 4:
            with pytest.raises(FormatError, match="multiple of 4"):
                cpio.read(data, everything)
        else:
            assert b"glue" in cpio.read(data, everything)


@pytest.mark.parametrize("data", [b"junk", b"070702", b"\x02\x21\x4c\x18" + bytes(50), cpio.write(MEMBERS)[:-20]])
def test_something_else_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        cpio.read(data, everything)


def test_a_bomb_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpio, "MAX_UNPACKED", 10 << 20)
    bomb = cpio.write([cpio.file(b"zeros", bytes(11 << 20))])
    for packed in (bomb, gzip.compress(bomb), lzma.compress(bomb), zstandard.compress(bomb)):
        with pytest.raises(LimitError):
            cpio.read(packed, lambda _: False)


ARCHIVE = cpio.write(MEMBERS)
PACKED = zstandard.compress(ARCHIVE)


@given(st.booleans(), st.integers(0, len(ARCHIVE)), st.binary(min_size=1, max_size=12))
def test_damage_is_read_or_an_error(plain: bool, at: int, change: bytes) -> None:
    data = bytearray(ARCHIVE if plain else PACKED)
    data[at : at + len(change)] = change
    with contextlib.suppress(Error):
        cpio.read(bytes(data), everything)
