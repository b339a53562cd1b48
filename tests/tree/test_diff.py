"""Trees that differ in one thing each: the path and the field are named."""

import pytest

from oci2boot.tree.diff import Difference, compare, describe, first_of, text
from oci2boot.tree.dumpfile import parse_dumpfile

OBJECT = "ab" * 32
DUMP = f"""\
/ 0 40755 3 0 0 0 1.0 - - -
/block 0 60660 1 0 6 2049 1.0 - - -
/dir 0 40755 2 0 0 0 1.0 - - -
/dir/big 1000 100644 1 0 0 0 1.5 {OBJECT[:2]}/{OBJECT[2:]} - {OBJECT} security.capability=\\x01\\x00
/dir/inline 5 100644 1 0 0 0 1.0 - hello -
/dir/link 3 120777 1 0 0 0 1.0 big - -
/one 4 100644 2 0 0 0 1.0 - same -
/two 0 @120000 - - - - 0.0 /one - -
"""

CHANGES: dict[str, tuple[str, str, list[tuple[str, str, str, str]]]] = {
    "mode": ("/dir 0 40755", "/dir 0 40700", [("/dir", "mode", "0755", "0700")]),
    "uid": ("5 100644 1 0 0", "5 100644 1 7 0", [("/dir/inline", "uid", "0", "7")]),
    "gid": ("60660 1 0 6", "60660 1 0 7", [("/block", "gid", "6", "7")]),
    "mtime": ("/dir 0 40755 2 0 0 0 1.0", "/dir 0 40755 2 0 0 0 2.0", [("/dir", "mtime", "1", "2")]),
    "nanoseconds": ("0 1.5", "0 1.6", [("/dir/big", "mtime nanoseconds", "5", "6")]),
    "size": ("/dir/big 1000", "/dir/big 1001", [("/dir/big", "size", "1000", "1001")]),
    "content": (
        f"{OBJECT[:2]}/{OBJECT[2:]} - {OBJECT}",
        f"{'cd'}/{OBJECT[2:]} - cd{OBJECT[2:]}",
        [("/dir/big", "fs-verity", OBJECT, "cd" + OBJECT[2:])],
    ),
    "target": ("3 120777 1 0 0 0 1.0 big", "3 120777 1 0 0 0 1.0 pig", [("/dir/link", "target", "big", "pig")]),
    "device": ("6 2049", "6 2050", [("/block", "device", "2049", "2050")]),
    "type": ("/block 0 60660", "/block 0 20660", [("/block", "type", "block device", "character device")]),
    "type and all with it": (
        "/dir/inline 5 100644 1 0 0 0 1.0 - hello -",
        "/dir/inline 5 120777 1 0 0 0 1.0 hello - -",
        [("/dir/inline", "type", "file", "symlink")],
    ),
    "xattr": ("\\x01\\x00", "\\x02", [("/dir/big", "xattr security.capability", "\x01\x00", "\x02")]),
    "an xattr more": (
        "=\\x01\\x00",
        "=\\x01\\x00 user.a\\xff=b",
        [("/dir/big", "xattr user.a\\xff", "absent", "b")],
    ),
    "missing": ("/dir/link 3 120777 1 0 0 0 1.0 big - -\n", "", [("/dir/link", "path", "symlink", "absent")]),
    "extra": (
        "/one",
        "/new 0 40755 2 0 0 0 1.0 - - -\n/new/below 0 100644 1 0 0 0 1.0 - - -\n/one",
        [("/new", "path", "absent", "directory")],
    ),
    "no hard link": (
        "/one 4 100644 2 0 0 0 1.0 - same -\n/two 0 @120000 - - - - 0.0 /one - -",
        "/one 4 100644 1 0 0 0 1.0 - same -\n/two 4 100644 1 0 0 0 1.0 - same -",
        [("/two", "hard link of", "/one", "absent")],
    ),
}


def differences(a: str, b: str) -> list[tuple[str, str, str, str]]:
    trees = [parse_dumpfile(dump.encode()) for dump in (a, b)]
    found, more = first_of(compare(*(describe(tree, "sha256") for tree in trees)), 100)
    assert more == 0
    return [(one.path, one.field, one.a, one.b) for one in found]


@pytest.mark.parametrize(("old", "new", "expected"), CHANGES.values(), ids=CHANGES.keys())
def test_the_field_that_differs_is_named(old: str, new: str, expected: list[tuple[str, str, str, str]]) -> None:
    """B.3"""
    changed = DUMP.replace(old, new, 1)
    assert changed != DUMP
    assert differences(DUMP, changed) == expected
    assert differences(changed, DUMP) == [(path, field, b, a) for path, field, a, b in expected]


def test_equal_trees_have_no_difference() -> None:
    assert differences(DUMP, DUMP) == []


def test_the_first_are_by_path_and_the_others_counted() -> None:
    every = [Difference(f"/{number:03}", "mode", "a", "b") for number in reversed(range(100))]
    found, more = first_of(iter(every), 3)
    assert [one.path for one in found] == ["/000", "/001", "/002"]
    assert more == 97


def test_names_of_any_bytes_have_texts_of_their_own() -> None:
    names = [b"\xff", b"\\xff", "ÿ".encode(), b"a\\b", b"a\\\\b", b"\n"]
    assert len({text(name) for name in names}) == len(names)
