"""Names of boot files, and what of them is read: where UKIs lie, and what systemd-stub finds beside them.

UAPI.1, "Boot Loader Specification"; systemd-stub(7), "Companion Files". FAT takes upper and lower case for the same.
"""

from typing import Final

from oci2boot.errors import FormatError
from oci2boot.formats.bls import EntryName

LINUX: Final = "EFI/Linux"
GLOBAL_ADDONS: Final = "loader/addons"
GLOBAL_CREDENTIALS: Final = "loader/credentials"
PROGRAM: Final = ".efi"
ADDON: Final = ".addon.efi"
EXTRA: Final = ".extra.d"
"""Behind the name of a UKI: the folder of its companions."""
CREDENTIAL: Final = ".cred"
RECORD: Final = "oci2boot.json"
"""Beside a UKI with a root hash: says that it is ours, and where its image is from. systemd-stub passes it over."""

MAX_UKI: Final = 2 << 30
"""Bytes; of any EFI program that is read whole."""
MAX_ADDON: Final = 64 << 20
MAX_ADDONS: Final = 256
"""In one folder."""

BLESSER: Final = b"usr/lib/systemd/systemd-bless-boot"
"""In an image: says that a boot was good. Without it, no boots are counted."""
TRIES: Final = 3
"""Boots that a new entry may fail before another one is tried. systemd, Automatic Boot Assessment."""


def is_program(path: str | bytes) -> bool:
    return _ends(path, PROGRAM)


def is_addon(path: str | bytes) -> bool:
    return _ends(path, ADDON)


def is_credential(path: str | bytes) -> bool:
    return _ends(path, CREDENTIAL)


def uncounted(path: str) -> str:
    """Return the path that an entry has once its boots are no longer counted."""
    folder, slash, name = path.rpartition("/")
    try:
        return f"{folder}{slash}{EntryName.parse(name).counted(None)}"
    except FormatError:
        return path


def addons_folder(uki: str) -> str:
    """Return where systemd-stub looks for the companions of a UKI: while it is renamed by counting, they stay."""
    return uncounted(uki) + EXTRA


def _ends(path: str | bytes, suffix: str) -> bool:
    return (
        (path if isinstance(path, bytes) else path.encode(errors="surrogateescape")).lower().endswith(suffix.encode())
    )
