"""Tar archives against the formats' own texts, Python's tarfile and GNU tar."""

import contextlib
import os
import stat

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oci2boot.digest import External
from oci2boot.errors import Error, FormatError
from oci2boot.formats import tar
from oci2boot.formats.tar import HARD_LINK, Entry, read_tar
from oci2boot.tree import model
from tests.tarballs import (
    END,
    GNU,
    V7,
    MemorySource,
    base256,
    directory,
    entries,
    file,
    gnu_long,
    hard_link,
    header,
    pax,
    symlink,
)


def one(*parts: bytes) -> Entry:
    (entry,) = entries(*parts)
    return entry


def test_inline_limit_is_that_of_the_tree() -> None:
    assert tar.INLINE_MAX == model.INLINE_MAX


def test_a_ustar_header_says_what_posix_says() -> None:
    entry = one(file(b"name", b"hello", mode=0o104755, uid=1, gid=2, mtime=3, prefix=b"usr/bin"))
    assert entry == Entry(b"usr/bin/name", stat.S_IFREG, 0o4755, 1, 2, 3, 0, {}, b"hello", b"", 0)


@pytest.mark.parametrize(
    ("flag", "kind"),
    [
        (b"0", stat.S_IFREG),
        (b"\0", stat.S_IFREG),
        (b"7", stat.S_IFREG),
        (b"1", HARD_LINK),
        (b"2", stat.S_IFLNK),
        (b"3", stat.S_IFCHR),
        (b"4", stat.S_IFBLK),
        (b"5", stat.S_IFDIR),
        (b"6", stat.S_IFIFO),
    ],
)
def test_every_type_is_known(flag: bytes, kind: int) -> None:
    assert one(header(b"a", flag, link=b"b")).kind == kind


@pytest.mark.parametrize("number", [(0, 0), (1, 5), (8, 255), (7, 256), (4095, (1 << 20) - 1), (0x110, 0x12345)])
def test_device_numbers_are_encoded_as_the_c_library_does(number: tuple[int, int]) -> None:
    for flag in (b"3", b"4"):
        assert one(header(b"d", flag, major=number[0], minor=number[1])).rdev == os.makedev(*number)


@pytest.mark.parametrize(
    ("path", "meaning"),
    [
        (b"./", b""),
        (b"/", b""),
        (b".", b""),
        (b"./a", b"a"),
        (b"/a/b", b"a/b"),
        (b"a//b/./c/", b"a/b/c"),
        (b"..a", b"..a"),
        (b"a../.b", b"a../.b"),
        (b"\xff\xfe/\x80", b"\xff\xfe/\x80"),
        (b"a\nb\x1b[", b"a\nb\x1b["),
    ],
)
def test_paths_become_relative_and_normal(path: bytes, meaning: bytes) -> None:
    assert one(directory(path)).path == meaning
    assert one(pax((b"path", path)), directory(b"x")).path == meaning


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (b"0000644\0", 0o644),
        (b"644\0", 0o644),
        (b"   644 \0", 0o644),
        (b"00000644", 0o644),
        (b"644     ", 0o644),
        (bytes(8), 0),
        (b" " * 8, 0),
        (base256(3_000_000_000, 8), 3_000_000_000),
        (base256(0xFFFF_FFFF, 8), 0xFFFF_FFFF),
    ],
)
def test_numbers_in_all_spellings_that_tar_programs_write(field: bytes, value: int) -> None:
    assert one(header(b"a", uid=field, gid=field))[3:5] == (value, value)


@pytest.mark.parametrize("mtime", [-5, -(2**31) - 1, 0, 2**33, 2**62])
def test_a_base256_mtime_may_be_negative(mtime: int) -> None:
    assert one(header(b"a", mtime=base256(mtime, 12))).mtime == mtime


@pytest.mark.parametrize(
    ("text", "time"),
    [
        (b"1234.75", (1234, 750_000_000)),
        (b"0", (0, 0)),
        (b"1.", (1, 0)),
        (b"1.0000000019", (1, 1)),
        (b"1700000000.123456789", (1_700_000_000, 123_456_789)),
        (b"-5", (-5, 0)),
        (b"-0.25", (-1, 750_000_000)),
        (b"-1.5", (-2, 500_000_000)),
    ],
)
def test_a_pax_mtime_keeps_its_nanoseconds(text: bytes, time: tuple[int, int]) -> None:
    assert one(pax((b"mtime", text)), header(b"a"))[5:7] == time


