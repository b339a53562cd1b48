"""A boot directory that somebody else has written to: names, links, programs and sizes."""

import os
from pathlib import Path

import pytest

from oci2boot.errors import DigestError, FormatError, LimitError, TargetError
from oci2boot.sysroot import bootdir
from oci2boot.sysroot.bootdir import read_boot_directory
from oci2boot.sysroot.bootdir_apply import apply_boot
from oci2boot.sysroot.bootdir_plan import plan_boot
from oci2boot.sysroot.bootdir_steps import BootPlan, Rename
from tests.sysroot.boots import ONE, THREE, TWO, addon, menu, names, put, uki


@pytest.mark.parametrize(
    "path",
    ["EFI/Linux/a b.efi", "EFI/Linux/../x.efi", "/EFI/Linux/x.efi", "EFI/Linux/a~.efi", "EFI/Linux/x." + "e" * 255],
)
def test_names_that_fat_cannot_have_are_refused(esp: Path, path: str) -> None:
    with pytest.raises(TargetError, match="not a path"):
        plan_boot(read_boot_directory(esp), {path: uki("1")}, first=path)


def test_names_that_fat_takes_for_the_same_are_refused(esp: Path) -> None:
    with pytest.raises(TargetError, match="same on FAT"):
        plan_boot(read_boot_directory(esp), {ONE: uki("1"), ONE.upper().replace(".EFI", ".efi"): uki("1")}, first=ONE)


def test_a_file_that_changes_while_it_is_copied_is_not_installed(esp: Path, tmp_path: Path) -> None:
    source = tmp_path / "uki"
    source.write_bytes(uki("1"))
    plan = plan_boot(read_boot_directory(esp), {ONE: source}, first=ONE)
    source.write_bytes(uki("1", "cd" * 32))
    with pytest.raises(DigestError, match="does not read back"):
        apply_boot(plan, esp)
    assert names(esp) == []


def test_no_symbolic_link_leads_out_of_the_directory(esp: Path, tmp_path: Path) -> None:
    plan = plan_boot(read_boot_directory(esp), {ONE: uki("1")}, first=ONE)
    (tmp_path / "elsewhere").mkdir()
    (esp / "EFI").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(TargetError, match="symbolic link"):
        apply_boot(plan, esp)
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize("content", [uki("1"), b"other"], ids=["the same", "other"])
def test_a_link_in_the_place_of_a_file_is_neither_followed_nor_taken_for_it(
    esp: Path, tmp_path: Path, content: bytes
) -> None:
    """FAT has no links, so somebody put it there, or the directory is no FAT and firmware would not find the file."""
    plan = plan_boot(read_boot_directory(esp), {ONE: uki("1")}, first=ONE)
    put(tmp_path, "elsewhere", content)
    (esp / "EFI/Linux").mkdir(parents=True)
    (esp / ONE).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(TargetError, match=r"debian_1\.efi is a symbolic link"):
        apply_boot(plan, esp)
    assert (tmp_path / "elsewhere").read_bytes() == content
    assert list((esp / "EFI/Linux").iterdir()) == [esp / ONE]


@pytest.mark.parametrize("to", ["debian_2.efi", "debian_9.efi"])
def test_a_rename_takes_nobodys_place_and_happens_once(esp: Path, to: str) -> None:
    put(esp, ONE, b"one")
    put(esp, TWO, b"two")
    plan = BootPlan(steps=(Rename(ONE, f"EFI/Linux/{to}"),), first="", needed=0, paths={})
    if to == "debian_2.efi":
        with pytest.raises(TargetError, match="is there already"):
            apply_boot(plan, esp)
        assert ((esp / ONE).read_bytes(), (esp / TWO).read_bytes()) == (b"one", b"two")
        return
    apply_boot(plan, esp)
    apply_boot(plan, esp)
    (esp / "EFI/Linux" / to).unlink()
    with pytest.raises(TargetError, match="is gone"):
        apply_boot(plan, esp)


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        ("MAX_DEPTH", "more than 1 directories deep"),
        ("MAX_FILES", "more than 1 files"),
        ("MAX_ENTRIES", "3 boot menu entries, at most 1"),
    ],
)
def test_a_boot_directory_without_end_is_refused(
    esp: Path, limit: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P.12: whoever can write to the ESP does not choose how much is read."""
    for path in (ONE, TWO, THREE):
        put(esp, path, uki(path[-5]))
    monkeypatch.setattr(bootdir, limit, 1)
    with pytest.raises(LimitError, match=said):
        read_boot_directory(esp)


def test_a_kernel_is_no_addon(esp: Path) -> None:
    """systemd-stub would not load it, and its command line says nothing of the entry."""
    put(esp, ONE, uki("1"))
    put(esp, f"{ONE}.extra.d/x.addon.efi", uki("2", "cd" * 32))
    found = read_boot_directory(esp)
    assert "an addon with a kernel in it" in found.problems[0]
    assert [str(argument) for entry in found.entries for argument in entry.arguments] == [f"composefs={'ab' * 32}"]


def test_more_addons_than_are_read_keep_an_entry_out_of_the_menu(esp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """C.11: what an addon that is not looked at appends might be another root file system."""
    put(esp, ONE, uki("1"))
    for number in range(2):
        put(esp, f"{ONE}.extra.d/{number}.addon.efi", addon("quiet"))
    assert menu(esp) == ["debian_1.efi"]
    monkeypatch.setattr(bootdir, "MAX_ADDONS", 1)
    assert menu(esp) == []
    assert "2 addons, at most 1 are read" in read_boot_directory(esp).problems[0]


def test_only_regular_files_are_mapped(tmp_path: Path) -> None:
    """Between the look at a name and its opening somebody may put another thing there."""
    put(tmp_path, "file", b"content")
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "pipe")
    with bootdir.mapped(tmp_path / "file", 7) as data:
        assert data[:] == b"content"
    for name, error, said in (
        ("link", OSError, "symbolic"),
        ("pipe", FormatError, "regular"),
        ("file", LimitError, "at most 6"),
    ):
        with pytest.raises(error, match=said), bootdir.mapped(tmp_path / name, 6):
            pass


def test_a_place_that_is_no_directory_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="not a directory"):
        read_boot_directory(tmp_path / "nothing")
