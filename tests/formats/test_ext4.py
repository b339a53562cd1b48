"""Reading ext4. The file system under test is made and filled by mke2fs and debugfs of e2fsprogs."""

import os
import random
import stat
import struct
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oci2boot.errors import Error, FormatError
from oci2boot.formats import ext4
from oci2boot.formats.ext4 import GroupDescriptor, Inode, Superblock
from oci2boot.formats.ext4_reader import Ext4
from oci2boot.formats.ext4_xattr import split_xattrs, unpack_xattrs
from tests.witness import program

FILES = {
    b"/empty": b"",
    b"/one": b"x",
    b"/sub/blocks": bytes(range(256)) * 100,
    b"/sub/holes": b"a" * 4096 + bytes(80_000) + b"z",
    b"/sub/\xff odd": b"odd",
}
FEATURES = (
    "none,has_journal,ext_attr,dir_index,filetype,extent,64bit,flex_bg,sparse_super,extra_isize,metadata_csum,verity"
)


class Image:
    """A file system in memory, with bytes that lie over it."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def over(self, *changes: tuple[int, bytes]) -> Ext4:
        def read(offset: int, size: int) -> bytes:
            data = bytearray(self.data[offset : offset + size])
            for at, new in changes:
                start, end = max(at, offset), min(at + len(new), offset + len(data))
                if start < end:
                    data[start - offset : end - offset] = new[start - at : end - at]
            return bytes(data)

        return Ext4(read)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    place = tmp_path_factory.mktemp("ext4")
    tree, disk = place / "tree", place / "disk"
    for path, content in FILES.items():
        file = tree / os.fsdecode(path[1:])
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    (tree / "short").symlink_to("s" * 20)
    (tree / "long").symlink_to("l" * 1000)
    os.mkfifo(tree / "pipe")
    run(["mke2fs", "-q", "-F", "-b", "4096", "-I", "256", "-O", FEATURES, "-d", tree, disk, "32M"])
    large = place / "large"
    large.write_bytes(b"v" * 900)
    for request in (
        "set_inode_field /one uid 70000",
        "set_inode_field /one mode 0104755",
        "ea_set /one security.selinux label",
        f"ea_set -f {large} /one user.large",
    ):
        run(["debugfs", "-w", "-R", request, disk])
    subprocess.run([program("e2fsck"), "-fn", disk], check=True, capture_output=True)
    return Image(disk.read_bytes())


def run(argv: list[str | Path]) -> None:
    subprocess.run([program(str(argv[0])), *argv[1:]], check=True, capture_output=True)


def drain(fs: Ext4) -> dict[bytes, tuple[Inode, bytes]]:
    """Read everything that there is to read."""
    found = {}
    for path, number, inode in fs.walk():
        content = b""
        if inode.file_type == stat.S_IFREG:
            content = b"".join(fs.content(number, size=min(inode.size, 1 << 20)))
        elif inode.file_type == stat.S_IFLNK:
            content = fs.symlink(number)
        fs.xattrs(number)
        fs.verity(number)
        found[path] = (inode, content)
    return found


def test_what_mke2fs_wrote_is_read(image: Image) -> None:
    found = drain(image.over())
    directories = {b"/", b"/lost+found", b"/sub"}
    assert found.keys() == directories | FILES.keys() | {b"/short", b"/long", b"/pipe"}
    assert {path: found[path][1] for path in FILES} == FILES
    assert {path for path, (inode, _) in found.items() if stat.S_ISDIR(inode.mode)} == directories
    assert found[b"/short"][1] == b"s" * 20
    assert found[b"/long"][1] == b"l" * 1000
    assert stat.S_ISFIFO(found[b"/pipe"][0].mode)


def test_what_debugfs_changed_is_read(image: Image) -> None:
    fs = image.over()
    [(number, inode)] = [(number, inode) for path, number, inode in fs.walk() if path == b"/one"]
    assert (inode.mode, inode.uid) == (0o104755, 70000)
    assert fs.xattrs(number) == {b"security.selinux": b"label", b"user.large": b"v" * 900}
    assert inode.xattr_block


def test_a_part_of_a_file_is_read(image: Image) -> None:
    fs = image.over()
    [number] = [number for path, number, _ in fs.walk() if path == b"/sub/holes"]
    for offset, size in [(0, 1), (4090, 20), (4096, 5000), (84_000, 97), (84_096, 1), (5000, 79_097)]:
        assert b"".join(fs.content(number, offset, size)) == FILES[b"/sub/holes"][offset : offset + size]


def test_a_file_system_without_what_is_needed_is_refused(tmp_path: Path) -> None:
    disk = tmp_path / "ext2"
    run(["mke2fs", "-q", "-F", "-t", "ext2", disk, "8M"])
    with pytest.raises(FormatError, match=r"checksum|features"):
        Image(disk.read_bytes()).over()
    with pytest.raises(FormatError, match="not an ext4"):
        Image(bytes(1 << 20)).over()
    with pytest.raises(FormatError, match="cut short"):
        Image(b"short").over()


def used_places(image: Image) -> Iterator[tuple[int, int]]:
    """Yield (offset, size) of what describes the files: superblock, group descriptors, inodes, directories."""
    fs = image.over()
    yield ext4.SUPERBLOCK_OFFSET, 1024
    yield 4096, 64
    for _, number, inode in fs.walk():
        yield fs.groups[0].inode_table * 4096 + (number - 1) * 256, 256
        if inode.file_type == stat.S_IFDIR:
            yield from ((extent.physical * 4096, 4096) for extent in fs.extents(number))


@given(seed=st.integers(0, 2**32))
def test_a_changed_byte_is_noticed_or_harmless(image: Image, seed: int) -> None:
    """Every struct carries a checksum, so that one changed byte is an error and never another exception."""
    chosen = random.Random(seed)
    start, size = chosen.choice(list(used_places(image)))
    at = start + chosen.randrange(size)
    new = bytes([image.data[at] ^ chosen.randrange(1, 256)])
    with pytest.raises(Error):
        drain(image.over((at, new)))


@given(seed=st.integers(0, 2**32))
def test_hostile_inodes_with_right_checksums_end_in_our_errors(image: Image, seed: int) -> None:
    chosen = random.Random(seed)
    fs = image.over()
    number = chosen.choice([number for _, number, _ in fs.walk()])
    raw = bytearray(fs.raw_inode(number))
    for _ in range(chosen.randrange(1, 4)):
        raw[chosen.randrange(256)] = chosen.choice([0, 1, 2, 4, 127, 128, 255, chosen.randrange(256)])
    if chosen.random() < 0.2:
        raw[40:100] = chosen.randbytes(60)
    generation = Inode.unpack(bytes(raw)).generation
    sealed = ext4.seal_inode(ext4.inode_seed(fs.seed, number, generation), bytes(raw))
    read(image, (fs.groups[0].inode_table * 4096 + (number - 1) * 256, sealed))


@given(seed=st.integers(0, 2**32))
def test_hostile_directories_with_right_checksums_end_in_our_errors(image: Image, seed: int) -> None:
    chosen = random.Random(seed)
    fs = image.over()
    number = chosen.choice([number for path, number, _ in fs.walk() if path in (b"/", b"/sub")])
    [extent] = fs.extents(number)
    body = bytearray(fs.blocks(extent.physical)[:-12])
    for _ in range(chosen.randrange(1, 5)):
        body[chosen.randrange(120)] = chosen.randrange(256)
    checksum = ext4.crc32c(ext4.inode_seed(fs.seed, number), bytes(body))
    read(image, (extent.physical * 4096, bytes(body)), (extent.physical * 4096 + 4092, struct.pack("<I", checksum)))


SMALL = ["log_block_size", "blocks_per_group", "inodes_per_group", "inodes_count", "inode_size", "descriptor_size"]


@given(st.sampled_from([*SMALL, "first_data_block", "blocks_count_lo", "blocks_count_hi"]), st.integers(0, 0xFFFF))
def test_hostile_superblocks_with_right_checksums_end_in_our_errors(image: Image, field: str, value: int) -> None:
    change: dict[str, Any] = {field: value}
    superblock = replace(Superblock.unpack(image.data, ext4.SUPERBLOCK_OFFSET), **change)
    read(image, (ext4.SUPERBLOCK_OFFSET, superblock.sealed().pack()))


@given(st.sampled_from(["inode_table_lo", "inode_table_hi", "flags"]), st.integers(0, 0xFFFF))
def test_hostile_groups_with_right_checksums_end_in_our_errors(image: Image, field: str, value: int) -> None:
    group = replace(GroupDescriptor.unpack(image.data, 4096), **{field: value})
    read(image, (4096, group.sealed(image.over().seed, 0).pack()))


def read(image: Image, *changes: tuple[int, bytes]) -> None:
    with suppress(Error):
        drain(image.over(*changes))


NAMES = st.one_of(
    st.binary(min_size=1, max_size=40).filter(lambda name: b"\0" not in name).map(lambda name: b"user." + name),
    st.sampled_from([b"security.selinux", b"security.capability", b"trusted.overlay.redirect"]),
)


@given(st.dictionaries(NAMES, st.binary(max_size=300), max_size=6))
def test_extended_attributes_come_back(xattrs: dict[bytes, bytes]) -> None:
    in_inode, block = split_xattrs(xattrs, 96, 4096)
    assert unpack_xattrs(in_inode, block=False) | (unpack_xattrs(block, block=True) if block else {}) == xattrs


@given(st.binary(max_size=200), st.booleans())
def test_hostile_attributes_end_in_our_errors(area: bytes, block: bool) -> None:
    with suppress(Error):
        unpack_xattrs(struct.pack("<I", 0xEA020000) + area, block=block)
