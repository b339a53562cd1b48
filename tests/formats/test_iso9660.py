"""ISO 9660 volumes that firmware boots from, made by xorriso."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from oci2boot.errors import FormatError
from oci2boot.formats.iso9660 import BLOCK, Read, Volume, read_volume
from tests.witness import program

CATALOG = 33
"""Block of the boot catalog, as `xorriso -report_el_torito plain` tells it of these volumes."""


def made(folder: Path, words: Sequence[str]) -> bytes:
    content = folder / "content"
    content.mkdir()
    (content / "bios").write_bytes(b"b" * 5000)
    (content / "efi").write_bytes(b"e" * 5000)
    argv = [program("xorriso"), "-no_rc", "-as", "mkisofs", "-quiet", "-o", str(folder / "iso"), "-V", "A_VOLUME"]
    subprocess.run([*argv, *words, str(content)], check=True, capture_output=True)
    return (folder / "iso").read_bytes()


def reads(data: bytes) -> Read:
    return lambda offset, size: data[offset : offset + size]


@pytest.mark.parametrize(
    "words",
    [
        ["-e", "efi", "-no-emul-boot"],
        ["-b", "bios", "-no-emul-boot", "-eltorito-alt-boot", "-e", "efi", "-no-emul-boot"],
    ],
)
def test_the_image_for_uefi_is_found(words: list[str], tmp_path: Path) -> None:
    """K0.13"""
    data = made(tmp_path, words)
    volume = read_volume(reads(data))
    assert volume
    assert volume.identifier == "A_VOLUME"
    assert volume.boot_image is not None
    assert data[volume.boot_image :].startswith(b"e" * 5000)


def test_what_boots_nothing_or_bios_alone(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert read_volume(reads(made(tmp_path / "a", []))) == Volume("A_VOLUME", None)
    assert read_volume(reads(made(tmp_path / "b", ["-b", "bios", "-no-emul-boot"]))) == Volume("A_VOLUME", None)
    assert read_volume(reads(bytes(100_000))) is None
    assert read_volume(reads(b"")) is None


def test_damage_is_an_error(tmp_path: Path) -> None:
    data = made(tmp_path, ["-e", "efi", "-no-emul-boot"])
    for damaged, why in (
        (data[: 17 * BLOCK], "have no end"),
        (data[: CATALOG * BLOCK], "cannot be read"),
        (data[: CATALOG * BLOCK + 4] + b"\xff" + data[CATALOG * BLOCK + 5 :], "checksum"),
        (data[: 16 * BLOCK] + b"\2" + data[16 * BLOCK + 1 :], "primary"),
        (data[: 17 * BLOCK] + data[16 * BLOCK : 17 * BLOCK] * 64, "more than 64"),
    ):
        with pytest.raises(FormatError, match=why):
            read_volume(reads(damaged))
