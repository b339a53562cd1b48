"""Android's boot image, header version 2: kernel, ramdisk and device tree, each from a new page on.

https://source.android.com/docs/core/architecture/bootloader/boot-image-header; include/bootimg/bootimg.h says what `id`
is made of. The words of a layout are those of mkbootimg, as its defaults are. Nothing here signs: that is AVB's part.
"""

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from types import MappingProxyType
from typing import Annotated, Final, Self

from oci2boot.errors import FormatError, LimitError
from oci2boot.formats.binary import U32, U64, Record

MAGIC: Final = b"ANDROID!"
VERSION: Final = 2
CMDLINE_SIZE: Final = 512
EXTRA_CMDLINE_SIZE: Final = 1024
PAGE_SIZES: Final = (2048, 4096, 8192, 16384)
MAX_U32: Final = 0xFFFF_FFFF


@dataclass(frozen=True, slots=True)
class Header(Record):
    magic: Annotated[bytes, "8s"]
    kernel_size: U32
    kernel_addr: U32
    ramdisk_size: U32
    ramdisk_addr: U32
    second_size: U32
    second_addr: U32
    tags_addr: U32
    page_size: U32
    header_version: U32
    os_version: U32
    name: Annotated[bytes, "16s"]
    cmdline: Annotated[bytes, "512s"]
    id: Annotated[bytes, "32s"]
    extra_cmdline: Annotated[bytes, "1024s"]
    recovery_dtbo_size: U32
    recovery_dtbo_offset: U64
    header_size: U32
    dtb_size: U32
    dtb_addr: U64


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """What a board's boot loader wants, besides the contents."""

    pagesize: int = 2048
    base: int = 0x1000_0000
    kernel_offset: int = 0x8000
    ramdisk_offset: int = 0x0100_0000
    tags_offset: int = 0x100
    dtb_offset: int = 0x01F0_0000
    board: str = ""
    os_version: int = 0
    """Of three numbers, seven bits each."""
    os_patch_level: int = 0
    """Seven bits for the year since 2000, four for the month."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `pagesize=4096,base=0x80000000`; what is not named is as mkbootimg has it."""
        found: dict[str, int | str] = {}
        names = [field.name for field in fields(cls)]
        for word in filter(None, text.split(",")):
            name, equals, value = word.partition("=")
            if name not in names or not equals:
                raise FormatError(f"not of an Android boot image: {word[:80]!r}", hint=f"it has {', '.join(names)}")
            if name in found:
                raise FormatError(f"{name} is said twice of an Android boot image")
            found[name] = _READERS.get(name, _number)(value)
        layout = cls(**found)  # type: ignore[arg-type]
        layout.check()
        return layout

    def check(self) -> None:
        if self.pagesize not in PAGE_SIZES:
            raise FormatError(f"an Android boot image in pages of {self.pagesize} bytes", hint=f"one of {PAGE_SIZES}")
        for name, value in asdict(self).items():
            if name.endswith("_offset") and self.base + value > MAX_U32 and name != "dtb_offset":
                raise FormatError(f"base and {name} of an Android boot image give an address beyond 32 bits")


def write(kernel: bytes, ramdisk: bytes, dtb: bytes, cmdline: str, layout: Layout) -> bytes:
    """Return the image; `LimitError` for a command line that has no room, `FormatError` for a part that is empty."""
    line = cmdline.encode("ascii")
    if len(line) >= CMDLINE_SIZE + EXTRA_CMDLINE_SIZE:
        raise LimitError(
            f"the kernel command line has {len(line)} bytes, an Android boot image takes "
            f"{CMDLINE_SIZE + EXTRA_CMDLINE_SIZE - 1}"
        )
    for what, data in (("kernel", kernel), ("ramdisk", ramdisk), ("device tree", dtb)):
        if not 0 < len(data) <= MAX_U32:
            raise FormatError(f"an Android boot image cannot have a {what} of {len(data)} bytes")
    header = Header(
        magic=MAGIC,
        kernel_size=len(kernel),
        kernel_addr=layout.base + layout.kernel_offset,
        ramdisk_size=len(ramdisk),
        ramdisk_addr=layout.base + layout.ramdisk_offset,
        second_size=0,
        second_addr=0,
        tags_addr=layout.base + layout.tags_offset,
        page_size=layout.pagesize,
        header_version=VERSION,
        os_version=layout.os_version << 11 | layout.os_patch_level,
        name=layout.board.encode(),
        cmdline=line[:CMDLINE_SIZE],
        id=_id(kernel, ramdisk, dtb),
        extra_cmdline=line[CMDLINE_SIZE:],
        recovery_dtbo_size=0,
        recovery_dtbo_offset=0,
        header_size=Header.layout().size,
        dtb_size=len(dtb),
        dtb_addr=layout.base + layout.dtb_offset,
    )
    parts = (header.pack(), kernel, ramdisk, dtb)
    return b"".join(piece for part in parts for piece in (part, bytes(-len(part) % layout.pagesize)))


