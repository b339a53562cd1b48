"""Images read back: round trips, and damage."""

import random
import struct
import time
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oci2boot.digest import External, VerityDigest
from oci2boot.errors import Error, FormatError, LimitError
from oci2boot.formats.erofs.structs import IMAGE_MAX
from oci2boot.rootfs import inodes
from oci2boot.rootfs.composefs import build_rootfs
from oci2boot.rootfs.inodes import DEPTH_MAX, Version
from oci2boot.rootfs.reader import read_rootfs, referenced_objects
from oci2boot.tree.dumpfile import parse_dumpfile, write_dumpfile
from oci2boot.tree.model import Directory, File, Inode, Metadata, find
from tests.rootfs.dumps import CASES, build
from tests.rootfs.trees import trees
from tests.witness import VECTORS

META = Metadata(mode=0o755)
ROOT_AT = 1152


@settings(max_examples=60, deadline=None)
@given(tree=trees())
def test_an_image_comes_back_as_its_tree(tree: Directory) -> None:
    """P.3: the reader is the inverse of the writer, hard links, whiteouts and escapes included."""
    for version in (0, 1):
        back = read_rootfs(build_rootfs(tree, 1 if version else 0).image)
        assert list(write_dumpfile(back)) == list(write_dumpfile(tree))


@pytest.mark.parametrize("result", ["c_v0", "c_v1", "c_default", "rust09_v2_sha256", "rust09_v1_sha512"])
def test_images_of_c_and_rust_build_again_to_the_same_bytes(result: str) -> None:
    """The images are theirs: `test_vectors` shows that ours have their digests."""
    for name in CASES:
        try:
            rootfs = build(CASES[name], result)
        except Error:
            continue
        assert build_rootfs(read_rootfs(rootfs.image), rootfs.version, rootfs.digest.algorithm) == rootfs, name


@pytest.mark.parametrize("version", [0, 1, 2])
def test_referenced_objects_are_the_digests_of_the_tree(version: Version) -> None:
    """C.11, C.12."""
    for name in ("ext-mixed", "ext-two-same", "hardlink", "mixed-big", "overlay-xattrs-ext", "inline-1"):
        text = (VECTORS / "dumps" / f"{name}.dump").read_bytes()
        digests = {line.split(b" ")[10].decode() for line in text.splitlines()} - {"-"}
        found = referenced_objects(build_rootfs(parse_dumpfile(text), version).image)
        assert {str(digest) for digest in found} == digests


def small(version: Version) -> bytes:
    """An image with one of everything, and little else to hit."""
    shared = External(VerityDigest("sha256", b"s" * 32), 100)
    linked = File(Metadata(mode=0o600, xattrs={b"user.big": b"v" * 300}), b"inline")
    text = b"".join(
        [
            b"/ 0 40755 3 0 0 0 5.0 - - - security.selinux=root_t\n",
            b"/d 0 40755 2 0 0 0 6.7 - - - user.a=1 trusted.overlay.opaque=y\n",
            b"/d/link 4 120777 1 0 0 0 5.0 /usr - -\n",
            b"/d/null 0 20666 1 0 0 259 5.0 - - -\n",
            b"/d/pipe 0 10666 1 0 0 0 5.0 - - -\n",
        ]
    )
    tree = parse_dumpfile(text)
    directory = find(tree, b"/d")
    assert isinstance(directory, Directory)
    many: dict[bytes, Inode] = {b"many-entries-%03d" % number: linked for number in range(150)}
    files: dict[bytes, Inode] = {b"x": File(META, shared), b"y": File(META, shared), b"z": linked}
    return build_rootfs(
        Directory(
            tree.meta, {b"d": Directory(directory.meta, {**directory.entries, **files}), b"many": Directory(META, many)}
        ),
        version,
    ).image


SMALL = {version: small(version) for version in (0, 1, 2)}


