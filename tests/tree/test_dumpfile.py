"""Dump files: the text and its refusals. What mkcomposefs and composefs-info make of ours is in `tests/rootfs`."""

import json
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oci2boot.digest import External, VerityDigest
from oci2boot.errors import Error, FormatError
from oci2boot.tree.dumpfile import parse_dumpfile, write_dumpfile
from oci2boot.tree.model import Directory, File, Inode, Metadata, Sparse, Special, Symlink, find
from tests.rootfs.trees import trees
from tests.witness import VECTORS

DUMPS = {
    name: case["composefs-rs 0.9"]["v1_sha256"]["dump"].encode()
    for name, case in json.loads((VECTORS / "oci.json").read_text()).items()
    if "dump" in case["composefs-rs 0.9"]["v1_sha256"]
}
"""What cfsctl 0.9 printed of the images in `tests/vectors/oci`."""
ROOT = b"/ 0 40755 2 0 0 0 1000.0 - - -\n"
HEX = "01" + "23" * 31


def dump(tree: Directory) -> bytes:
    return b"".join(write_dumpfile(tree))


def only(line: str) -> object:
    """Return the one inode under the root that `line`, with its path /f, describes."""
    return find(parse_dumpfile(ROOT + line.encode("latin-1") + b"\n"), b"/f")


@settings(max_examples=100, deadline=None)
@given(trees())
def test_a_tree_comes_back_from_its_text(tree: Directory) -> None:
    text = dump(tree)
    assert dump(parse_dumpfile(text)) == text


@pytest.mark.parametrize("name", DUMPS)
def test_a_dump_of_composefs_rs_comes_back_to_the_byte(name: str) -> None:
    assert dump(parse_dumpfile(DUMPS[name])) == DUMPS[name]


def test_the_fields_of_a_line() -> None:
    """composefs-dump(5)."""
    inode = only(f"/f 9 104755 1 1000 100 0 12.34 01/{HEX[2:]} - {HEX} user.a=b security.x=\\x3d\\n")
    assert isinstance(inode, File)
    meta = inode.meta
    assert (meta.mode, meta.uid, meta.gid, meta.mtime, meta.mtime_nsec) == (0o4755, 1000, 100, 12, 34)
    assert meta.xattrs == {b"user.a": b"b", b"security.x": b"=\n"}
    assert inode.content == External(VerityDigest("sha256", bytes.fromhex(HEX)), 9)


@pytest.mark.parametrize(
    ("fields", "content"),
    [
        ("0 100644 1 0 0 0 0.0 - - -", b""),
        ("0 100644 1 0 0 0 0.0 -  -", b""),
        ("1 100644 1 0 0 0 0.0 - \\x2d -", b"-"),
        ("6 100644 1 0 0 0 0.0 - \\\\\\n\\r\\t\\x00\\xfF -", b"\\\n\r\t\0\xff"),
        ("3 100644 1 0 0 0 0.0 - a=b -", b"a=b"),
        ("7 100644 1 0 0 0 0.0 - - -", Sparse(7)),
    ],
)
def test_content_is_unescaped(fields: str, content: object) -> None:
    inode = only("/f " + fields)
    assert isinstance(inode, File)
    assert inode.content == content


@pytest.mark.parametrize(("text", "seconds"), [("-5.0", -5), (f"{2**64 - 5}.0", -5), ("+5.0", 5)])
def test_seconds_are_signed(text: str, seconds: int) -> None:
    inode = only(f"/f 0 10644 1 0 0 0 {text} - - -")
    assert isinstance(inode, Special)
    assert inode.meta.mtime == seconds


def test_the_writer_escapes_as_composefs_rs() -> None:
    """composefs-rs 0.9, dumpfile.rs: a lone dash in a field but not in an xattr, `=` in an xattr but not in a field."""
    meta = Metadata(mode=0o777, xattrs={b"user.=\x7f": b"-", b"user.a b": b""})
    entries: dict[bytes, Inode] = {b"a=\\ \xc3": Symlink(meta, b"-"), b"-": File(Metadata(mode=0), b"-")}
    assert dump(Directory(Metadata(mode=0o755), entries)).splitlines()[1:] == [
        b"/- 1 100000 1 0 0 0 0.0 - \\x2d -",
        b"/a=\\\\\\x20\\xc3 1 120777 1 0 0 0 0.0 \\x2d - - user.\\x3d\\x7f=- user.a\\x20b=",
    ]


def test_hard_links_are_one_inode() -> None:
    lines = b"/a 2 100644 3 0 0 0 0.0 - hi -\n/b 0 @120000 - - - - 0.0 /a - -\n/c 0 @100644 1 1 1 1 x /b x y\n"
    tree = parse_dumpfile(ROOT + lines)
    assert find(tree, b"/a") is find(tree, b"/b") is find(tree, b"/c")
    assert dump(tree).splitlines()[2:] == [b"/b 0 @120000 - - - - 0.0 /a - -", b"/c 0 @120000 - - - - 0.0 /a - -"]


LINK_FIRST = b"/n 2 100644 2 0 0 0 0.0 - hi -\n/l 0 @100644 - - - - 0.0 /n - -\n"


