"""FAT file systems that mkfs.vfat makes and mtools fills."""

import os
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oci2boot.errors import Error, FormatError, LimitError
from oci2boot.formats.fat import Fat
from tests.flips import flipped
from tests.witness import program

FILES: Final = {
    "EFI/BOOT/BOOTX64.EFI": bytes(range(256)) * 300,
    "EFI/Linux/debian_13+3-0.efi": b"uki" * 50_000,
    "EFI/Linux/debian_13+3-0.efi.extra.d/a.addon.efi": b"addon",
    "loader/entries/größe – long name of many parts.conf": b"x" * 4096,
    "loader/loader.conf": b"timeout 3\n",
    "loader/lower.txt": b"lower",
    "empty": b"",
}
KINDS: Final = {12: (2 << 20, 12), 16: (16 << 20, 16), 32: (40 << 20, 32)}
ENV: Final = {**os.environ, "MTOOLS_SKIP_CHECK": "1", "MTOOLSRC": os.devnull, "LC_ALL": "C.UTF-8"}


def mtools(*argv: str | Path, data: bytes = b"") -> bytes:
    return subprocess.run(
        [program(str(argv[0])), *argv[1:]], input=data, env=ENV, check=True, capture_output=True
    ).stdout


def made(path: Path, bits: int) -> bytes:
    size, kind = KINDS[bits]
    argv: list[str | Path] = [
        program("mkfs.vfat"),
        "-F",
        str(kind),
        "-s",
        "1",
        "-n",
        "LABEL",
        "-C",
        path,
        str(size // 1024),
    ]
    subprocess.run(argv, check=True, capture_output=True)
    for folder in sorted(
        {"/".join(name.split("/")[:depth]) for name in FILES for depth in range(1, name.count("/") + 1)}
    ):
        mtools("mmd", "-i", path, f"::/{folder}")
    mtools("mcopy", "-i", path, "-", "::/gone", data=b"deleted" * 1000)
    for name, content in FILES.items():
        mtools("mcopy", "-i", path, "-", f"::/{name}", data=content)
    mtools("mdel", "-i", path, "::/gone")
    return path.read_bytes()


class Images(dict[int, bytes]):
    """By the bits of their tables; no message of a failed test spells them out."""

    def __repr__(self) -> str:
        return "images"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Images:
    place = tmp_path_factory.mktemp("fat")
    return Images((bits, made(place / str(bits), bits)) for bits in KINDS)


def opened(data: bytes) -> Fat:
    return Fat(lambda offset, size: data[offset : offset + size])


@pytest.mark.parametrize("bits", KINDS)
def test_every_file_of_mtools_is_read(images: Images, bits: int) -> None:
    fat = opened(images[bits])
    assert {path: fat.content(path, 1 << 20) for path in fat.files} == FILES
    assert fat.copies_agree


@pytest.mark.parametrize("bits", KINDS)
def test_the_free_space_is_that_of_mdir(images: Images, bits: int, tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(images[bits])
    said = next(
        line
        for line in mtools("mdir", "-i", tmp_path / "image", "::/").decode().splitlines()
        if line.endswith("bytes free")
    )
    fat = opened(images[bits])
    assert int("".join(filter(str.isdigit, said))) == fat.free < fat.size
    assert fat.free % fat.cluster == 0


def test_a_fragmented_file_is_read(images: Images, tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(images[12])
    mtools("mdel", "-i", path, "::/EFI/BOOT/BOOTX64.EFI")
    content = os.urandom(1_750_000)
    mtools("mcopy", "-i", path, "-", "::/split", data=content)
    fat = opened(path.read_bytes())
    assert len(fat.files["split"].runs) > 1
    assert fat.content("split", 1 << 21) == content


def test_a_file_above_the_limit_is_not_read(images: Images) -> None:
    with pytest.raises(LimitError, match="at most 100 are read"):
        opened(images[16]).content("EFI/BOOT/BOOTX64.EFI", 100)


def test_copies_of_the_table_that_differ_are_told(images: Images) -> None:
    assert not opened(flipped(images[32], 32 * 512 + 4000)).copies_agree


def test_a_long_name_counts_only_with_the_checksum_of_its_short_name(images: Images, tmp_path: Path) -> None:
    """As mdir sees it."""
    path = tmp_path / "disk"
    changed = patched_slot(images[16], b"LOADER~1CON", 0, b"LOADER~2CON")
    path.write_bytes(changed)
    listed = mtools("mdir", "-b", "-i", path, "::/loader").decode().split()
    assert {"::/loader/LOADER~2.CON", "::/loader/lower.txt"} <= set(listed)
    assert "loader/LOADER~2.CON" in opened(changed).files
    assert "loader/loader.conf" not in opened(changed).files


def patched_slot(data: bytes, short: bytes, at: int, new: bytes) -> bytes:
    changed = bytearray(data)
    slot = data.index(short)
    changed[slot + at : slot + at + len(new)] = new
    return bytes(changed)


# Each is refused by fsck.fat too.
@pytest.mark.parametrize(
    ("at", "new", "said"),
    [
        (28, (1 << 31).to_bytes(4, "little"), "fewer clusters than its size takes"),
        (28, (1).to_bytes(4, "little"), "more clusters than its size takes"),
        (26, (3).to_bytes(2, "little"), "belong to another file too"),
        (26, (0).to_bytes(2, "little"), "which is none"),
        (26, (0xFFF0).to_bytes(2, "little"), "which is none"),
    ],
)
def test_chains_that_lie_are_refused(images: Images, at: int, new: bytes, said: str, tmp_path: Path) -> None:
    changed = patched_slot(images[16], b"BOOTX64 EFI", at, new)
    with pytest.raises(FormatError, match=said):
        opened(changed)
    path = tmp_path / "disk"
    path.write_bytes(changed)
    assert subprocess.run([program("fsck.fat"), "-n", path], check=False, capture_output=True).returncode == 1


def test_a_directory_that_holds_itself_is_refused(images: Images) -> None:
    data = images[16]
    efi = data.index(b"EFI        ")
    inner = data.index(b"BOOT       ")
    with pytest.raises(FormatError, match="belong to another file too"):
        opened(patched_slot(data, b"BOOT       ", 26, data[efi + 26 : efi + 28]))
    assert inner > efi


@settings(max_examples=40, deadline=None)
@given(st.data())
@pytest.mark.parametrize("bits", KINDS)
def test_damage_raises_only_our_errors(images: Images, bits: int, data: st.DataObject) -> None:
    original = images[bits]
    changed = dict[int, int]()
    for _ in range(data.draw(st.integers(1, 5))):
        changed[data.draw(st.integers(0, 200_000))] = data.draw(st.integers(0, 255))

    def read(offset: int, size: int) -> bytes:
        found = bytearray(original[offset : offset + size])
        for at, value in changed.items():
            if offset <= at < offset + len(found):
                found[at - offset] = value
        return bytes(found)

    with suppress(Error):
        fat = Fat(read)
        for path in fat.files:
            fat.content(path, 1 << 20)


def test_what_is_no_file_system_is_one_sentence() -> None:
    for data in (b"", bytes(4096), b"x" * 4096):
        with pytest.raises(FormatError):
            opened(data)
