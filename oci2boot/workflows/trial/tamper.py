"""What an attacker with the disk in hand may change, and whose words on the console show that it was caught."""

import stat
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from oci2boot.boot.names import ADDON, MAX_ADDON, MAX_UKI, addons_folder, is_addon
from oci2boot.boot.sealed import read_addon
from oci2boot.boot.uki import build_addon, stub_version
from oci2boot.digest import External, VerityDigest
from oci2boot.errors import FormatError
from oci2boot.formats import authenticode, cmdline, pe
from oci2boot.formats.ext4 import VERITY_ALIGNMENT
from oci2boot.formats.fat import Fat
from oci2boot.rootfs.reader import read_rootfs
from oci2boot.system.run import run
from oci2boot.target.esp import replace_on_esp
from oci2boot.target.installed import InstalledRoot
from oci2boot.target.opened import OpenedDisk, open_disk
from oci2boot.target.types import ESP_TYPE, ROOT_TYPES
from oci2boot.tree.lookup import look_up
from oci2boot.tree.model import Directory, File
from oci2boot.workflows.verify.promises import Promised

IMAGE_MAX: Final = 1 << 30
BLOCK: Final = 4096

FIRMWARE: Final = r"(?i:access denied|security violation)"
STUB: Final = r"(?i:addon[^\n]*ignoring[^\n]*(access denied|security violation))"
INITRAMFS: Final = r"oci2boot: FATAL: promised is the image .*, found is .*"
NO_PROMISE: Final = r"oci2boot: FATAL: no (?:composefs argument|roothash=) .*"
TWO_PROMISES: Final = r"oci2boot: FATAL: more than one composefs argument .*"
KERNEL: Final = r"fs-verity .*FILE CORRUPTED.*"
INIT: Final = b"/usr/lib/systemd/systemd"
"""A file that no boot goes without."""
ADDON_STUB: Final = b"/usr/lib/systemd/boot/efi/addonx64.efi.stub"
INTRUDER: Final = f"zz-intruder{ADDON}"
INTRUSION: Final = "systemd.debug_shell=1"
"""A shell of root's without a password. With it a machine still comes up, and so shows it."""
STUB_OLDEST: Final = 254
"""The first that knows addons."""

Change = Callable[[Path], None]
Sign = Callable[[bytes], bytes]


@dataclass(frozen=True, slots=True)
class Tampering:
    """One change to a copy of the disk."""

    name: str
    apply: Change
    evidence: tuple[str, ...]
    """A pattern for each line on the console that has to be there; the last refuses."""
    ignored: str | None = None
    """The machine is to come up all the same, without this kernel argument."""


@dataclass(frozen=True, slots=True)
class EspAddon:
    path: str
    cmdline: str

    @property
    def promises(self) -> bool:
        words = cmdline.split(self.cmdline)
        return bool(cmdline.find_composefs(words) or cmdline.find_root_hashes(words))


@dataclass(frozen=True, slots=True)
class ImageParts:
    """Of a composefs image."""

    digest: VerityDigest
    """Of the rootfs image that is promised."""
    init: VerityDigest
    init_size: int


@dataclass(frozen=True, slots=True)
class Subject:
    """What there is on a disk to be tampered with."""

    uki: str | None
    kernel_version: str
    loader: str | None
    addons: tuple[EspAddon, ...]
    """The UKI's own."""
    addon_stub: bytes | None
    """The image's, if the UKI takes addons."""
    image: ImageParts | None
    """None where the root file system is under dm-verity."""
    signed: bool


def look_at(disk: Path, promised: Promised) -> Subject:
    """Find the parts of an intact disk."""
    with open_disk(disk) as opened:
        esp, uki = opened.esp(), promised.uki
        data = esp.content(promised.path, MAX_UKI) if uki else b""
        image, stub = None, None
        if isinstance(promised.digest, VerityDigest):
            root = InstalledRoot(opened.root())
            tree = read_rootfs(root.object(promised.digest, IMAGE_MAX))
            init = _external(tree, INIT)
            if init is None:
                raise FormatError("the image has no systemd to tamper with")
            image = ImageParts(promised.digest, init.digest, init.size)
            takes_addons = uki and stub_version(data) >= STUB_OLDEST and uki.kernel_version
            found = _external(tree, ADDON_STUB) if takes_addons else None
            stub = root.object(found.digest, MAX_ADDON) if found else None
        return Subject(
            uki=promised.path if uki else None,
            kernel_version=uki.kernel_version if uki else "",
            loader=next((name for name in sorted(esp.files) if name.upper().startswith("EFI/BOOT/BOOT")), None),
            addons=tuple(_addons(esp, promised.path)) if uki else (),
            addon_stub=stub,
            image=image,
            signed=bool(uki) and pe.parse(data).signed,
        )


def _external(tree: Directory, path: bytes) -> External | None:
    found = look_up(tree, path)
    if found and isinstance(found[1], File) and isinstance(found[1].content, External):
        return found[1].content
    return None


def _addons(esp: Fat, uki: str) -> Iterator[EspAddon]:
    folder = addons_folder(uki).lower()
    for path in sorted(esp.files):
        if path.lower().startswith(f"{folder}/") and is_addon(path):
            yield EspAddon(path, read_addon(esp.content(path, MAX_ADDON)))


