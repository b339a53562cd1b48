"""Boot entries in the firmware: what efibootmgr is asked, and what it answers. efibootmgr(8), versions 17 and 18."""

from pathlib import Path

import pytest

from oci2boot.system import nvram

OLD = """\
BootCurrent: 0001
Timeout: 3 seconds
BootOrder: 0001,0000,000A
Boot0000* UiApp
Boot0001* Debian GNU/Linux 13 (trixie)
Boot000A  UEFI Shell
"""
NEW = OLD.replace("(trixie)", "(trixie)\tHD(1,GPT,0c5a…,0x800,0x100000)/File(\\EFI\\BOOT\\BOOTX64.EFI)")


@pytest.mark.parametrize("listing", [OLD, NEW])
def test_entries_are_read_from_either_version(listing: str) -> None:
    assert nvram.entries(listing) == {"0000": "UiApp", "0001": "Debian GNU/Linux 13 (trixie)", "000A": "UEFI Shell"}


def test_the_request_names_disk_partition_and_loader() -> None:
    argv = nvram.create_argv(Path("/dev/nvme0n1"), 1, "Debian", "EFI/systemd/systemd-bootx64.efi")
    assert argv == [
        "efibootmgr", "--quiet", "--create", "--disk", Path("/dev/nvme0n1"), "--part", "1",
        "--label", "Debian", "--loader", "\\EFI\\systemd\\systemd-bootx64.efi",
    ]  # fmt: skip


def test_installing_again_replaces_the_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program is a script that keeps entries in a file: there is no firmware to write to in a test."""
    program = tmp_path / "efibootmgr"
    program.write_text(
        f'#!/bin/sh\nif [ $# = 0 ]; then cat {tmp_path}/listing\nelse echo "$@" >>{tmp_path}/asked; fi\n'
    )
    program.chmod(0o755)
    (tmp_path / "listing").write_text(NEW)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    nvram.set_entry(Path("/dev/vda"), 1, "Debian GNU/Linux 13 (trixie)", "EFI/BOOT/BOOTX64.EFI")
    first, second = (tmp_path / "asked").read_text().splitlines()
    assert "--create" in first
    assert second == "--quiet --bootnum 0001 --delete-bootnum"