@dataclass(frozen=True, slots=True)
class Contents:
    kernel: bytes
    ramdisk: bytes
    dtb: bytes
    cmdline: str


def read(data: bytes) -> Contents:
    """Return what `write` was given; an image of another version, with more in it or with another id, is refused."""
    header = Header.unpack(data)
    if (header.magic, header.header_version, header.header_size) != (MAGIC, VERSION, Header.layout().size):
        raise FormatError(f"no Android boot image of header version {VERSION}")
    if header.page_size not in PAGE_SIZES or header.second_size or header.recovery_dtbo_size:
        raise FormatError("an Android boot image with pages or parts that none made here has")
    position, parts = header.page_size, []
    for size in (header.kernel_size, header.ramdisk_size, header.dtb_size):
        part = data[position : position + size]
        if len(part) < size:
            raise FormatError(f"an Android boot image that ends within a part of {size} bytes")
        parts.append(part)
        position += size + -size % header.page_size
    if header.id != _id(*parts).ljust(32, b"\0"):
        raise FormatError("an Android boot image whose id is not that of its parts")
    try:
        line = (header.cmdline + header.extra_cmdline).rstrip(b"\0").decode("ascii")
    except UnicodeDecodeError as error:
        raise FormatError("an Android boot image whose command line holds bytes outside ASCII") from error
    return Contents(parts[0], parts[1], parts[2], line)


def _id(kernel: bytes, ramdisk: bytes, dtb: bytes) -> bytes:
    digest = hashlib.sha1(usedforsecurity=False)
    # Neither a second stage nor a recovery DTBO: their sizes count.
    for data in (kernel, ramdisk, b"", b"", dtb):
        digest.update(data)
        digest.update(len(data).to_bytes(4, "little"))
    return digest.digest()


def _number(text: str) -> int:
    match = re.fullmatch(r"0[xX]([0-9a-fA-F]{1,8})|([0-9]{1,10})", text)
    number = (int(match[1], 16) if match[1] else int(match[2])) if match else MAX_U32 + 1
    if number > MAX_U32:
        raise FormatError(f"not a number of 32 bits: {text[:40]!r}")
    return number


def _board(text: str) -> str:
    if len(text) > 16 or not text.isascii() or not text.isprintable():
        raise FormatError(f"not a board's name of at most 16 letters: {text[:80]!r}")
    return text


def _os_version(text: str) -> int:
    match = re.fullmatch(r"(\d{1,3})(?:\.(\d{1,3}))?(?:\.(\d{1,3}))?", text)
    numbers = [int(number or 0) for number in match.groups()] if match else []
    if not numbers or max(numbers) > 127:
        raise FormatError(f"not a version of Android: {text[:40]!r}", hint="write it as 14.0.0")
    return numbers[0] << 14 | numbers[1] << 7 | numbers[2]


def _os_patch_level(text: str) -> int:
    match = re.fullmatch(r"20(\d{2})-(\d{2})(?:-\d{2})?", text)
    if not match or not 1 <= int(match[2]) <= 12:
        raise FormatError(f"not a patch level of Android: {text[:40]!r}", hint="write it as 2026-11")
    return int(match[1]) << 4 | int(match[2])


_READERS: Final[Mapping[str, Callable[[str], int | str]]] = MappingProxyType(
    {"board": _board, "os_version": _os_version, "os_patch_level": _os_patch_level}
)
