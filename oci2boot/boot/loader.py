"""Which programs go where on an EFI system partition, for the firmware to start from. UEFI 2.10, section 3.5.1.1.

systemd-boot as bootctl(1) installs it; or behind a shim, which starts what lies beside it as `grubx64.efi`; or none at
all. shim's fallback program and the BOOTX64.CSV that it alone reads are left out: it would write boot entries into the
firmware and restart the machine, where the removable path is enough.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

from oci2boot.boot.names import EXTRA, LINUX, is_program
from oci2boot.boot.payload import EFI_NAMES, MAX_EFI_PROGRAM, STUB_DIRECTORY, find_efi_program, machine_of
from oci2boot.errors import ImageError, ShimError
from oci2boot.formats import pe
from oci2boot.tree.files import Read, find_file, list_directory, read_content, read_file
from oci2boot.tree.model import Directory

LoaderName = Literal["systemd-boot", "direct", "shim", "none"]
"""`direct`: the firmware starts the UKI itself; `none`: a boot loader that is there already reads the menu."""

EnrollMode = Literal["off", "manual", "if-safe", "force"]
"""When systemd-boot enrols the keys in loader/keys/auto. By default `if-safe`: by itself in virtual machines alone."""

TIMEOUT: Final = 3
"""Seconds that the boot menu waits."""

SHIM: Final = (
    b"usr/lib/shim/shim%s.efi.signed",
    b"usr/lib/shim/shim%s.efi.signed.latest",
    b"boot/efi/EFI/*/shim%s.efi",
    b"usr/lib/bootupd/updates/EFI/*/shim%s.efi",
    b"usr/lib/efi/shim/*/EFI/*/shim%s.efi",
    b"usr/lib/shim/shim%s.efi",
    b"usr/share/shim/shim%s.efi",
)
"""Debian's, Ubuntu's, Fedora's as a package and in bootc's images; then those that nobody signed."""
MOK_MANAGER: Final = (
    b"usr/lib/shim/mm%s.efi.signed",
    b"boot/efi/EFI/*/mm%s.efi",
    b"usr/lib/bootupd/updates/EFI/*/mm%s.efi",
    b"usr/lib/efi/shim/*/EFI/*/mm%s.efi",
    b"usr/lib/shim/mm%s.efi",
    b"usr/share/shim/mm%s.efi",
)
SHIM_PACKAGES: Final = "Debian: shim-signed; Fedora: shim-x64"

SHIPPED_BOOT: Final = "EFI/systemd/systemd-boot%s.efi"
SHIPPED_SHIM: Final = "EFI/BOOT/shim%s.efi"
SHIPPED_MOK_MANAGER: Final = "EFI/BOOT/mm%s.efi"
"""Beneath /boot of an image: where the layer of a signed UKI brings what starts it, signed for the same machines."""

_LINUX: Final = re.compile(rf"{LINUX}/[^/]+(?={re.escape(EXTRA)}/|$)")


@dataclass(frozen=True, slots=True)
class BootLoader:
    programs: Mapping[str, bytes]
    """By path on the ESP, with their configuration."""
    uki: str | None = None
    """Where the one UKI goes, if not to EFI/Linux."""
    notes: tuple[str, ...] = ()

    def place(self, path: str) -> str:
        """Return where a UKI or its addon goes, given the path in EFI/Linux that it has with systemd-boot."""
        return _LINUX.sub(self.uki, path) if self.uki else path


def find_loader(
    tree: Directory,
    read: Read,
    architecture: str,
    name: LoaderName,
    configuration: bytes,
    *,
    shipped: bool = False,
) -> BootLoader:
    """Return what the image has for the ESP besides its UKI; a signed program is taken before one that is not.

    `configuration` is that of systemd-boot, as `loader_conf` makes it. With `shipped`, what the layer of a signed UKI
    brings comes before what the image's packages have.
    """
    efi_name = EFI_NAMES[machine_of(architecture)]
    removable = f"EFI/BOOT/BOOT{efi_name.upper()}.EFI"
    if name == "direct":
        alone = "the firmware starts the UKI itself: no boot menu, no other system on this disk, no way back to one"
        return BootLoader(MappingProxyType({}), removable, (alone,))
    if name == "none":
        return BootLoader(MappingProxyType({}), notes=("no boot loader is installed: one must be there",))
    parts = _parts(tree, read, efi_name, name, shipped=shipped)
    notes: tuple[str, ...] = ()
    systemd_boot = parts[SHIPPED_BOOT % efi_name]
    if name == "shim":
        programs = {removable: parts[SHIPPED_SHIM % efi_name], f"EFI/BOOT/grub{efi_name}.efi": systemd_boot}
        mok_manager = SHIPPED_MOK_MANAGER % efi_name
        if mok_manager in parts:
            programs[mok_manager] = parts[mok_manager]
        else:
            notes = ("the image has no MokManager: shim will know no keys but its own and the firmware's",)
        check_sbat(programs)
    else:
        programs = {SHIPPED_BOOT % efi_name: systemd_boot, removable: systemd_boot}
    programs["loader/loader.conf"] = configuration
    programs["loader/entries.srel"] = b"type1\n"
    return BootLoader(MappingProxyType(programs), None, notes)


def find_shippable(tree: Directory, read: Read, architecture: str, name: LoaderName) -> dict[str, bytes]:
    """Return what a UKI's layer brings to start it once it is signed, by path beneath /boot; of the packages' files."""
    if name not in ("systemd-boot", "shim"):
        return {}
    return _parts(tree, read, EFI_NAMES[machine_of(architecture)], name)


def _parts(tree: Directory, read: Read, efi_name: str, name: LoaderName, *, shipped: bool = False) -> dict[str, bytes]:
    def brought(path: str) -> bytes | None:
        place = b"boot/" + path.encode()
        program = read_file(tree, read, place, MAX_EFI_PROGRAM) if shipped else None
        return program if program and pe.parse(program).signed else None

    boot = SHIPPED_BOOT % efi_name
    parts = {boot: brought(boot) or _systemd_boot(tree, read, efi_name)}
    if name == "shim":
        path, mok_path = SHIPPED_SHIM % efi_name, SHIPPED_MOK_MANAGER % efi_name
        shim = brought(path) or _first(tree, read, SHIM, efi_name)
        if shim is None:
            raise ImageError(f"the image has no shim for {efi_name}", hint=f"install it in the image ({SHIM_PACKAGES})")
        parts[path] = shim
        if mok_manager := brought(mok_path) or _first(tree, read, MOK_MANAGER, efi_name):
            parts[mok_path] = mok_manager
    return parts


def loader_conf(timeout: int = TIMEOUT, enroll: EnrollMode | None = None) -> bytes:
    """Write loader.conf(5); nobody edits the command line at the machine."""
    lines = [f"timeout {timeout}", "editor no"]
    if enroll:
        lines.append(f"secure-boot-enroll {enroll}")
    return "".join(f"{line}\n" for line in lines).encode()


def check_sbat(files: Mapping[str, bytes]) -> None:
    """Refuse an executable that shim would: one that says nothing by which it could be revoked. shim's SBAT.md."""
    for path, data in files.items():
        if is_program(path) and not pe.parse(data).sections_named(b".sbat"):
            raise ShimError(f"{path} has no section .sbat: shim refuses to start it")


