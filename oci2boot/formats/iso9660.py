"""What makes a disk an ISO 9660 volume that firmware boots from. ECMA-119, 8; El Torito 1.0; UEFI 2.10, 13.3.2.1."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from oci2boot.errors import FormatError

BLOCK: Final = 2048
SYSTEM_AREA: Final = 16 * BLOCK
"""Bytes before the first descriptor: they are free, for a partition table as an example."""
VOLUME_ID_MAX: Final = 32

_DESCRIPTORS_MAX: Final = 64
_IDENTIFIER: Final = b"CD001"
_PRIMARY: Final = 1
_BOOT_RECORD: Final = 0
_END: Final = 255
_EL_TORITO: Final = b"EL TORITO SPECIFICATION"
_EFI: Final = 0xEF
_VALIDATION: Final = 1
_SECTION: Final = (0x90, 0x91)
_BOOTABLE: Final = 0x88
_ENTRY: Final = 32

Read = Callable[[int, int], bytes]
"""(byte offset, size) to the bytes there, fewer only past the end."""


@dataclass(frozen=True, slots=True)
class Volume:
    identifier: str
    boot_image: int | None
    """Byte offset of what UEFI boots from; None where there is nothing."""


def read_volume(read: Read) -> Volume | None:
    """Read the volume that a disk holds; None where it holds none."""
    identifier = catalog = None
    for number in range(_DESCRIPTORS_MAX):
        descriptor = read(SYSTEM_AREA + number * BLOCK, BLOCK)
        if len(descriptor) < BLOCK or descriptor[1:6] != _IDENTIFIER:
            if number == 0:
                return None
            raise FormatError("the volume descriptors of ISO 9660 have no end")
        if descriptor[0] == _PRIMARY:
            identifier = descriptor[40:72].decode(errors="replace").rstrip()
        elif descriptor[0] == _BOOT_RECORD and descriptor[7:39].rstrip(b"\0") == _EL_TORITO:
            catalog = int.from_bytes(descriptor[71:75], "little")
        elif descriptor[0] == _END:
            break
    else:
        raise FormatError(f"ISO 9660 with more than {_DESCRIPTORS_MAX} volume descriptors")
    if identifier is None:
        raise FormatError("ISO 9660 without a primary volume descriptor")
    return Volume(identifier, None if catalog is None else _boot_image(read(catalog * BLOCK, BLOCK)))


def _boot_image(catalog: bytes) -> int | None:
    """Return the offset of the first image for UEFI: the default entry's, or one of a section."""
    if len(catalog) < BLOCK or catalog[0] != _VALIDATION or catalog[30:32] != b"\x55\xaa":
        raise FormatError("the boot catalog of El Torito cannot be read")
    if sum(int.from_bytes(catalog[at : at + 2], "little") for at in range(0, _ENTRY, 2)) & 0xFFFF:
        raise FormatError("the boot catalog of El Torito is damaged: its checksum is wrong")
    platform = catalog[1]
    for at in range(_ENTRY, BLOCK, _ENTRY):
        if catalog[at] in _SECTION:
            platform = catalog[at + 1]
        elif catalog[at] == _BOOTABLE and platform == _EFI:
            return int.from_bytes(catalog[at + 8 : at + 12], "little") * BLOCK
    return None
