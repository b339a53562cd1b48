"""What the TPM will hold of a UKI: PCR 11 and 12, as systemd-stub and systemd-pcrphase extend them. Needs no TPM.

systemd-stub(7), systemd-measure(1), systemd-pcrphase.service(8). A secret bound to PCR 11 opens for this UKI alone, in
these phases of its boot alone.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from oci2boot.errors import FormatError
from oci2boot.formats import pe

PHASES: Final = ("enter-initrd", "leave-initrd", "sysinit", "ready")
"""The words that systemd extends PCR 11 by as the boot goes on; each needs its unit, and TPM support, in the image."""

MEASURED: Final = b".linux .osrel .cmdline .initrd .ucode .splash .dtb .uname .sbat .pcrpkey .profile .hwids".split()
"""Sections in the stub's order; `.pcrsig` holds what is made of the value, and is left out."""
CHOSEN: Final = (b".dtbauto", b".efifw")
"""Of these the stub takes, and measures, what fits the machine."""


def uki_pcr(uki: bytes, profile: int = 0, algorithm: str = "sha256") -> bytes:
    """Return PCR 11 as the stub leaves it; without `.profile` sections, a UKI has the profile 0 alone.

    Raises `FormatError` where it depends on the machine.
    """
    value = bytes(hashlib.new(algorithm).digest_size)
    sections = sections_of(pe.parse(uki), profile)
    for name in CHOSEN:
        if name in sections:
            raise FormatError(f"PCR 11 depends on the machine: the UKI has sections {name.decode()} to choose from")
    view = memoryview(uki)
    for name in MEASURED:
        section = sections.get(name)
        if section is not None and section.virtual_size:
            start = section.pointer_to_raw_data
            value = _extend(value, name + b"\0", algorithm)
            value = _extend(value, view[start : start + section.virtual_size], algorithm)
    return value


def count_profiles(uki: bytes) -> int:
    return max(1, len(pe.parse(uki).sections_named(b".profile")))


def after(value: bytes, phases: Sequence[str], algorithm: str = "sha256") -> bytes:
    """Return PCR 11 after these phases."""
    for phase in phases:
        value = _extend(value, phase.encode(), algorithm)
    return value


def by_phase(value: bytes, algorithm: str = "sha256") -> Iterator[tuple[str, str]]:
    """Yield PCR 11 in hexadecimal after each phase, which is named as systemd-measure names it: a:b:c."""
    for count in range(1, len(PHASES) + 1):
        yield ":".join(PHASES[:count]), after(value, PHASES[:count], algorithm).hex()


def addons_pcr(cmdlines: Sequence[str], algorithm: str = "sha256") -> bytes:
    """Return PCR 12 as addons leave it that bring these command lines and nothing else. systemd-stub 255 and newer."""
    value = bytes(hashlib.new(algorithm).digest_size)
    line = " ".join(filter(None, cmdlines))
    return _extend(value, (line + "\0").encode("utf-16-le"), algorithm) if line else value


def beside_pcr(cmdlines: Sequence[str], credentials: Mapping[str, bytes], algorithm: str = "sha256") -> bytes:
    """Return PCR 12 as addons and the `.cred` files beside a UKI leave it, these by name. systemd-stub(7)."""
    value = addons_pcr(cmdlines, algorithm)
    return _extend(value, _credentials_archive(credentials), algorithm) if credentials else value


def _credentials_archive(credentials: Mapping[str, bytes]) -> bytes:
    """Return the archive that the stub hands to the kernel, and measures."""
    members = [(b".extra", 0o40555, b""), (b".extra/credentials", 0o40500, b"")]
    # In the order of UTF-16, which for these names is that of ASCII.
    members += [(b".extra/credentials/" + name.encode(), 0o100400, data) for name, data in sorted(credentials.items())]
    pieces = []
    for number, (path, mode, data) in enumerate([*members, (b"TRAILER!!!", 0, b"")], 1):
        trailer = number > len(members)
        fields = (0 if trailer else number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(path) + 1, 0)
        # The trailer alone is a constant of the stub's, with its one letter in upper case.
        head = b"070701" + b"".join((b"%08X" if trailer else b"%08x") % field for field in fields) + path + b"\0"
        pieces += [head, bytes(-len(head) % 4), data, bytes(-len(data) % 4)]
    return b"".join(pieces)


def _extend(value: bytes, data: bytes | memoryview, algorithm: str) -> bytes:
    return hashlib.new(algorithm, value + hashlib.new(algorithm, data).digest()).digest()


def sections_of(headers: pe.Pe, profile: int = 0) -> dict[bytes, pe.SectionHeader]:
    """Return what counts in a profile: its own sections over those before the first `.profile`."""
    sections: dict[bytes, pe.SectionHeader] = {}
    number = -1
    for section in headers.sections:
        number += section.name == b".profile"
        if number in (-1, profile):
            sections[section.name] = section
    if not 0 <= profile <= max(number, 0):
        raise FormatError(f"the UKI has no profile {profile}")
    return sections
