"""PCR 12 as what lies beside a UKI leaves it: the command lines of addons, and credentials. Needs no TPM.

systemd-stub(7), "Companion Files" and "TPM PCR Notes"; what it drops and joins, and how, is in src/boot/stub.c. The
boot menu, the host's SMBIOS strings and other profiles than the first may extend it further.
"""

from collections.abc import Callable, Mapping
from typing import Final

from oci2boot.boot import pcr
from oci2boot.boot.names import GLOBAL_ADDONS, GLOBAL_CREDENTIALS, RECORD, addons_folder, is_addon, is_credential
from oci2boot.boot.uki import STUB_WITH_ADDONS, stub_version
from oci2boot.errors import FormatError
from oci2boot.formats import pe

ADDON_SECTIONS: Final = frozenset((b".cmdline", b".uname", b".sbat", b".sdmagic"))
"""Of an addon that brings a command line and nothing else that is measured."""

Files = Mapping[str, Callable[[], bytes]]
"""The files of a boot partition by path, with slashes: what reads each."""


def predict_pcr_12(files: Files, uki: str, *, secure_boot: bool, algorithm: str = "sha256") -> bytes:
    """Return the value for the UKI at this path; under Secure Boot, firmware refuses what nobody signed.

    Raises `FormatError` where it depends on more than can be seen here.
    """
    beside, shared = _listed(files, addons_folder(uki)), _listed(files, GLOBAL_ADDONS)
    unknown = [name for name in beside if not (is_addon(name) or is_credential(name) or name == RECORD)]
    unknown += filter(is_credential, _listed(files, GLOBAL_CREDENTIALS))
    if unknown:
        raise FormatError(f"PCR 12 is not known with {unknown[0]} beside the UKI")
    program = files[uki]()
    addons = [(name, read()) for name, read in [*shared.items(), *beside.items()] if is_addon(name)]
    if addons and 0 < (version := stub_version(program)) < STUB_WITH_ADDONS:
        raise FormatError(f"PCR 12 is not known: the systemd-stub {version} measures each addon alone")
    line = ""
    for name, addon in addons:
        if _is_loaded(addon, program, secure_boot=secure_boot):
            text = _appended(addon, name)
            line = f"{line} {text}" if line else text
    credentials = {name: read() for name, read in beside.items() if is_credential(name)}
    return pcr.beside_pcr([_mangled(line)], credentials, algorithm)


def _listed(files: Files, folder: str) -> dict[str, Callable[[], bytes]]:
    """Return what the stub sees in a folder, in its order, by name."""
    readers = {}
    for path, read in files.items():
        parent, _, name = path.rpartition("/")
        if parent.lower() == folder.lower() and not name.startswith(".") and name.isascii():
            readers[name] = read
    return dict(sorted(readers.items()))


def _is_loaded(addon: bytes, uki: bytes, *, secure_boot: bool) -> bool:
    """Say whether the stub takes an addon: it passes over what the firmware refuses, and what is for another kernel."""
    headers = pe.parse(addon)
    sections = pcr.sections_of(headers)
    if b".linux" in sections or (secure_boot and not headers.signed):
        return False
    own = pcr.sections_of(pe.parse(uki)).get(b".uname")
    other = sections.get(b".uname")
    if own is None or other is None:
        return True
    # As strncmp() compares the UKI's word with so many bytes as the addon's section has.
    kernel, wanted = _text(uki, own), pe.contents(addon, other)
    return kernel.startswith(wanted) if b"\0" not in wanted else kernel == _text(addon, other)


def _appended(addon: bytes, name: str) -> str:
    sections = pcr.sections_of(pe.parse(addon))
    if more := sorted(sections.keys() & (pe.UKI_SECTIONS - ADDON_SECTIONS)):
        raise FormatError(f"PCR 12 is not known: the addon {name} has a section {more[0].decode()}")
    try:
        return _text(addon, sections[b".cmdline"]).decode("ascii") if b".cmdline" in sections else ""
    except UnicodeDecodeError as error:
        raise FormatError(f"PCR 12 is not known: the addon {name} has a command line outside ASCII") from error


def _text(data: bytes, section: pe.SectionHeader) -> bytes:
    return bytes(pe.contents(data, section)).partition(b"\0")[0]


def _mangled(line: str) -> str:
    """Return a command line as the stub measures it: control characters are blanks, and none is at either end."""
    return "".join(" " if ord(letter) <= 0x20 or ord(letter) == 0x7F else letter for letter in line).strip(" ")