def test_a_hard_link_may_sort_before_its_target_only_where_the_inode_stays_in_place() -> None:
    """C mkcomposefs puts the inode at its own line's name, composefs-rs at the first name: with /m they differ."""
    parse_dumpfile(ROOT + LINK_FIRST)
    between = b"/m 0 10644 1 0 0 0 0.0 - - -\n"
    for text in (LINK_FIRST + between, between + LINK_FIRST):
        with pytest.raises(FormatError, match="sorts before"):
            parse_dumpfile(ROOT + text)
    with pytest.raises(FormatError, match="sorts before"):
        parse_dumpfile(ROOT + b"/d 0 40755 2 0 0 0 0.0 - - -\n" + LINK_FIRST.replace(b"/l", b"/d/l"))


def test_a_carriage_return_ends_a_line_but_no_xattr() -> None:
    """composefs-rs takes it as part of the line's end, C mkcomposefs as part of the last field."""
    line = b"/f 0 10644 1 0 0 0 0.0 - - -"
    assert find(parse_dumpfile(ROOT + line + b"\r\n"), b"/f")
    with pytest.raises(FormatError, match="carriage return"):
        parse_dumpfile(ROOT + line + b" user.a=b\r\n")


REFUSED = {
    "nothing": (b"", "line 1 .*1 fields"),
    "blank line": (ROOT + b"\n" + ROOT, "line 2 .*1 fields"),
    "no root": (ROOT.replace(b"/", b"/f"), "first path is not"),
    "other digest": (ROOT + b"/f 9 100644 1 0 0 0 0.0 01/23 - " + b"01" * 64, "a sha512 digest"),
    "short digest": (ROOT + b"/f 9 100644 1 0 0 0 0.0 01/23 - 0123", "not an fs-verity digest"),
    "long number": (ROOT + b"/f " + b"9" * 5000 + b" 100644 1 0 0 0 0.0 - - -", "not a number"),
    "underscore": (ROOT + b"/f 1_0 100644 1 0 0 0 0.0 - - -", "not a number"),
    "big uid": (ROOT + b"/f 0 10644 1 4294967296 0 0 0.0 - - -", "not a number from 0 to 4294967295"),
    "mode": (ROOT + b"/f 0 10648 1 0 0 0 0.0 - - -", "not an octal mode"),
    "double slash": (ROOT + b"//f 0 10644 1 0 0 0 0.0 - - -", "no directory for '//f'"),
    "relative": (ROOT + b"f 0 10644 1 0 0 0 0.0 - - -", "no directory for 'f'"),
    "content of a directory": (ROOT + b"/f 0 40755 2 0 0 0 0.0 - x -", "only a regular file"),
    "device number of a directory": (ROOT + b"/f 0 40755 2 0 0 5 0.0 - - -", "a device number, 5"),
    "target with NUL": (ROOT + b"/f 1 120777 1 0 0 0 0.0 a\\x00b - -", "not the target of a symlink"),
    "xattr with NUL": (ROOT + b"/f 0 10644 1 0 0 0 0.0 - - - user.\\x00=", "not an xattr"),
    "link to a directory": (ROOT + b"/d 0 40755 2 0 0 0 0.0 - - -\n/e 0 @1 - - - - 0.0 /d - -", "to the directory"),
    "link to the root": (ROOT + b"/e 0 @100644 - - - - 0.0 / - -", "does not come before it"),
    "too many names": (
        ROOT + b"/a 0 10644 2 0 0 0 0.0 - - -\n" + b"".join(b"/%c 0 @10644 - - - - 0.0 /a - -\n" % c for c in b"bc"),
        "should have 2 names, and has 3",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_readers_would_differ_on_is_refused(name: str) -> None:
    """Most of these are vectors too; their reasons are in tests/rootfs/test_vectors.py."""
    text, words = REFUSED[name]
    with pytest.raises(FormatError, match=words):
        parse_dumpfile(text)


SEED = (
    ROOT
    + b"/d 0 40755 2 0 0 0 1.5 - - - user.a=1\n"
    + f"/d/e 9 100644 2 0 0 0 0.0 01/{HEX[2:]} - {HEX} security.x=\\x00\n".encode()
    + b"/d/f 0 @120000 - - - - 0.0 /d/e - -\n/d/s 3 120777 1 0 0 0 0.0 a\\\\b - -\n/z 2 100644 1 0 0 0 0.0 - \\n\\t -\n"
)


_hits = st.tuples(st.integers(0, len(SEED)), st.integers(0, 9), st.sampled_from(b" /.@\\-+0189x\n\r\0\xff="))


@settings(max_examples=400, deadline=None)
@given(st.lists(_hits, min_size=1, max_size=4))
def test_damage_raises_only_our_errors(hits: list[tuple[int, int, int]]) -> None:
    text = bytearray(SEED)
    for at, removed, byte in hits:
        text[at : at + removed] = bytes((byte,))
    with suppress(Error):
        dump(parse_dumpfile(bytes(text)))


@given(st.binary(max_size=300))
def test_anything_raises_only_our_errors(data: bytes) -> None:
    with suppress(Error):
        parse_dumpfile(ROOT + data)