def _systemd_boot(tree: Directory, read: Read, efi_name: str) -> bytes:
    name = f"systemd-boot{efi_name}.efi"
    signed = find_file(tree, STUB_DIRECTORY + name.encode() + b".signed")
    if signed:
        return read_content(signed, read, STUB_DIRECTORY + name.encode() + b".signed", MAX_EFI_PROGRAM)
    return find_efi_program(tree, read, name, "systemd-boot")


def _first(tree: Directory, read: Read, patterns: Sequence[bytes], efi_name: str) -> bytes | None:
    """Return the first file there is; of several that match one pattern, the last in order of name."""
    for pattern in patterns:
        for path in sorted(_matching(tree, b"", (pattern % efi_name.encode()).split(b"/")), reverse=True):
            file = find_file(tree, path)
            if file:
                return read_content(file, read, path, MAX_EFI_PROGRAM)
    return None


def _matching(tree: Directory, above: bytes, parts: Sequence[bytes]) -> Iterator[bytes]:
    """Yield the paths that a pattern with `*` for whole names may mean."""
    if not parts:
        yield above
        return
    first, *others = parts
    names = [first]
    if first == b"*":
        names = [name for name, _ in list_directory(tree, above)]
    for name in names:
        yield from _matching(tree, above + b"/" + name if above else name, others)
