"""Unified kernel images: built from a stub and its payload, and checked after every build. UAPI.5; systemd-stub(7).

The builder writes the bytes that systemd's ukify 257.13 writes. `verify_uki` reads every UKI back, also one of
another builder, and compares all sections: ukify up to 257.8 with a newer stub exits 0 and leaves them overlapping.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from oci2boot.boot.names import MAX_UKI
from oci2boot.errors import DigestError, FormatError, ImageError, LimitError, ToolError
from oci2boot.formats import pe
from oci2boot.formats.sbat import read_sbat

UKIFY_OLDEST: Final = (255, 0)
UKIFY_BAD: Final = ((257, 0), (257, 1))
"""They alter the kernel (systemd#35851)."""
STUB_LARGE: Final = 258
"""Stubs from this version on need ukify 257.9."""
UKIFY_FOR_LARGE_STUB: Final = (257, 9)
STUB_WITH_ADDONS: Final = 255
"""Earlier ones measure each addon alone, and look for them under a name with the boot counter in it."""

_SCN_CODE, _SCN_INITIALIZED_DATA, _SCN_READ = 0x20, 0x40, 0x40000000
_NX_COMPAT: Final = 0x0100
_SBAT_HEADER: Final = "sbat,1,SBAT Version,sbat,1,https://github.com/rhboot/shim/blob/main/SBAT.md"
_SBAT_UKI: Final = "uki,1,UKI,uki,1,https://uapi-group.org/specifications/specs/unified_kernel_image/"
ADDON_SBAT: Final = (
    f"{_SBAT_HEADER}\n"
    "uki-addon,1,UKI Addon,addon,1,https://www.freedesktop.org/software/systemd/man/latest/systemd-stub.html\n\0"
).encode()
_MAGIC_VERSION: Final = re.compile(rb"LoaderInfo: systemd-stub (\d{3})")
_UKIFY_VERSION: Final = re.compile(r"^ukify (\d{3})(?:\.(\d+))?(?:[^(\n]*\((\d{3})(?:\.(\d+))?)?")


Pieces = tuple[bytes, ...]
"""Of one content, which is large: it is joined where it ends up, and nowhere before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UkiParts:
    """What goes into a UKI, each part as it will be in its section."""

    kernel: bytes
    initrds: tuple[bytes, ...]
    cmdline: str
    os_release: bytes
    uname: str
    microcode: bytes = b""

    @property
    def initrd(self) -> bytes:
        """One section, in one piece."""
        pieces = self._initrd()
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _initrd(self) -> Pieces:
        """The kernel wants a plain archive to begin at a multiple of four bytes."""
        if len(self.initrds) == 1:
            return self.initrds
        return tuple(part for initrd in self.initrds for part in (initrd, bytes(-len(initrd) % 4)))

    def sections(self) -> list[tuple[bytes, Pieces]]:
        """Return (name, content) in ukify's order, without `.sbat`."""
        every = [
            (b".osrel", (self.os_release,)),
            (b".cmdline", (self.cmdline.encode(),)),
            (b".uname", (self.uname.encode(),)),
            (b".linux", (self.kernel,)),
            (b".initrd", self._initrd()),
            (b".ucode", (self.microcode,)),
        ]
        return [(name, content) for name, content in every if any(content)]


def check_machines(stub: bytes, kernel: bytes, machine: str) -> None:
    """Refuse a stub or kernel for another machine than the image's; ukify would join them."""
    for what, data in (("systemd-stub", stub), ("kernel", kernel)):
        try:
            found = pe.parse(data).machine
        except FormatError as error:
            raise ImageError(f"the image's {what} cannot go into a UKI: it is {error.message}") from error
        if found != machine:
            raise ImageError(f"the image is for {machine}, its {what} for {found}")


def build_uki(stub: bytes, parts: UkiParts) -> bytes:
    """Return the UKI. A stub with a symbol table or sections out of alignment (systemd 252) takes ukify."""
    # Old kernels run in the section they are loaded to; the UKI may then not promise that data is not executed.
    keeps_nx = bool(pe.parse(parts.kernel).optional_header.dll_characteristics & _NX_COMPAT)
    return _append(stub, parts.sections(), merge_sbat(stub, parts.kernel), keeps_nx=keeps_nx)


def build_addon(stub: bytes, cmdline: str, uname: str | None) -> bytes:
    """Return an addon that appends to the command line of a UKI with this `.uname`, and to no other's; None is any."""
    kernel = [(b".uname", (uname.encode(),))] if uname is not None else []
    sections = [(b".cmdline", (cmdline.encode(),)), *kernel, (b".sbat", (ADDON_SBAT,))]
    return _append(stub, sections, None, keeps_nx=True)


def wants_ukify(stub: bytes) -> bool:
    """Say whether `build_uki` leaves UKIs of this stub to ukify."""
    return _old_layout(pe.parse(stub))


def _old_layout(headers: pe.Pe) -> bool:
    optional = headers.optional_header
    offsets = [
        value for section in headers.sections for value in (section.pointer_to_raw_data, section.size_of_raw_data)
    ]
    unaligned = any(value % optional.file_alignment for value in (*offsets, optional.size_of_headers))
    return bool(headers.file_header.pointer_to_symbol_table) or unaligned or not offsets


def _append(stub: bytes, contents: Sequence[tuple[bytes, Pieces]], sbat: bytes | None, *, keeps_nx: bool) -> bytes:
    """Return the stub with more sections, and its `.sbat` replaced."""
    headers = pe.parse(stub)
    optional = headers.optional_header
    if headers.signed:
        raise ImageError("the image's systemd-stub is signed: a UKI is built from an unsigned one")
    if _old_layout(headers):
        raise ImageError(
            "the image's systemd-stub is laid out as before systemd 254, which only ukify can take",
            hint="install ukify (Debian: systemd-ukify), or a newer systemd-boot in the image",
        )
    sections = list(headers.sections)
    body = [bytes(-len(stub) % optional.file_alignment)]
    size = len(stub) + len(body[0])
    for name, content in contents:
        last = sections[-1]
        length = sum(map(len, content))
        raw_size = _round(length, optional.file_alignment)
        sections.append(
            pe.SectionHeader(
                raw_name=name.ljust(8, b"\0"),
                virtual_size=length,
                virtual_address=_round(last.virtual_address + last.virtual_size, optional.section_alignment),
                size_of_raw_data=raw_size,
                pointer_to_raw_data=size,
                pointer_to_relocations=0,
                pointer_to_line_numbers=0,
                number_of_relocations=0,
                number_of_line_numbers=0,
                characteristics=_SCN_READ | (_SCN_CODE if name == b".linux" else _SCN_INITIALIZED_DATA),
            )
        )
        body += [*content, bytes(raw_size - length)]
        size += raw_size
        if max(size, sections[-1].virtual_address + length) > MAX_UKI:
            raise LimitError(f"a UKI of more than {MAX_UKI} bytes")
    table_end = headers.section_table_offset + len(sections) * pe.SectionHeader.layout().size
    if table_end > optional.size_of_headers:
        raise ImageError(f"the image's systemd-stub has no room for {len(sections)} sections")
    # A UKI is large, and this its only copy: all that changes lies in the stub.
    return b"".join([_with_headers(stub, headers, sections, sbat, keeps_nx=keeps_nx), *body])


def _with_headers(
    stub: bytes, headers: pe.Pe, sections: list[pe.SectionHeader], sbat: bytes | None, *, keeps_nx: bool
) -> bytes:
    uki = bytearray(stub)
    optional = headers.optional_header
    added = sections[len(headers.sections) :]
    for index, section in enumerate(headers.sections):
        if section.name == b".sbat" and sbat is not None:
            if len(sbat) > section.size_of_raw_data:
                raise ImageError("the kernel's SBAT entries do not fit into the image's systemd-stub")
            start = section.pointer_to_raw_data
            uki[start : start + section.size_of_raw_data] = sbat.ljust(section.size_of_raw_data, b"\0")
            sections[index] = replace(section, virtual_size=len(sbat))
    end = sections[-1].virtual_address + sections[-1].virtual_size
    characteristics = optional.dll_characteristics & (0xFFFF if keeps_nx else ~_NX_COMPAT)
    new_optional = replace(
        optional,
        size_of_initialized_data=optional.size_of_initialized_data + sum(section.virtual_size for section in added),
        size_of_image=_round(end, optional.section_alignment),
        check_sum=0,
        dll_characteristics=characteristics,
    )
    new_file_header = replace(headers.file_header, number_of_sections=len(sections))
    for at, packed in (
        (headers.file_header_offset, new_file_header.pack()),
        (headers.optional_header_offset, new_optional.pack()),
        (headers.section_table_offset, b"".join(section.pack() for section in sections)),
    ):
        uki[at : at + len(packed)] = packed
    return bytes(uki)


def _round(value: int, alignment: int) -> int:
    return value + -value % alignment


def merge_sbat(stub: bytes, kernel: bytes) -> bytes:
    """Return the revocation entries of stub and kernel and a UKI's own, so that each can be revoked."""
    lines = [_SBAT_HEADER, *read_sbat(stub), *read_sbat(kernel), _SBAT_UKI]
    return "\n".join(lines).encode() + b"\n\0"


def verify_uki(uki: bytes, stub: bytes, parts: UkiParts) -> None:
    """Read the UKI back, strictly, and compare: every part in its section, the stub's unchanged, nothing else."""
    headers, base = pe.parse(uki), pe.parse(stub)
    if headers.file_header.machine != base.file_header.machine:
        raise DigestError(f"the UKI that was built is for {headers.machine}, its stub for {base.machine}")
    if headers.optional_header.address_of_entry_point != base.optional_header.address_of_entry_point:
        raise DigestError("the UKI that was built does not start in its stub")
    expected: list[tuple[bytes, Pieces]] = [
        (section.name, (pe.contents(stub, section),)) for section in base.sections if section.name != b".sbat"
    ]
    expected += parts.sections()
    for name, content in expected:
        there = headers.sections_named(name)
        # Compared in place: the initramfs may be a hundred megabytes.
        size = min(there[0].virtual_size, there[0].size_of_raw_data) if there else 0
        if len(there) != 1 or size != sum(map(len, content)) or not _holds(uki, content, there[0].pointer_to_raw_data):
            raise DigestError(
                f"the UKI that was built does not hold what was put into its section {name.decode()}",
                hint="use another ukify, or none: oci2boot builds UKIs itself",
            )
    revocation = b"".join(pe.contents(uki, section) for section in headers.sections_named(b".sbat")).splitlines()
    if not set(merge_sbat(stub, parts.kernel).splitlines()) <= set(revocation):
        raise DigestError("the UKI that was built lacks revocation entries of its stub or kernel")
    names = [*(name for name, _ in expected), b".sbat"]
    strange = [section.name.decode() for section in headers.sections if section.name not in names]
    if strange:
        raise DigestError(f"the UKI that was built has sections that nobody put there: {' '.join(strange)}")


def _holds(data: bytes, pieces: Pieces, at: int) -> bool:
    for piece in pieces:
        if not data.startswith(piece, at):
            return False
        at += len(piece)
    return True


def ukify_argv(
    ukify: str | Path,
    stub: Path,
    kernel: Path,
    initrds: Sequence[Path],
    cmdline: Path,
    os_release: Path,
    uname: str,
    output: Path,
    microcode: Path | None = None,
) -> list[str | Path]:
    """Return the call that builds the same UKI; ukify takes `cmdline` and `os_release` verbatim only from files."""
    argv: list[str | Path] = [
        ukify, "build",
        "--stub", stub,
        "--linux", kernel,
        *(word for initrd in initrds for word in ("--initrd", initrd)),
        "--cmdline", f"@{cmdline}",
        "--os-release", f"@{os_release}",
        "--uname", uname,
        "--no-sign-kernel",
        "--output", output,
    ]  # fmt: skip
    if microcode:
        argv += ["--microcode", microcode]
    return argv


def check_ukify(version: str, stub: bytes) -> None:
    """Refuse a ukify, by what its `--version` prints, that would damage a UKI of this stub; `ToolError` says why."""
    found = _UKIFY_VERSION.match(version)
    if not found:
        raise ToolError(f"ukify does not say which version it is: {version[:100]!r}")
    major, minor = (found[3], found[4]) if found[3] == found[1] else (found[1], found[2])
    number = (int(major), int(minor or 0))
    shown = f"ukify {number[0]}.{number[1]}"
    if number < UKIFY_OLDEST:
        raise ToolError(f"{shown} is older than {UKIFY_OLDEST[0]}")
    if number in UKIFY_BAD:
        raise ToolError(f"{shown} alters the kernel (systemd#35851)")
    if stub_version(stub) >= STUB_LARGE and number < UKIFY_FOR_LARGE_STUB:
        raise ToolError(f"{shown} damages UKIs with the image's systemd-stub {stub_version(stub)}, 257.9 does not")


def stub_version(stub: bytes) -> int:
    """Return the major version in the stub's `.sdmagic`; 0 where it has none."""
    for section in pe.parse(stub).sections_named(b".sdmagic"):
        found = _MAGIC_VERSION.search(pe.contents(stub, section))
        if found:
            return int(found[1])
    return 0