@settings(max_examples=250, deadline=None)
@given(
    version=st.sampled_from([0, 1, 2]),
    hits=st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), min_size=1, max_size=4),
    cut=st.none() | st.integers(0, 2**16),
)
def test_damage_raises_only_our_errors(version: Version, hits: list[tuple[int, int]], cut: int | None) -> None:
    image = bytearray(SMALL[version])
    for at, value in hits:
        image[at % len(image)] = value
    if cut is not None:
        del image[cut % len(image) :]
    for read in (read_rootfs, referenced_objects):
        with suppress(Error):
            read(bytes(image))


def test_every_byte_of_the_inodes_may_be_anything() -> None:
    """As above, but each byte of a small image in turn, so that no field is left to chance."""
    chance = random.Random(1)
    image = SMALL[2]
    for at in range(1024, 3000):
        damaged = bytearray(image)
        damaged[at] = chance.choice([0, 1, 0x7F, 0x80, 0xFF, damaged[at] ^ 1])
        with suppress(Error):
            read_rootfs(bytes(damaged))


def patched(image: bytes, at: int, form: str, value: int) -> bytes:
    damaged = bytearray(image)
    struct.pack_into(form, damaged, at, value)
    return bytes(damaged)


V2 = build_rootfs(Directory(META, {b"d": Directory(META, {})}), 2).image
"""Its root is at byte 1152, its entries, of 12 bytes each, `.`, `..` and `d`, are 64 bytes further."""

