"""Android boot images, byte for byte as mkbootimg writes them, and taken apart by unpack_bootimg."""

import random
import subprocess
from pathlib import Path

import pytest

from oci2boot.errors import Error, FormatError, LimitError
from oci2boot.formats.android_boot import Contents, Layout, read, write
from tests.witness import program

KERNEL, RAMDISK, DTB = (random.Random(size).randbytes(size) for size in (70_001, 8192, 4097))
LINE = f"rw composefs={'ab' * 32}"


def mkbootimg(folder: Path, line: str, *words: str) -> bytes:
    for name, data in (("kernel", KERNEL), ("ramdisk", RAMDISK), ("dtb", DTB)):
        (folder / name).write_bytes(data)
    argv = [
        program("mkbootimg"),
        "--header_version",
        "2",
        "--cmdline",
        line,
        "--output",
        str(folder / "theirs"),
        *words,
    ]
    for name in ("kernel", "ramdisk", "dtb"):
        argv += [f"--{name}", str(folder / name)]
    subprocess.run(argv, check=True)
    return (folder / "theirs").read_bytes()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "pagesize=4096,base=0x80000000",
        "pagesize=2048,base=0,kernel_offset=0x80000,ramdisk_offset=0x2000000,tags_offset=0x1000,dtb_offset=0x1e00000",
        "board=rb3gen2,os_version=14.0.1,os_patch_level=2026-11",
        "os_version=9,base=268435456,pagesize=16384",
    ],
)
@pytest.mark.parametrize("line", [LINE, f"{LINE} {'x' * 1000}"])
def test_the_image_is_the_one_of_mkbootimg(text: str, line: str, tmp_path: Path) -> None:
    """C.37: a command line of more than 512 bytes goes on in a second field."""
    words = [
        part
        for word in filter(None, text.split(","))
        for part in (f"--{word.partition('=')[0]}", word.partition("=")[2])
    ]
    assert write(KERNEL, RAMDISK, DTB, line, Layout.parse(text)) == mkbootimg(tmp_path, line, *words)


def test_unpack_bootimg_finds_what_was_put_in(tmp_path: Path) -> None:
    """C.37"""
    (tmp_path / "boot.img").write_bytes(write(KERNEL, RAMDISK, DTB, LINE, Layout()))
    argv = [program("unpack_bootimg"), "--boot_img", str(tmp_path / "boot.img"), "--out", str(tmp_path / "out")]
    said = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    assert [(tmp_path / "out" / name).read_bytes() for name in ("kernel", "ramdisk", "dtb")] == [KERNEL, RAMDISK, DTB]
    assert f"command line args: {LINE}\n" in said
    assert "boot image header version: 2\n" in said


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pagesize=1000", "pages of 1000"),
        ("pagesize", "not of an Android boot image"),
        ("second_offset=1", "not of an Android boot image"),
        ("base=1,base=2", "said twice"),
        ("base=ten", "not a number of 32 bits"),
        ("base=0x100000000", "not a number of 32 bits"),
        ("base=99999999999", "not a number of 32 bits"),
        ("base=0xffffffff", "beyond 32 bits"),
        ("board=a-name-of-17-lett", "not a board's name"),
        ("os_version=128", "not a version of Android"),
        ("os_version=x", "not a version of Android"),
        ("os_patch_level=2026-13", "not a patch level"),
        ("os_patch_level=1999-01", "not a patch level"),
    ],
)
def test_a_layout_that_no_boot_loader_could_read_is_refused(text: str, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        Layout.parse(text)


@pytest.mark.parametrize(("line", "message"), [("x" * 1536, "takes 1535"), ("x" * 4000, "takes 1535")])
def test_a_command_line_that_would_be_cut_off_is_refused(line: str, message: str) -> None:
    """C.37: mkbootimg takes 1536, and leaves no room for the NUL."""
    assert write(KERNEL, RAMDISK, DTB, "x" * 1535, Layout())
    with pytest.raises(LimitError, match=message):
        write(KERNEL, RAMDISK, DTB, line, Layout())


@pytest.mark.parametrize("parts", [(b"", RAMDISK, DTB), (KERNEL, b"", DTB), (KERNEL, RAMDISK, b"")])
def test_an_image_has_all_three_parts(parts: tuple[bytes, bytes, bytes]) -> None:
    with pytest.raises(Error, match="of 0 bytes"):
        write(*parts, LINE, Layout())


@pytest.mark.parametrize("line", [LINE, "x" * 512, "x" * 1535, ""])
def test_what_mkbootimg_wrote_is_read(line: str, tmp_path: Path) -> None:
    """C.37"""
    for size in ("2048", "16384"):
        assert read(mkbootimg(tmp_path, line, "--pagesize", size)) == Contents(KERNEL, RAMDISK, DTB, line)


def _patched(at: int, data: bytes) -> bytes:
    image = bytearray(write(KERNEL, RAMDISK, DTB, LINE, Layout()))
    image[at : at + len(data)] = data
    return bytes(image)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (b"ANDROID!" + bytes(100), "cut short"),
        (_patched(0, b"X"), "no Android boot image"),
        (_patched(40, b"\x03"), "no Android boot image"),
        (_patched(36, b"\x00\x01"), "none made here"),
        (_patched(24, b"\x01"), "none made here"),
        (_patched(8, b"\xff\xff\xff\xff"), "ends within a part"),
        (_patched(2048, bytes([KERNEL[0] ^ 1])), "not that of its parts"),
        (_patched(576, b"\x00"), "not that of its parts"),
        (_patched(64, b"\xff"), "outside ASCII"),
        (write(KERNEL, RAMDISK, DTB, LINE, Layout())[:-4096], "ends within a part"),
    ],
)
def test_a_damaged_image_is_refused(image: bytes, message: str) -> None:
    """By the offsets of the specification: kernel_size 8, second_size 24, page_size 36, version 40, id 576."""
    with pytest.raises(FormatError, match=message):
        read(image)
