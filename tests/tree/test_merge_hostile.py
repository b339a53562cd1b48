"""Archives that escape, lie or tire, and archives that are merely odd, each with the verdict and the reason."""

import pytest

from oci2boot.errors import Error, FormatError, ImageError, LimitError
from oci2boot.formats.tar import MAX_EXTENSIONS
from oci2boot.tree.merge import merge
from oci2boot.tree.model import Device, Directory, find
from tests.tarballs import (
    END,
    GNU,
    V7,
    base256,
    directory,
    entries,
    file,
    gnu_long,
    hard_link,
    header,
    pax,
    record,
    symlink,
)

ETC = directory(b"etc")
PASSWD = file(b"etc/passwd", b"root")
RECORD_OF_A = record(b"path", b"a")

REFUSED: dict[str, tuple[bytes, type[Error], str]] = {
    # paths
    "dotdot_file": (file(b"../escape"), FormatError, r"with \.\."),
    "dotdot_inside": (ETC + file(b"etc/../x"), FormatError, r"with \.\."),
    "name_dotdot": (directory(b".."), FormatError, r"with \.\."),
    "path_5000": (pax((b"path", b"a/" * 2500 + b"f")) + file(b"x"), LimitError, "over 4095 bytes"),
    "comp_256": (pax((b"path", b"n" * 256)) + file(b"x"), LimitError, "over 255"),
    "pax_path_nul": (pax((b"path", b"a\0b")) + file(b"x"), FormatError, "NUL"),
    "pax_path_empty": (pax((b"path", b"")) + file(b"x"), FormatError, "no name"),
    "gnu_L_nul_inside": (gnu_long(b"L", b"a\0b") + file(b"x", magic=GNU), FormatError, "NUL"),
    "name_empty": (file(b""), FormatError, "no name"),
    "name_dot_sym": (symlink(b".", b"etc"), ImageError, "entry for / that is not a directory"),
    "root_as_file": (file(b"."), ImageError, "entry for / that is not a directory"),
    "root_as_symlink": (symlink(b"/", b"etc"), ImageError, "entry for / that is not a directory"),
    "file_with_slash": (file(b"etc/", flag=b"\0"), FormatError, "slash at its end"),
    # parents
    "sym_abs_then_file": (symlink(b"s", b"/etc") + file(b"s/x"), ImageError, "s is not a directory"),
    "sym_rel_then_file": (ETC + symlink(b"s", b"etc") + file(b"s/x"), ImageError, "s is not a directory"),
    "via_symlink_parent": (ETC + symlink(b"s", b"etc") + file(b"s/a/b"), ImageError, "s is not a directory"),
    "wh_via_sym": (ETC + PASSWD + symlink(b"s", b"etc") + file(b"s/.wh.passwd"), ImageError, "s is not a directory"),
    "wh_in_symdir": (ETC + symlink(b"s", b"etc") + file(b"s/.wh..wh..opq"), ImageError, "s is not a directory"),
    "file_then_child": (file(b"f") + file(b"f/x"), ImageError, "f is not a directory"),
    # hard links
    "hl_dotdot": (ETC + hard_link(b"etc/x", b"../../etc/shadow"), FormatError, r"with \.\."),
    "hl_abs_host": (hard_link(b"x", b"/etc/passwd"), ImageError, "not there"),
    "hl_via_sym": (ETC + PASSWD + symlink(b"s", b"etc") + hard_link(b"x", b"s/passwd"), ImageError, "not a directory"),
    "hl_missing": (ETC + hard_link(b"x", b"etc/none"), ImageError, "not there"),
    "hl_to_dir": (ETC + hard_link(b"x", b"etc"), ImageError, "the directory etc"),
    "hl_to_root": (hard_link(b"x", b"/"), ImageError, "not there"),
    "hl_self": (hard_link(b"x", b"x"), ImageError, "not there"),
    "hl_self_present": (file(b"x") + hard_link(b"x", b"./x"), ImageError, "not there"),
    "hl_forward": (hard_link(b"x", b"y") + file(b"y"), ImageError, "not there"),
    "hl_to_whiteouted": (file(b"y") + file(b".wh.y") + hard_link(b"x", b"y"), ImageError, "not there"),
    "hl_empty": (hard_link(b"x", b""), FormatError, "not a link target"),
    "sym_empty": (symlink(b"x", b""), FormatError, "not a link target"),
    "sym_nul": (pax((b"linkpath", b"a\0b")) + symlink(b"x", b""), FormatError, "not a link target"),
    "sym_4096": (pax((b"linkpath", b"a" * 4096)) + symlink(b"x", b""), LimitError, "over 4095"),
    # whiteouts
    "wh_empty": (file(b".wh."), ImageError, "whiteout of no name"),
    "wh_dot": (file(b".wh.."), ImageError, "whiteout of no name"),
    "wh_dotdot": (file(b".wh..."), ImageError, "whiteout of no name"),
    "wh_dotdot_parent": (ETC + file(b"etc/../.wh.etc"), FormatError, r"with \.\."),
    "wh_as_parent": (ETC + file(b".wh.etc/x"), ImageError, "beneath a whiteout"),
    # content where none may be: tar programs skip it or do not
    "hl_with_size": (file(b"y") + hard_link(b"x", b"y", size=512) + bytes(512), FormatError, "content"),
    "sym_with_size": (symlink(b"x", b"y", size=1) + bytes(512), FormatError, "content"),
    "dir_with_size": (directory(b"d", size=512) + bytes(512), FormatError, "content"),
    "fifo_with_size": (header(b"p", b"6", size=512) + bytes(512), FormatError, "content"),
    "pax_dir_size": (pax((b"size", b"512")) + directory(b"d") + bytes(512), FormatError, "content"),
    # numbers
    "size_neg_b256": (header(b"f", size=base256(-1, 12)), LimitError, "a size of -1"),
    "size_huge": (header(b"f", size=base256(1 << 62, 12)), LimitError, "over the limit"),
    "size_over_8TiB": (header(b"f", size=base256((1 << 43) + 1, 12)), LimitError, "over the limit"),
    "pax_size_neg": (pax((b"size", b"-1")) + header(b"f"), FormatError, "not a number"),
    "pax_size_plus": (pax((b"size", b"+3")) + header(b"f"), FormatError, "not a number"),
    "pax_size_underscore": (pax((b"size", b"1_0")) + header(b"f"), FormatError, "not a number"),
    "pax_size_space": (pax((b"size", b" 3 ")) + header(b"f"), FormatError, "not a number"),
    "pax_size_empty": (pax((b"size", b"")) + header(b"f"), FormatError, "not a number"),
    "pax_size_digits": (pax((b"size", "٣".encode())) + header(b"f"), FormatError, "not a number"),
    "pax_uid_text": (pax((b"uid", b"root")) + header(b"f"), FormatError, "not a number"),
    "pax_mtime_text": (pax((b"mtime", b"1e9")) + header(b"f"), FormatError, "not a time"),
    "pax_mtime_huge": (pax((b"mtime", b"9" * 19)) + header(b"f"), FormatError, "out of range"),
    "pax_mtime_twice": (pax((b"mtime", b"1.5"), (b"mtime", b"2.7")) + header(b"f"), FormatError, "two PAX mtimes"),
    "octal_garbage": (header(b"f", mode=b"0o644\0"), FormatError, "not octal"),
    "octal_minus": (header(b"f", uid=b"-1\0"), FormatError, "not octal"),
    "octal_digit_8": (header(b"f", uid=b"18\0"), FormatError, "not octal"),
    "octal_nul_mid": (header(b"f", mode=b"64\x004\0\0\0\0"), FormatError, "not octal"),
    "b256_overflow": (header(b"f", uid=b"\x80" + b"\xff" * 7), FormatError, "beyond 32 bits"),
    "b256_size_overflow": (header(b"f", size=b"\x80" + b"\xff" * 11), FormatError, "out of range"),
    "b256_bit6": (header(b"f", uid=b"\xc0" + bytes(7)), FormatError, "out of range"),
    "b256_mode_negative": (header(b"f", mode=base256(-1, 8)), FormatError, "negative mode"),
    "uid_2p32": (pax((b"uid", b"4294967296")) + header(b"f"), FormatError, "beyond 32 bits"),
    "uid_minus1": (header(b"f", uid=base256(-1, 8)), FormatError, "beyond 32 bits"),
    "device_4096": (header(b"d", b"3", major=4096), FormatError, "which Linux does not have"),
    "device_minor_2p20": (header(b"d", b"4", minor=1 << 20), FormatError, "which Linux does not have"),
    "device_v7": (header(b"d", b"3", magic=V7), FormatError, "without device numbers"),
    # extended headers
    "pax_len_over": (pax(b"99 path=a\n") + file(b"x"), FormatError, "not a PAX record"),
    "pax_len_short": (pax(b"5 path=a\n") + file(b"x"), FormatError, "not a PAX record"),
    "pax_no_nl": (pax(RECORD_OF_A[:-1] + b"x") + file(b"x"), FormatError, "not a PAX record"),
    "pax_len_zero": (pax(b"0 path=a\n") + file(b"x"), FormatError, "not a PAX record"),
    "pax_len_zero_second": (pax(RECORD_OF_A + b"0 path=a\n") + file(b"x"), FormatError, "not a PAX record"),
    "pax_len_none": (pax(RECORD_OF_A + b"path=a\n") + file(b"x"), FormatError, "not a PAX record"),
    "pax_len_plus": (pax(b"+" + RECORD_OF_A) + file(b"x"), FormatError, "not a PAX record"),
    "pax_len_hugeint": (pax(b"9" * 5000 + b" path=a\n") + file(b"x"), FormatError, "not a PAX record"),
    "pax_no_equals": (pax(b"8 patha\n") + file(b"x"), FormatError, "not a PAX record"),
    "pax_no_key": (pax(b"5 =a\n") + file(b"x"), FormatError, "not a PAX record"),
    "pax_nul_padding": (pax(RECORD_OF_A + bytes(3)) + file(b"x"), FormatError, "not a PAX record"),
    "pax_8M": (pax((b"comment", bytes(8 << 20))) + file(b"x"), LimitError, "of extended headers"),
    "pax_global_8M": (header(b"g", b"g", size=8 << 20), LimitError, "of extended headers"),
    "pax_and_gnu_1M": (
        pax((b"comment", b"c" * (MAX_EXTENSIONS - 100))) + gnu_long(b"L", b"n" * 200) + file(b"x"),
        *(LimitError, "of extended headers"),
    ),
    "pax_size_b256_neg": (header(b"x", b"x", size=base256(-512, 12)), LimitError, "of extended headers"),
    "pax_dangling": (pax((b"path", b"a")) + END, FormatError, "belongs to no entry"),
    "pax_dangling_eof": (pax((b"path", b"a")), FormatError, "belongs to no entry"),
    "pax_dangling_global": (pax((b"path", b"a")) + pax(flag=b"g") + file(b"x"), FormatError, "belongs to no entry"),
    "gnu_L_dangling": (gnu_long(b"L", b"a") + END, FormatError, "belongs to no entry"),
    "pax_2x": (pax((b"path", b"a")) * 2 + file(b"x"), FormatError, "two PAX headers"),
    "pax_empty_2x": (pax() * 2 + file(b"x"), FormatError, "two PAX headers"),
    "gnu_L_2x": (gnu_long(b"L", b"a") * 2 + file(b"x", magic=GNU), FormatError, "two GNU long names"),
    "gnu_K_2x": (gnu_long(b"K", b"a") * 2 + symlink(b"x", b""), FormatError, "two GNU long link names"),
    "pax_and_L": (pax((b"path", b"a")) + gnu_long(b"L", b"b") + file(b"x"), FormatError, "both a PAX path"),
    "L_and_pax": (gnu_long(b"L", b"b") + pax((b"path", b"a")) + file(b"x"), FormatError, "both a PAX path"),
    "pax_and_K": (
        pax((b"linkpath", b"a")) + gnu_long(b"K", b"b") + symlink(b"x", b"c"),
        *(FormatError, "both a PAX linkpath"),
    ),
    "pax_in_v7": (pax((b"path", b"a"), magic=V7) + file(b"x"), FormatError, "no ustar header"),
    "ustar_version": (header(b"f", magic=b"ustar\x0001"), FormatError, "unknown version"),
    "pax_xattr_bigvalue": (pax((b"SCHILY.xattr.user.a", bytes(65537))) + file(b"x"), LimitError, "too long"),
    "pax_xattr_bigname": (pax((b"SCHILY.xattr." + b"n" * 256, b"")) + file(b"x"), LimitError, "too long"),
    "pax_xattr_noname": (pax((b"SCHILY.xattr.", b"")) + file(b"x"), FormatError, "not the name"),
    "xattr_129": (
        pax(*((b"SCHILY.xattr.user.%d" % number, b"") for number in range(129))) + file(b"x"),
        *(LimitError, "over 128 extended attributes"),
    ),
    "xattr_32K": (pax((b"SCHILY.xattr.user.a", bytes(32768))) + file(b"x"), LimitError, "over 32768 bytes"),
    # archives
    "bad_chksum": (header(b"f", checksum=b"0000000\0"), FormatError, "checksum"),
    "bad_chksum_65521": (header(b"f", checksum=b"%06o\0 " % (sum(header(b"f")) + 65521)), FormatError, "checksum"),
    "garbage": (b"not a tar".ljust(1024, b"!"), FormatError, "unknown type !"),
    "unknown_type_Z": (header(b"f", b"Z"), FormatError, "unknown type Z"),
    "type_M_multivol": (header(b"f", b"M", magic=GNU), FormatError, "unknown type M"),
    "type_V_label": (header(b"f", b"V", magic=GNU), FormatError, "unknown type V"),
    "type_N_long": (header(b"f", b"N", magic=GNU), FormatError, "unknown type N"),
    "type_X_solaris": (header(b"f", b"X"), FormatError, "unknown type X"),
    "sparse_old": (header(b"f", b"S", magic=GNU), FormatError, "sparse"),
    "sparse_00": (pax((b"GNU.sparse.size", b"1"), (b"GNU.sparse.offset", b"0")) + file(b"x"), FormatError, "sparse"),
    "sparse_01": (pax((b"GNU.sparse.map", b"0,1")) + file(b"x"), FormatError, "sparse"),
    "sparse_10": (pax((b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0")) + file(b"x"), FormatError, "sparse"),
    "sparse_overlap": (pax((b"GNU.sparse.map", b"0,9,3,9")) + file(b"x"), FormatError, "sparse"),
    "sparse_1PB": (pax((b"GNU.sparse.realsize", b"1125899906842624")) + file(b"x"), FormatError, "sparse"),
    "trunc_header": (header(b"f")[:300], FormatError, "cut short in a header"),
    "trunc_data": (file(b"f", bytes(1000))[:1200], FormatError, "cut short in f"),
    "trunc_small_data": (file(b"f", b"x")[:600], FormatError, "cut short in f"),
    "trunc_padding": (file(b"f", bytes(1000))[:-1], FormatError, "cut short in f"),
    "trunc_pax": (pax((b"path", b"a"))[:600], FormatError, "cut short in an extended header"),
    "trunc_end": (header(b"f") + bytes(512), FormatError, "cut short in its end-of-archive marker"),
    "lone_zero_then_more": (header(b"f") + bytes(512) + header(b"g"), FormatError, "lone zero block"),
}  # fmt: skip
"""Each case of the table of measured tools that any of them refuses, and more."""

ACCEPTED: dict[str, tuple[bytes, str]] = {
    # what real images carry
    "octal_space_pad": (header(b"f", mode=b"   644 \0", uid=b"     0\0\0"), "written by old tars"),
    "dup": (file(b"f", b"1") + file(b"f", b"2"), "last wins, with a warning"),
    "dup_dir_file": (directory(b"f") + file(b"f"), "last wins, with a warning"),
    "sym_then_dir": (symlink(b"f", b"/etc") + directory(b"f") + file(b"f/x"), "a repeated path, no link followed"),
    "hl_to_symlink": (symlink(b"y", b"/etc/passwd") + hard_link(b"f", b"y"), "links the symbolic link itself"),
    "hl_over_its_parent": (directory(b"f") + file(b"f/x", b"1") + hard_link(b"f", b"f/x"), "the inode stays"),
    "dev_overlay_wh": (header(b"f", b"3"), "data, escaped in the EROFS"),
    "abs_file": (file(b"/f"), "relative to the image's root"),
    "implied": (file(b"f/parent/file"), "parents made 0755 root:root, with a warning"),
    # one meaning for all tools
    "pax_size_mismatch": (pax((b"size", b"3")) + header(b"f", size=0) + bytes(512), "PAX counts"),
    "pax_dup_path": (pax((b"path", b"x"), (b"path", b"f")) + file(b"y"), "last of a key counts"),
    "pax_xattr_key_ws": (pax((b"SCHILY.xattr.user.a b", b"1")) + file(b"f"), "any byte but NUL and ="),
    "pax_xattr_overlay": (pax((b"SCHILY.xattr.trusted.overlay.redirect", b"/etc")) + directory(b"f"), "dropped"),
    "gnu_L_nonul": (file(b"@", b"f", flag=b"L", magic=GNU) + file(b"x", magic=GNU), "the NUL is optional"),
    "global_pax": (pax((b"path", b"x"), flag=b"g") + file(b"f"), "ignored, as composefs-rs does"),
    "contig": (header(b"f", b"7"), "a regular file"),
    "wh_root_opq": (file(b"x") + file(b".wh..wh..opq") + file(b"f"), "clears the root"),
    "wh_missing": (file(b".wh.none") + file(b"f"), "nothing to remove"),
    "wh_no_parent": (file(b"none/.wh.x") + file(b"f"), "nothing to remove, with a warning"),
    "wh_opq_dirtype": (directory(b"f") + directory(b"f/.wh..wh..opq"), "a marker of any type"),
    "wh_plnk": (directory(b".wh..wh.plnk") + file(b".wh..wh.plnk/1.2") + file(b"f"), "housekeeping of AUFS"),
    "wh_inside_name": (directory(b"f") + file(b"f/x.wh.y"), "no whiteout"),
    "trailing_after_eof": (header(b"f") + END + b"trailing", "nothing counts behind the marker"),
    "no_eof": (header(b"f"), "a clean end is an end"),
    "pax_empty": (pax() + header(b"f"), "says nothing"),
}  # fmt: skip
"""Cases with one safe meaning; each leaves an entry /f."""


def tree(data: bytes, warnings: list[str] | None = None) -> Directory:
    return merge([entries(data)], (warnings if warnings is not None else []).append)


@pytest.mark.parametrize("case", REFUSED)
def test_hostile_layers_are_refused_in_one_sentence(case: str) -> None:
    data, family, message = REFUSED[case]
    with pytest.raises(family, match=message) as raised:
        tree(data)
    assert "\n" not in raised.value.message
    assert len(raised.value.message) < 400


@pytest.mark.parametrize("case", ACCEPTED)
def test_odd_layers_with_one_safe_meaning_are_taken(case: str) -> None:
    merged = tree(ACCEPTED[case][0])
    assert b"f" in merged.entries
    assert merged.entries.keys() <= {b"f", b"y"}


def test_nothing_that_overlayfs_obeys_gets_into_the_tree() -> None:
    names = [b"trusted.overlay.redirect", b"user.overlay.opaque", b"trusted.overlay.overlay.x", b"user.mine"]
    warnings: list[str] = []
    merged = tree(pax(*((b"SCHILY.xattr." + name, b"/etc") for name in names)) + directory(b"d"), warnings)
    assert merged.entries[b"d"].meta.xattrs == {b"user.mine": b"/etc"}
    assert warnings == ["layer 1: /d: stripped of extended attributes that overlayfs would obey"]


def test_a_character_device_0_0_is_data() -> None:
    """D.6"""
    merged = merge([entries(file(b"w")), entries(header(b"w", b"3"))], lambda _: None)
    device = find(merged, b"w")
    assert isinstance(device, Device)
    assert device.rdev == 0


@pytest.mark.parametrize("names", [[b"a\x1b[31m\nb"], [b"\xff"], ["\u202egnp".encode()]])
def test_messages_do_not_steer_the_terminal(names: list[bytes]) -> None:
    with pytest.raises(ImageError) as raised:
        tree(file(names[0]) + file(names[0] + b"/x"))
    assert raised.value.message.isprintable()