def test_pax_records_override_the_header_and_the_last_of_a_key_counts() -> None:
    records = ((b"path", b"first"), (b"path", b"p"), (b"uid", b"4000000"), (b"gid", b"4294967295"), (b"size", b"3"))
    ignored = ((b"LIBARCHIVE.xattr.user.x", b"eA"), (b"atime", b"not a time"), (b"uname", b"root"), (b"comment", b""))
    entry = one(pax(*records, *ignored), header(b"h", size=0), b"abc".ljust(512, b"\0"))
    assert entry == Entry(b"p", stat.S_IFREG, 0o644, 4_000_000, 0xFFFF_FFFF, 1000, 0, {}, b"abc", b"", 0)


def test_extended_attributes_are_bytes() -> None:
    records = ((b"SCHILY.xattr.user.x y", b"\0\xff\n="), (b"SCHILY.xattr.security.capability", b""))
    assert one(pax(*records), header(b"a")).xattrs == {b"user.x y": b"\0\xff\n=", b"security.capability": b""}


def test_an_extended_header_counts_for_one_entry_only() -> None:
    first, second = entries(pax((b"uid", b"7"), (b"SCHILY.xattr.user.a", b"1")), header(b"a"), header(b"b"))
    assert (first.uid, first.xattrs, second.uid, second.xattrs) == (7, {b"user.a": b"1"}, 0, {})


def test_global_pax_headers_change_nothing() -> None:
    assert one(pax((b"path", b"x"), (b"uid", b"9"), flag=b"g"), header(b"a")) == one(header(b"a"))


def test_gnu_long_names_and_links() -> None:
    name, target = b"d/" * 150 + b"f", b"t" * 300
    assert one(gnu_long(b"L", name), gnu_long(b"K", target), symlink(b"cut", b"cut", magic=GNU))[0] == name
    assert one(gnu_long(b"L", name), gnu_long(b"K", target), symlink(b"cut", b"cut", magic=GNU)).linkname == target
    assert one(file(b"@", b"bare", flag=b"L", magic=GNU), header(b"x", magic=GNU)).path == b"bare"


def test_gnu_headers_have_times_where_ustar_has_the_prefix() -> None:
    assert one(header(b"a", magic=GNU, prefix=b"14400000000\0")).path == b"a"


def test_v7_headers_are_read() -> None:
    assert one(file(b"a", b"x", flag=b"\0", magic=V7, prefix=b"junk")).path == b"a"


def test_hard_link_targets_are_normalised_and_symlink_targets_verbatim() -> None:
    assert one(hard_link(b"a", b"./b//c")).linkname == b"b/c"
    assert one(symlink(b"a", b"./b//../\xff")).linkname == b"./b//../\xff"


def test_bodies_of_over_64_bytes_alone_go_past_take() -> None:
    for size in (0, 1, 63, 64, 65, 511, 512, 513, 5000):
        content = os.urandom(size)
        source = MemorySource(file(b"a", content) + END)
        (entry,) = read_tar(source)
        external = size > 64
        assert isinstance(entry.content, External) == external
        assert (
            source.objects[entry.content.digest.hex] if isinstance(entry.content, External) else entry.content
        ) == content
        assert source.inline == len(file(b"a", content)) + len(END) - size * external


def test_nothing_behind_the_end_marker_is_read() -> None:
    source = MemorySource(header(b"a") + END + b"rest")
    assert len(list(read_tar(source))) == 1
    assert source.stream.read() == b"rest"


def test_an_archive_may_lack_its_end_marker() -> None:
    assert entries(header(b"a")) == entries(header(b"a"), END)
    assert entries() == entries(END) == []


