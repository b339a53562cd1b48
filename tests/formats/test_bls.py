"""Boot menu entries, by the specification's example and systemd's own tests (src/test/test-bootspec.c)."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oci2boot.errors import Error, FormatError
from oci2boot.formats.bls import EntryName, MenuItem, Type1, compare_items, menu_key

EXAMPLE = """\
# /boot/loader/entries/6a9857a393724b7a981ebb5b8495b9ea-3.8.0-2.fc19.x86_64.conf
title        Fedora 19 (Rawhide)
sort-key     fedora
machine-id   6a9857a393724b7a981ebb5b8495b9ea
version      3.8.0-2.fc19.x86_64
options      root=UUID=6d3376e4-fc93-4509-95ec-a21d68011da2 quiet
architecture x64
linux        /6a9857a393724b7a981ebb5b8495b9ea/3.8.0-2.fc19.x86_64/linux
initrd       /6a9857a393724b7a981ebb5b8495b9ea/3.8.0-2.fc19.x86_64/initrd
"""


def test_the_specifications_example_is_read() -> None:
    """D.16"""
    entry = Type1.parse(EXAMPLE.encode())
    assert entry.last("title") == "Fedora 19 (Rawhide)"
    assert entry.options == "root=UUID=6d3376e4-fc93-4509-95ec-a21d68011da2 quiet"
    folder = "6a9857a393724b7a981ebb5b8495b9ea/3.8.0-2.fc19.x86_64"
    assert entry.paths == [f"{folder}/linux", f"{folder}/initrd"]


def test_what_the_specification_does_not_know_is_kept_in_its_place() -> None:
    text = "title A\ngrub_users $grub_users\noptions a\ninitrd /x\ninitrd /y\noptions b\n"
    entry = Type1.parse(text.encode())
    assert str(entry) == text
    assert entry.options == "a b"
    changed = entry.replaced([("options", ("a b c",)), ("initrd", ("/1", "/2", "/3")), ("version", ("9",))])
    assert str(changed) == (
        "title A\ngrub_users $grub_users\noptions a b c\ninitrd /1\ninitrd /2\ninitrd /3\nversion 9\n"
    )


@pytest.mark.parametrize(
    "text", ['options "composefs=x"', "linux ../vmlinuz", "linux /a//b", "initrd a\\b", "title \xff", "title a\0b"]
)
def test_an_entry_that_readers_would_see_differently_is_refused(text: str) -> None:
    with pytest.raises(FormatError):
        _ = Type1.parse(text.encode("latin-1")).paths


@given(st.binary(max_size=200))
def test_hostile_bytes_are_an_entry_or_an_error(data: bytes) -> None:
    try:
        entry = Type1.parse(data)
        assert Type1.parse(str(entry).encode()) == entry
    except Error:
        pass


# src/test/test-bootspec.c and src/boot/boot.c, `boot_entry_parse_tries`.
@pytest.mark.parametrize(
    ("name", "stem", "left", "done"),
    [
        ("foobar.efi", "foobar", None, None),
        ("foobar+3.efi", "foobar", 3, None),
        ("foobar+3-0.EFI", "foobar", 3, 0),
        ("some+name+24324-22.efi", "some+name", 24324, 22),
        ("ses.sgesge.+4-1.conf", "ses.sgesge.", 4, 1),
        ("abc+0x4.conf", "abc+0x4", None, None),
        ("def+1-0x3.conf", "def+1-0x3", None, None),
        ("a+2147483648.conf", "a+2147483648", None, None),
    ],
)
def test_the_boot_counter_is_where_systemd_sees_it(name: str, stem: str, left: int | None, done: int | None) -> None:
    found = EntryName.parse(name)
    assert (found.stem, found.left, found.done) == (stem, left, done)
    assert str(found) == name


@pytest.mark.parametrize("name", ["auto-osx.efi", ".hidden.efi", "a.txt", "", ".efi", "x" * 256 + ".efi"])
def test_names_that_systemd_boot_passes_over_are_refused(name: str) -> None:
    with pytest.raises(FormatError):
        EntryName.parse(name)


MACHINE = "dd235d00696545768f6f693bfd23b15f"


def item(name: str, sort_key: str | None = None, version: str | None = None, machine: str | None = None) -> MenuItem:
    return MenuItem(EntryName.parse(name), sort_key, machine, version)


# In the order that TEST(bootspec_sort) expects, and with boot counters as the specification says.
SYSTEMDS = [
    item("d.conf", "kkkk", "100", "81c6e3147cf544c19006af023e22b292"),
    item("cx.conf", "xxxx", "10", "309de666fd5044268a9a26541ac93176"),
    item("c.conf", "xxxx", "5", "309de666fd5044268a9a26541ac93176"),
    item("b.conf", None, "3", "b75451ad92f94feeab50b0b442768dbd"),
    item("a-10.conf", None, "10", MACHINE),
    item("a-5.conf", None, "5", MACHINE),
    item("z+0-3.conf", "aaaa", "200"),
]


def test_the_menu_is_in_systemds_order() -> None:
    shuffled = random.Random(5).sample(SYSTEMDS, len(SYSTEMDS))
    assert sorted(shuffled, key=menu_key) == SYSTEMDS


def test_an_entry_with_attempts_left_stands_before_one_without() -> None:
    assert compare_items(item("a+1.efi", "x", "1"), item("b+0-3.efi", "x", "2")) < 0
