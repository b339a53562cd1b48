"""mkfs.erofs is fed with an archive, and its image is judged by fsck.erofs and dump.erofs."""

import subprocess
from pathlib import Path
from uuid import UUID

import pytest

from oci2boot.errors import Error, FormatError, ToolError
from oci2boot.formats.tar_writer import write_tar
from oci2boot.rootfs.mkfs import Compression, check_mkfs, mkfs_argv
from oci2boot.tree.entries import entries_of
from tests.boot import debian
from tests.rootfs.plain import Contents, every_kind

IMAGE_UUID = UUID("01234567-89ab-cdef-0123-456789abcdef")


def made(compression: Compression, image: Path) -> Path:
    contents: Contents = {}
    tar = b"".join(write_tar(entries_of(every_kind(contents), lambda _: None), lambda content: [contents[content]]))
    _, *words = mkfs_argv(image, compression, IMAGE_UUID, "root")
    subprocess.run([debian.erofs_utils("mkfs.erofs"), *words], input=tar, check=True, capture_output=True)
    return image


@pytest.mark.parametrize("text", ["zstd,level=12", "zstd,level=9", "lz4", "lz4hc,level=9", "lzma", "deflate", "none"])
def test_the_compression_shows_in_the_image(text: str, tmp_path: Path) -> None:
    """K0.2"""
    compression = Compression.parse(text)
    image = made(compression, tmp_path / "image")
    subprocess.run([debian.erofs_utils("fsck.erofs"), "--extract", image], check=True, capture_output=True)
    shown = subprocess.check_output([debian.erofs_utils("dump.erofs"), "-s", image], text=True)
    algorithms = next((line.split(":")[1].split() for line in shown.splitlines() if "compr_algs" in line), [])
    assert set(algorithms) == {name.removesuffix("hc") for name in compression.names}
    assert str(IMAGE_UUID) in shown


def test_the_same_tree_gives_the_same_image(tmp_path: Path) -> None:
    compression = Compression.parse("zstd,level=3")
    one, two = made(compression, tmp_path / "1"), made(compression, tmp_path / "2")
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize("text", ["zstd,level=12", "lzma,level=109,dictsize=65536", "zstd:lz4hc,level=12", "none"])
def test_a_compression_is_read_and_written(text: str) -> None:
    assert str(Compression.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    ["", "gzip", "zstd,12", "zstd,level=", "zstd,level=23", "zstd,level=1,level=2", "zstd,speed=9", "lz4,level=1",
     "zstd:", "lz4,dictsize=5", "zstd,level=-1", "zstd -x", "zstd,dictsize=0"],
)  # fmt: skip
def test_what_is_no_compression_is_refused(text: str) -> None:
    with pytest.raises(FormatError):
        Compression.parse(text)


def said(path: str | Path) -> str:
    done = subprocess.run([path, "--version"], check=False, capture_output=True, text=True)
    return done.stdout + done.stderr


def test_a_program_that_cannot_do_it_is_refused() -> None:
    """Debian 12 has version 1.5, which says it so; Debian 13 has 1.8."""
    check_mkfs(said(debian.erofs_utils("mkfs.erofs")), Compression.parse("zstd"))
    with pytest.raises(ToolError, match=r"mkfs.erofs is 1\.5: it cannot read an archive"):
        check_mkfs("mkfs.erofs 1.5\nAvailable compressors are: lz4hc, lz4\n", Compression.parse("lz4"))
    with pytest.raises(Error, match="built without zstd"):
        check_mkfs("mkfs.erofs (erofs-utils) 1.8.6\navailable compressors: lz4, lz4hc\n", Compression.parse("zstd"))
