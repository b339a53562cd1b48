"""EROFS structs, directory blocks and xattr areas, held against Linux, fs/erofs, and an image of composefs-rs 0.3."""

from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oci2boot.errors import Error, FormatError
from oci2boot.formats.erofs import directory, structs, xattrs
from oci2boot.formats.erofs.reader import ErofsImage
from oci2boot.rootfs.composefs import build_rootfs
from oci2boot.tree.model import Directory, File, Inode, Metadata

names = st.binary(min_size=1, max_size=60).map(lambda name: name.replace(b"/", b"x").replace(b"\0", b"y"))


def test_structs_have_the_kernels_sizes() -> None:
    """Linux, fs/erofs/super.c and inode.c: erofs_check_ondisk_layout_definitions()."""
    records = structs.Superblock, structs.CompactInode, structs.ExtendedInode
    assert [record.layout().size for record in records] == [128, 32, 64]
    assert (directory.ENTRY_SIZE, xattrs.HEADER_SIZE, xattrs.ENTRY_SIZE) == (12, 12, 4)


def test_the_root_of_an_empty_v2_image_is_these_bytes() -> None:
    """As composefs-rs 0.3 writes it."""
    image = build_rootfs(Directory(Metadata(mode=0o755, mtime=1000), {}), 2).image
    inode = "0500 0000 ed41 0000 1b00000000000000 00000000 24000000 00000000 00000000 e80300000000000000000000 02000000"
    entries = "2400000000000000 1800 02 00  2400000000000000 1900 02 00  2e 2e2e"
    assert image[1152:1243] == bytes.fromhex(inode) + bytes(16) + bytes.fromhex(entries)


@given(st.sets(names, min_size=1, max_size=400))
def test_directory_blocks_are_full_and_their_entries_come_back(found: set[bytes]) -> None:
    ordered = sorted(found)
    ends, tail = directory.split(ordered)
    starts = [0, *ends]
    blocks = [directory.pack(ordered[a:b], range(a, b), [1] * (b - a)) for a, b in pairwise(starts)]
    last = ordered[starts[-1] :]
    rest = directory.pack(last, range(starts[-1], len(ordered)), [1] * len(last))
    assert len(rest) == tail <= 2048
    for block, after in zip(blocks[:-1], starts[2:], strict=False):
        assert 4096 - 12 - len(ordered[after]) < len(block) <= 4096
    entries = [entry for block in blocks for entry in directory.unpack(block.ljust(4096, b"\0"))]
    if rest:
        entries += directory.unpack(rest)
    assert entries == [(name, number, 1) for number, name in enumerate(ordered)]


@given(st.binary(min_size=12, max_size=200))
def test_a_block_of_anything_raises_only_our_errors(block: bytes) -> None:
    with suppress(Error):
        directory.unpack(block)


@settings(max_examples=200)
@given(st.sets(names, min_size=1, max_size=5), st.integers(0, 200), st.integers(0, 255))
def test_a_damaged_block_raises_only_our_errors(found: set[bytes], at: int, value: int) -> None:
    block = bytearray(directory.pack(sorted(found), range(len(found)), [1] * len(found)))
    block[at % len(block)] = value
    with suppress(Error):
        assert all(name and b"/" not in name for name, _, _ in directory.unpack(bytes(block)))


@pytest.mark.parametrize(
    ("name", "split"),
    [
        (b"user.a", (1, b"a")),
        (b"system.posix_acl_access", (2, b"")),
        (b"system.posix_acl_default", (3, b"")),
        (b"trusted.overlay.opaque", (4, b"overlay.opaque")),
        (b"security.selinux", (6, b"selinux")),
        (b"other", (0, b"other")),
    ],
)
def test_xattr_names_split_at_the_kernels_prefixes(name: bytes, split: tuple[int, bytes]) -> None:
    """Linux, fs/erofs/xattr.h: EROFS_XATTR_INDEX_…"""
    assert xattrs.split_name(name, lustre=True) == split
    assert xattrs.join_name(*split) == name


def test_only_v2_knows_lustre() -> None:
    assert xattrs.split_name(b"lustre.lov", lustre=True) == (5, b"lov")
    assert xattrs.split_name(b"lustre.lov", lustre=False) == (0, b"lustre.lov")


def test_inodes_may_not_claim_more_bytes_than_the_image_has() -> None:
    entries: dict[bytes, Inode] = {b"%04d" % number: File(Metadata(mode=0), b"") for number in range(2000)}
    image = bytearray(build_rootfs(Directory(Metadata(mode=0o755), entries), 2).image)
    nids = [nid for inode, found in ErofsImage(bytes(image)).directories() for _, nid, _ in found]
    for nid in nids[:1000]:
        image[nid * 32 + 2 : nid * 32 + 4] = (10000).to_bytes(2, "little")  # xattr_icount: 40000 bytes each
    erofs = ErofsImage(bytes(image))
    with pytest.raises(FormatError, match="share bytes"):
        list(map(erofs.inode, nids[: len(image) // 40000 + 1]))
