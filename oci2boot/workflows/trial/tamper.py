"""What an attacker with the disk in hand may change, and whose words on the console show that it was caught.

Here is what lies on the ESP; `guarded` has what fs-verity and dm-verity guard.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from oci2boot.boot.names import ADDON, MAX_ADDON, MAX_UKI, addons_folder, is_addon
from oci2boot.boot.sealed import read_addon
from oci2boot.boot.uki import build_addon, stub_version
from oci2boot.digest import External, VerityDigest
from oci2boot.errors import FormatError
from oci2boot.formats import authenticode, cmdline, pe
from oci2boot.formats.erofs.structs import IMAGE_MAX
from oci2boot.formats.fat import Fat
from oci2boot.rootfs.reader import read_rootfs
from oci2boot.target.esp import replace_on_esp
from oci2boot.target.installed import InstalledRoot
from oci2boot.target.opened import open_disk
from oci2boot.target.types import ESP_TYPE
from oci2boot.tree.lookup import look_up
from oci2boot.tree.model import Directory, File
from oci2boot.workflows.verify.promises import Promised

FIRMWARE: Final = r"(?i:access denied|security violation)"
STUB: Final = r"(?i:addon[^\n]*ignoring[^\n]*(access denied|security violation))"
NO_PROMISE: Final = r"oci2boot: FATAL: no (?:composefs argument|roothash=) .*"
TWO_PROMISES: Final = r"oci2boot: FATAL: more than one composefs argument .*"
INIT: Final = b"/usr/lib/systemd/systemd"
"""A file that no boot goes without."""
ADDON_STUB: Final = b"/usr/lib/systemd/boot/efi/addonx64.efi.stub"
INTRUDER: Final = f"zz-intruder{ADDON}"
INTRUSION: Final = "systemd.debug_shell=1"
"""A root shell without a password. A machine comes up with it, and then shows it."""
STUB_OLDEST: Final = 254
"""The first that knows addons."""

Change = Callable[[Path], None]
"""Done to a copy of the disk."""
Edit = Callable[[bytes], bytes]
Sign = Callable[[bytes], bytes]


@dataclass(frozen=True, slots=True)
class Tampering:
    """One change to a copy of the disk."""

    name: str
    apply: Change
    evidence: tuple[str, ...]
    """A pattern for each line on the console that has to be there; the last refuses."""
    ignored: str | None = None
    """Here the machine has to come up, and without this kernel argument."""


@dataclass(frozen=True, slots=True)
class EspAddon:
    path: str
    cmdline: str

    @property
    def promises(self) -> bool:
        words = cmdline.split(self.cmdline)
        return bool(cmdline.find_composefs(words) or cmdline.find_root_hashes(words))


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What there is on a disk to be tampered with."""

    uki: str | None
    kernel_version: str
    loader: str | None
    addons: tuple[EspAddon, ...]
    """The UKI's own."""
    addon_stub: bytes | None
    """The image's, if the UKI takes addons."""
    init: External | None
    """Of a composefs image, a file that no boot goes without."""
    signed: bool


def look_at(disk: Path, promised: Promised) -> Subject:
    """Find the parts of an intact disk."""
    with open_disk(disk) as opened:
        esp, uki = opened.esp(), promised.uki
        data = esp.content(promised.path, MAX_UKI) if uki else b""
        init, stub = None, None
        if isinstance(promised.digest, VerityDigest):
            root = InstalledRoot(opened.root())
            tree = read_rootfs(root.object(promised.digest, IMAGE_MAX))
            init = _external(tree, INIT)
            if init is None:
                raise FormatError("the image has no systemd to tamper with")
            takes_addons = uki and stub_version(data) >= STUB_OLDEST and uki.kernel_version
            found = _external(tree, ADDON_STUB) if takes_addons else None
            stub = root.object(found.digest, MAX_ADDON) if found else None
        return Subject(
            uki=promised.path if uki else None,
            kernel_version=uki.kernel_version if uki else "",
            loader=next((name for name in sorted(esp.files) if name.upper().startswith("EFI/BOOT/BOOT")), None),
            addons=tuple(_addons(esp, promised.path)) if uki else (),
            addon_stub=stub,
            init=init,
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
    """Yield every change of the ESP that has to be caught: most of them only Secure Boot can catch.

    `sign` makes what the firmware trusts: one addon is signed, and has to be caught too.
    """
    if secure_boot and subject.uki:
        for name, edit in (
            ("a byte of the kernel in the UKI", _flip_half_way(b".linux")),
            ("the command line of the UKI", _flip_command_line),
            ("an unsigned UKI", authenticode.strip),
        ):
            yield Tampering(name, _edit(subject.uki, edit), (FIRMWARE,))
        if subject.loader:
            change = _edit(subject.loader, _flip_half_way(b".text"))
            yield Tampering("a byte of the boot loader", change, (FIRMWARE,))
    yield from _with_addons(subject, sign, secure_boot=secure_boot)


def _with_addons(subject: Subject, sign: Sign | None, *, secure_boot: bool) -> Iterator[Tampering]:
    """The stub drops what the firmware does not trust, and goes on: the machine has to notice what is missing."""
    if secure_boot and subject.addons:
        # One that brings the promise, if there is one: the machine must not come up without it.
        addon = max(subject.addons, key=lambda addon: addon.promises)
        flip = _edit(addon.path, _flip_command_line)
        if addon.promises:
            yield Tampering("a byte of the addon with the promise", flip, (STUB, NO_PROMISE))
        else:
            yield Tampering("a byte of an addon", flip, (STUB,), ignored=addon.cmdline.split()[0])
    if subject.addon_stub is None or subject.uki is None or subject.init is None:
        return
    path = f"{addons_folder(subject.uki)}/{INTRUDER}"
    if secure_boot:
        unsigned = build_addon(subject.addon_stub, INTRUSION, subject.kernel_version)
        yield Tampering("an unsigned addon", _put(path, unsigned), (STUB,), ignored=INTRUSION)
    if sign or not secure_boot:
        second = build_addon(subject.addon_stub, f"composefs={subject.init.digest}", subject.kernel_version)
        yield Tampering(
            "a signed addon with a second promise" if secure_boot else "an addon with a second promise",
            _put(path, sign(second) if sign else second),
            (TWO_PROMISES,),
        )


def _put(path: str, data: bytes) -> Change:
    return _write(path, lambda _: data)


def _edit(path: str, edit: Edit) -> Change:
    return _write(path, lambda esp: edit(esp.content(path, MAX_UKI)))


def _write(path: str, content: Callable[[Fat], bytes]) -> Change:
    """Write a file of the ESP, out of what is there."""

    def apply(disk: Path) -> None:
        with open_disk(disk) as opened:
            data = content(opened.esp())
            start = opened.of_types({ESP_TYPE})[0].start
        replace_on_esp(disk, start, {path: data}, 0)

    return apply


def _flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def _flip_half_way(name: bytes) -> Edit:
    """Flip a bit in the middle of a section."""

    def edit(data: bytes) -> bytes:
        (section,) = pe.parse(data).sections_named(name)
        return _flip(data, section.pointer_to_raw_data + section.virtual_size // 2)

    return edit


def _flip_command_line(data: bytes) -> bytes:
    """Flip a bit of a digest, if there is one."""
    section = pe.parse(data).sections_named(b".cmdline")[0]
    line = pe.contents(data, section)
    at = max(line.rfind(b"composefs"), line.rfind(b"roothash="))
    return _flip(data, section.pointer_to_raw_data + (at + 20 if at >= 0 else 0))