def tamperings(subject: Subject, *, secure_boot: bool, sign: Sign | None) -> Iterator[Tampering]:
    """Yield every change that has to be caught; those of the ESP only Secure Boot can catch.

    `sign` makes what the firmware trusts; the one signed thing that must be caught all the same needs it.
    """
    if secure_boot and subject.uki:
        yield Tampering("a byte of the kernel in the UKI", _edit(subject.uki, _flip_kernel), (FIRMWARE,))
        yield Tampering("the command line of the UKI", _edit(subject.uki, _flip_command_line), (FIRMWARE,))
        yield Tampering("an unsigned UKI", _edit(subject.uki, authenticode.strip), (FIRMWARE,))
        if subject.loader:
            yield Tampering("a byte of the boot loader", _edit(subject.loader, _flip_code), (FIRMWARE,))
    yield from _with_addons(subject, secure_boot, sign)
    if subject.image:
        yield from _of_image(subject.image)


def _of_image(image: ImageParts) -> Iterator[Tampering]:
    yield Tampering("a byte of the EROFS image", _flip_object(image.digest, 70 * BLOCK + 1), (INITRAMFS,))
    yield Tampering("UKI A with rootfs B", _swap_image(image), (INITRAMFS,))
    yield Tampering("a byte of a file", _flip_object(image.init, 100), (KERNEL,))
    tree = -(-image.init_size // VERITY_ALIGNMENT) * VERITY_ALIGNMENT
    if image.init_size > BLOCK:
        yield Tampering("a byte of a file's Merkle tree", _flip_object(image.init, tree), (KERNEL,))


def _with_addons(subject: Subject, secure_boot: bool, sign: Sign | None) -> Iterator[Tampering]:
    """The stub drops what the firmware does not trust, and goes on: what is then missing has to be missed."""
    if secure_boot and subject.addons:
        # One that brings the promise, if there is one: the machine must not come up without it.
        addon = max(subject.addons, key=lambda addon: addon.promises)
        flip = _edit(addon.path, _flip_command_line)
        if addon.promises:
            yield Tampering("a byte of the addon with the promise", flip, (STUB, NO_PROMISE))
        else:
            yield Tampering("a byte of an addon", flip, (STUB,), ignored=addon.cmdline.split()[0])
    if subject.addon_stub is None or subject.uki is None or subject.image is None:
        return
    path = f"{addons_folder(subject.uki)}/{INTRUDER}"
    if secure_boot:
        unsigned = build_addon(subject.addon_stub, INTRUSION, subject.kernel_version)
        yield Tampering("an unsigned addon", _put(path, unsigned), (STUB,), ignored=INTRUSION)
    if sign or not secure_boot:
        second = build_addon(subject.addon_stub, f"composefs={subject.image.init}", subject.kernel_version)
        yield Tampering(
            "a signed addon with a second promise" if secure_boot else "an addon with a second promise",
            _put(path, sign(second) if sign else second),
            (TWO_PROMISES,),
        )


def _put(path: str, data: bytes) -> Change:
    def apply(disk: Path) -> None:
        with open_disk(disk) as opened:
            start = _start(opened, {ESP_TYPE})
        replace_on_esp(disk, start, {path: data}, 0)

    return apply


def _edit(path: str, edit: Callable[[bytes], bytes]) -> Change:
    def apply(disk: Path) -> None:
        with open_disk(disk) as opened:
            data = opened.esp().content(path, MAX_UKI)
            start = _start(opened, {ESP_TYPE})
        replace_on_esp(disk, start, {path: edit(data)}, 0)

    return apply


def _flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def _flip_code(data: bytes) -> bytes:
    (section,) = pe.parse(data).sections_named(b".text")
    return _flip(data, section.pointer_to_raw_data + section.virtual_size // 2)


def _flip_kernel(data: bytes) -> bytes:
    (section,) = pe.parse(data).sections_named(b".linux")
    return _flip(data, section.pointer_to_raw_data + section.virtual_size // 2)


def _flip_command_line(data: bytes) -> bytes:
    """Flip a bit of a digest, if there is one."""
    section = pe.parse(data).sections_named(b".cmdline")[0]
    line = pe.contents(data, section)
    at = max(line.rfind(b"composefs"), line.rfind(b"roothash="))
    return _flip(data, section.pointer_to_raw_data + (at + 20 if at >= 0 else 0))


def _start(opened: OpenedDisk, types: Collection[str]) -> int:
    return next(part.start for part in opened.gpt.partitions if part.type in types)


def _object_path(digest: VerityDigest) -> str:
    return f"/composefs/objects/{digest.path}"


def _flip_object(digest: VerityDigest, position: int) -> Change:
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
            at = _start(opened, ROOT_TYPES) + physical * BLOCK + position % BLOCK
        flip_on_disk(disk, at)

    return apply


def flip_on_disk(disk: Path, at: int) -> None:
    """Flip a bit of the byte at an offset."""
    with disk.open("r+b") as file:
        file.seek(at)
        old = file.read(1)[0]
        file.seek(at)
        file.write(bytes([old ^ 1]))


def _swap_image(image: ImageParts) -> Change:
    """Put another whole fs-verity file under the name of the promised image."""

    def apply(disk: Path) -> None:
        with open_disk(disk) as opened:
            start = _start(opened, ROOT_TYPES)
        for command in (
            f"unlink {_object_path(image.digest)}",
            f"ln {_object_path(image.init)} {_object_path(image.digest)}",
        ):
            run(["debugfs", "-w", "-R", command, f"{disk}?offset={start}"], package="e2fsprogs")

    return apply
