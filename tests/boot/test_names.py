"""Where systemd-stub looks for what belongs to a UKI. systemd-stub(7); UAPI.1, "Boot counting"."""

import pytest

from oci2boot.boot.names import addons_folder, is_addon, is_program, uncounted

# As systemd 257 does it: the suffix is taken off before companions are looked for.
COUNTED = {
    "EFI/Linux/o2b_7+3-0.efi": "EFI/Linux/o2b_7.efi",
    "EFI/Linux/o2b_7+3.efi": "EFI/Linux/o2b_7.efi",
    "EFI/Linux/O2B_7+2-1.EFI": "EFI/Linux/O2B_7.EFI",
    "loader/entries/debian+1-2.conf": "loader/entries/debian.conf",
    "EFI/Linux/o2b_7.efi": "EFI/Linux/o2b_7.efi",
    # No counter: it does not stand before the suffix, or is no number.
    "EFI/Linux/o2b+3-0_7.efi": "EFI/Linux/o2b+3-0_7.efi",
    "EFI/Linux/o2b_7+a.efi": "EFI/Linux/o2b_7+a.efi",
    "EFI/Linux+3/o2b_7.efi": "EFI/Linux+3/o2b_7.efi",
    "EFI/BOOT/notes.txt": "EFI/BOOT/notes.txt",
}


@pytest.mark.parametrize(("path", "lasting"), COUNTED.items())
def test_a_counter_of_boots_is_no_part_of_what_lasts(path: str, lasting: str) -> None:
    assert uncounted(path) == lasting


def test_addons_keep_their_place_while_the_boots_of_their_uki_are_counted() -> None:
    folder = "EFI/Linux/o2b_7.efi.extra.d"
    assert addons_folder("EFI/Linux/o2b_7+3-0.efi") == addons_folder("EFI/Linux/o2b_7.efi") == folder


def test_names_are_taken_as_fat_takes_them() -> None:
    assert is_addon("x/A.ADDON.EFI")
    assert is_addon(b"x/a.addon.efi")
    assert not is_addon("x/a.efi")
    assert is_program("x/A.EFI")
    assert is_program("a.addon.efi")
    assert not is_program("a.efi.extra.d")