NAMES = st.lists(
    st.binary(min_size=1, max_size=40).filter(lambda name: not set(name) & set(b"/\0") and name not in (b".", b"..")),
    min_size=1,
    max_size=6,
).map(b"/".join)
U32 = st.integers(0, 0xFFFF_FFFF)
XATTR_NAMES = st.binary(min_size=1, max_size=20).filter(lambda name: not set(name) & set(b"=\0"))
WANTED = st.builds(
    Entry,
    path=NAMES,
    kind=st.sampled_from([stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, HARD_LINK]),
    mode=st.integers(0, 0o7777),
    uid=U32,
    gid=U32,
    mtime=st.integers(-(2**40), 2**40),
    mtime_nsec=st.integers(0, 999_999_999),
    xattrs=st.dictionaries(XATTR_NAMES, st.binary(max_size=80), max_size=3),
    content=st.binary(max_size=64),
    linkname=NAMES,
    rdev=st.integers(0, 4095),
)
FLAGS = {
    stat.S_IFREG: b"0",
    stat.S_IFDIR: b"5",
    stat.S_IFLNK: b"2",
    stat.S_IFIFO: b"6",
    stat.S_IFCHR: b"3",
    HARD_LINK: b"1",
}


def written(entry: Entry) -> bytes:
    """The entry in PAX, with every field in the extended header."""
    whole = entry.mtime * 10**9 + entry.mtime_nsec
    time = b"%s%d.%09d" % (b"-" if whole < 0 else b"", *divmod(abs(whole), 10**9))
    records = [
        *((b"path", entry.path), (b"uid", b"%d" % entry.uid), (b"gid", b"%d" % entry.gid), (b"mtime", time)),
        *((b"SCHILY.xattr." + name, value) for name, value in entry.xattrs.items()),
        *([(b"linkpath", entry.linkname)] if entry.linkname else []),
    ]
    major, minor = os.major(entry.rdev), os.minor(entry.rdev)
    content = entry.content if isinstance(entry.content, bytes) else b""
    return pax(*records) + file(b"x", content, flag=FLAGS[entry.kind], mode=entry.mode, major=major, minor=minor)


@settings(max_examples=100)
@given(st.lists(WANTED, max_size=5))
def test_what_is_written_comes_back(wanted: list[Entry]) -> None:
    meant = [
        entry._replace(
            content=entry.content if entry.kind == stat.S_IFREG else b"",
            linkname=entry.linkname if entry.kind in (stat.S_IFLNK, HARD_LINK) else b"",
            rdev=entry.rdev if entry.kind == stat.S_IFCHR else 0,
        )
        for entry in wanted
    ]
    assert entries(*map(written, meant), END) == meant


SAMPLE = b"".join(
    (
        pax((b"path", b"a/b"), (b"mtime", b"1.5"), (b"SCHILY.xattr.user.x", b"y")),
        file(b"x", b"body" * 30),
        gnu_long(b"L", b"name" * 40),
        hard_link(b"x", b"a/b", magic=GNU),
        header(b"dev", b"3", uid=base256(1 << 31, 8)),
    )
)


@settings(max_examples=300)
@given(st.integers(0, len(SAMPLE) - 1), st.binary(min_size=1, max_size=8))
def test_damage_raises_our_errors_only(place: int, bytes_: bytes) -> None:
    damaged = SAMPLE[:place] + bytes_ + SAMPLE[place + len(bytes_) :]
    with contextlib.suppress(Error):
        entries(damaged, END)


@settings(max_examples=300)
@given(st.integers(0, 511), st.binary(min_size=1, max_size=12))
def test_damage_under_a_right_checksum_raises_our_errors_only(place: int, bytes_: bytes) -> None:
    block = bytearray(header(b"dev", b"3", uid=base256(1 << 31, 8)))
    block[place : place + len(bytes_)] = bytes_
    block = block[:512]
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    with contextlib.suppress(Error):
        entries(bytes(block), bytes(4096), END)


@settings(max_examples=200)
@given(st.binary(max_size=200))
def test_any_pax_data_raises_our_errors_only(data: bytes) -> None:
    with contextlib.suppress(Error):
        entries(pax(data), header(b"a"), END)


def test_every_cut_within_the_archive_is_an_error() -> None:
    members = len(pax((b"path", b"a/b"))) + len(file(b"x", b"body" * 30))
    boundaries = {0, members, members + len(gnu_long(b"L", b"name" * 40)) + 512}
    for size in range(len(SAMPLE)):
        if size in boundaries:
            entries(SAMPLE[:size])
        else:
            with pytest.raises(FormatError):
                entries(SAMPLE[:size])