HOSTILE = {
    "no magic": (patched(V2, 0, "<I", 1), "not a composefs image"),
    "a format to come": (patched(V2, 12, "<I", 3), "V3"),
    "no superblock": (patched(V2, 1024, "<I", 1), "superblock"),
    "other blocks": (patched(V2, 1036, "<B", 9), "superblock"),
    "compression": (patched(V2, 1024 + 80, "<I", 1), "features"),
    "a second device": (patched(V2, 1024 + 86, "<H", 1), "features"),
    "root outside": (patched(V2, 1038, "<H", 0xFFFF), "outside"),
    "root before the inodes": (patched(V2, 1038, "<H", 2), "outside"),
    "root that is a file": (patched(V2, ROOT_AT + 4, "<H", 0o100644), "should be a directory"),
    "a directory in itself": (patched(V2, ROOT_AT + 64 + 24, "<Q", ROOT_AT // 32), "two names"),
    "entry outside": (patched(V2, ROOT_AT + 64 + 24, "<Q", 1 << 63), "outside"),
    "a parent that is not": (patched(V2, ROOT_AT + 64 + 12, "<Q", 1), "no proper"),
    "names outside": (patched(V2, ROOT_AT + 64 + 8, "<H", 4080), "first name"),
    "names that overlap": (patched(V2, ROOT_AT + 64 + 12 + 8, "<H", 36), "overlap"),
    "a name with a slash": (patched(V2, ROOT_AT + 64 + 36 + 3, "<B", 0x2F), "not a file name"),
    "names out of order": (patched(V2, ROOT_AT + 64 + 36 + 3, "<B", 0x21), "not sorted"),
    "an endless directory": (patched(V2, ROOT_AT + 8, "<Q", 1 << 62), "share bytes"),
    "xattrs outside": (patched(V2, ROOT_AT + 2, "<H", 0xFFFF), "xattrs of inode 36"),
    "compressed data": (patched(V2, ROOT_AT, "<H", 1 | 3 << 1), "data layout"),
    "another type": (patched(V2, ROOT_AT + 64 + 24 + 10, "<B", 1), "another type"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_image_is_named_for_what_it_is(name: str) -> None:
    image, words = HOSTILE[name]
    with pytest.raises(FormatError, match=words):
        read_rootfs(image)


def test_an_image_over_the_limit_is_not_read() -> None:
    with pytest.raises(LimitError, match="at most"):
        read_rootfs(bytes(IMAGE_MAX + 1))


def test_directories_that_share_their_blocks_are_refused_before_they_cost_time() -> None:
    """Each of 3000 directories claims the same 40 blocks of names, with `.` and `..` of its own in its tail."""
    many: dict[bytes, Inode] = {b"!%0249d" % number: File(META, b"") for number in range(620)}
    small = {b"%05d" % number: Directory(META, {}) for number in range(3000)}
    image = bytearray(build_rootfs(Directory(META, {b"many": Directory(META, many), **small}), 2).image)
    first_block = image.index(b"!%0249d" % 0) // 4096
    changed = 0
    for at in range(ROOT_AT + 64, len(image) - 96, 32):
        if image[at : at + 16] == struct.pack("<HHHHQ", 5, 0, 0o40755, 0, 27):
            struct.pack_into("<QI", image, at + 8, 40 * 4096 + 27, first_block)
            changed += 1
    assert changed == len(small)
    for read in (read_rootfs, referenced_objects):
        started = time.process_time()
        with pytest.raises(FormatError, match="share bytes"):
            read(bytes(image))
        assert time.process_time() - started < 1


FILE = build_rootfs(Directory(META, {b"f": File(META, External(VerityDigest("sha256", bytes(32)), 9))})).image
METACOPY = FILE.index(b"\x10\x04\x24\x00overlay.metacopy")
REDIRECT = FILE.index(b"\x10\x04\x42\x00overlay.redirect")
PATH = FILE.index(b"/00/")


@pytest.mark.parametrize(
    ("at", "byte", "words"),
    [
        (PATH + 65, 0x31, "the content of"),
        (METACOPY + 4, 0x4F, "means something to overlayfs|the content of"),
        (METACOPY + 20 + 1, 0x25, "not an overlayfs metacopy"),
        (METACOPY + 20 + 3, 2, "not an overlayfs metacopy"),
        (METACOPY + 2, 0x23, "not an overlayfs metacopy|outside"),
        (METACOPY + 3, 0xFF, "longer than its place"),
        (METACOPY - 8, 0xFF, "more shared xattrs"),
        (REDIRECT + 1, 9, "prefix 9"),
    ],
)
def test_a_file_whose_object_is_in_doubt_is_refused(at: int, byte: int, words: str) -> None:
    """D.3: what is read, what is verified, and what gc keeps are the same object."""
    with pytest.raises(FormatError, match=words):
        read_rootfs(patched(FILE, at, "<B", byte))


def test_an_xattr_that_is_there_twice_is_refused() -> None:
    image = build_rootfs(
        Directory(META, {b"f": File(Metadata(mode=0, xattrs={b"user.a": b"", b"user.b": b""}), b"")})
    ).image
    with pytest.raises(FormatError, match="twice"):
        read_rootfs(image.replace(b"\x01\x01\x00\x00b", b"\x01\x01\x00\x00a"))


def test_data_outside_of_the_image_is_refused() -> None:
    image = build_rootfs(Directory(META, {b"f": File(META, b"x" * 4096)})).image
    block = image.index(b"x" * 4096) // 4096
    inode = image.index(struct.pack("<HHHHIII", 0, 0, 0o100755, 1, 4096, 0, block))
    assert find(read_rootfs(image), b"/f")
    for wrong in (block + 1, 0xFFFFFFFF):
        with pytest.raises(FormatError, match="outside"):
            read_rootfs(patched(image, inode + 16, "<I", wrong))


def test_directories_nested_without_end_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    tree = Directory(META, {})
    for _ in range(DEPTH_MAX + 1):
        tree = Directory(META, {b"d": tree})
    monkeypatch.setattr(inodes, "DEPTH_MAX", 1 << 20)
    image = build_rootfs(tree).image
    with pytest.raises(LimitError, match="nested"):
        read_rootfs(image)
    assert referenced_objects(image) == set()


def test_an_xattr_that_overlayfs_would_act_on_is_refused() -> None:
    image = build_rootfs(
        Directory(META, {b"f": File(Metadata(mode=0, xattrs={b"trusted.0verlay.origin": b""}), b"")})
    ).image
    with pytest.raises(FormatError, match="means something to overlayfs"):
        read_rootfs(image.replace(b"0verlay.origin", b"overlay.origin"))
