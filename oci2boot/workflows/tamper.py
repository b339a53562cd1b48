"""What an attacker with the disk in hand may change, and whose words on the console show that it was caught."""

import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from oci2boot.digest import External, VerityDigest
from oci2boot.errors import FormatError
from oci2boot.formats import authenticode, pe
from oci2boot.formats.ext4 import VERITY_ALIGNMENT
from oci2boot.rootfs.reader import read_rootfs
from oci2boot.system.run import run
from oci2boot.target.esp import replace_on_esp
from oci2boot.target.installed import InstalledRoot
from oci2boot.target.opened import OpenedDisk, open_disk
from oci2boot.target.plan import ESP_TYPE, ROOT_TYPES
from oci2boot.tree.lookup import look_up
from oci2boot.tree.model import File

IMAGE_MAX: Final = 1 << 30
UKI_MAX: Final = 1 << 30
BLOCK: Final = 4096

FIRMWARE: Final = r"(?i:access denied|security violation)"
INITRAMFS: Final = r"oci2boot: FATAL: promised is the image .*, found is .*"
KERNEL: Final = r"fs-verity .*FILE CORRUPTED.*"
INIT: Final = b"/usr/lib/systemd/systemd"
"""A file that no boot goes without."""


@dataclass(frozen=True, slots=True)
class Tampering:
    """One change to a copy of the disk."""

    name: str
    apply: Callable[[Path], None]
    evidence: str
    """A pattern for the line on the console that refuses it."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What there is on a disk to be tampered with."""

    digest: VerityDigest
    """Of the rootfs image that the UKI promises."""
    uki: str
    loader: str | None
    init: VerityDigest
    init_size: int
    signed: bool


def look_at(disk: Path, digest: VerityDigest, uki: str) -> Subject:
    """Find the parts of an intact disk."""
    with open_disk(disk) as opened:
        root = InstalledRoot(opened.root())
        tree = read_rootfs(root.object(digest, IMAGE_MAX))
        found = look_up(tree, INIT)
        if not found or not isinstance(found[1], File) or not isinstance(found[1].content, External):
            raise FormatError("the image has no systemd to tamper with")
        esp = opened.esp()
        loader = next((path for path in sorted(esp.files) if path.upper().startswith("EFI/BOOT/BOOT")), None)
        signed = pe.parse(esp.content(uki, UKI_MAX)).signed
    return Subject(digest, uki, loader, found[1].content.digest, found[1].content.size, signed)


def tamperings(subject: Subject, *, secure_boot: bool) -> Iterator[Tampering]:
    """Yield every change that has to be caught; those of the ESP only Secure Boot can catch."""
    if secure_boot:
        yield Tampering("a byte of the kernel in the UKI", _edit_uki(subject, _flip_kernel), FIRMWARE)
        yield Tampering("the command line of the UKI", _edit_uki(subject, _flip_command_line), FIRMWARE)
        yield Tampering("an unsigned UKI", _edit_uki(subject, authenticode.strip), FIRMWARE)
        if subject.loader:
            yield Tampering("a byte of the boot loader", _edit_loader(subject.loader), FIRMWARE)
    yield Tampering("a byte of the EROFS image", _flip_object(subject.digest, 70 * BLOCK + 1), INITRAMFS)
    yield Tampering("UKI A with rootfs B", _swap_image(subject), INITRAMFS)
    yield Tampering("a byte of a file", _flip_object(subject.init, 100), KERNEL)
    tree = -(-subject.init_size // VERITY_ALIGNMENT) * VERITY_ALIGNMENT
    if subject.init_size > BLOCK:
        yield Tampering("a byte of a file's Merkle tree", _flip_object(subject.init, tree), KERNEL)


def _edit_uki(subject: Subject, edit: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda disk: _edit_on_esp(disk, subject.uki, edit)


def _edit_loader(path: str) -> Callable[[Path], None]:
    return lambda disk: _edit_on_esp(disk, path, _flip_code)


def _edit_on_esp(disk: Path, path: str, edit: Callable[[bytes], bytes]) -> None:
    with open_disk(disk) as opened:
        data = opened.esp().content(path, UKI_MAX)
        start = _start(opened, {ESP_TYPE})
    replace_on_esp(disk, start, {path: edit(data)}, 0)


def _flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def _flip_code(data: bytes) -> bytes:
    (section,) = pe.parse(data).sections_named(b".text")
    return _flip(data, section.pointer_to_raw_data + section.virtual_size // 2)


def _flip_kernel(data: bytes) -> bytes:
    (section,) = pe.parse(data).sections_named(b".linux")
    return _flip(data, section.pointer_to_raw_data + section.virtual_size // 2)


def _flip_command_line(data: bytes) -> bytes:
    section = pe.parse(data).sections_named(b".cmdline")[0]
    at = pe.contents(data, section).rindex(b"composefs") + section.pointer_to_raw_data
    return _flip(data, at + 20)


def _start(opened: OpenedDisk, types: set[str]) -> int:
    return next(part.start for part in opened.gpt.partitions if part.type in types)


def _object_path(digest: VerityDigest) -> str:
    return f"/composefs/objects/{digest.path}"


def _flip_object(digest: VerityDigest, position: int) -> Callable[[Path], None]:
    """Flip a bit of an object on the medium, past what the file system would let anyone write."""

    def apply(disk: Path) -> None:
        with open_disk(disk) as opened:
            fs = opened.root()
            number = fs.find(_object_path(digest).encode())
            if number is None or stat.S_IFMT(fs.inode(number).mode) != stat.S_IFREG:
                raise FormatError(f"object {digest} is missing from the disk")
            block = position // BLOCK
            for extent in fs.extents(number):
                if extent.logical <= block < extent.logical + extent.length:
                    physical = extent.physical + block - extent.logical
                    break
            else:
                raise FormatError(f"object {digest} has nothing at byte {position}")
            at = _start(opened, set(ROOT_TYPES.values())) + physical * BLOCK + position % BLOCK
        with disk.open("r+b") as file:
            file.seek(at)
            old = file.read(1)[0]
            file.seek(at)
            file.write(bytes([old ^ 1]))

    return apply


def _swap_image(subject: Subject) -> Callable[[Path], None]:
    """Put another whole fs-verity file under the name of the promised image."""

    def apply(disk: Path) -> None:
        with open_disk(disk) as opened:
            start = _start(opened, set(ROOT_TYPES.values()))
        for command in (
            f"unlink {_object_path(subject.digest)}",
            f"ln {_object_path(subject.init)} {_object_path(subject.digest)}",
        ):
            run(["debugfs", "-w", "-R", command, f"{disk}?offset={start}"], package="e2fsprogs")

    return apply
