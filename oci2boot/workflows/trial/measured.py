"""What the TPM of a machine holds, compared with what its UKI gives, and what lies beside it."""

from collections.abc import Mapping
from typing import Final

from oci2boot.boot import pcr
from oci2boot.boot.sealed import Uki
from oci2boot.errors import FormatError
from oci2boot.formats import pe
from oci2boot.workflows.trial.report import Booted, Case
from oci2boot.workflows.verify.esp import EspFiles, addons_folder

ADDON_SECTIONS: Final = frozenset((b".cmdline", b".uname", b".sbat", b".sdmagic"))
"""Of an addon that brings a command line and nothing else that is measured."""


def credentials_beside(files: EspFiles, uki: str) -> dict[str, bytes] | None:
    """Return the credentials that the stub passes on, by name; None where it takes more than these and addons."""
    folder, found = f"{addons_folder(uki).lower()}/", {}
    for path, read in files.items():
        lower = path.lower()
        if lower.startswith("loader/credentials/"):
            return None
        if lower.startswith(folder) and not lower.endswith(".addon.efi"):
            if not lower.endswith(".cred"):
                return None
            found[path.rpartition("/")[2]] = read()
    return found


def compare(
    booted: Booted,
    data: bytes,
    uki: Uki,
    credentials: Mapping[str, bytes] | None,
    *,
    secure_boot: bool,
    demanded: bool,
) -> Case:
    """Say whether the TPM holds what this UKI (`data` are its bytes), its addons and its credentials give.

    Where there is nothing to compare the case is skipped, and failed if it was `demanded`.
    """

    def verdict(ok: bool, evidence: str, *, asked: bool = True) -> Case:
        return Case("measured", ok, evidence, booted.seconds, skipped=not asked and not demanded)

    found = booted.pcrs
    if not booted.report:
        return verdict(False, "the machine sent no report: that takes systemd 256", asked=False)
    if "11" not in found or "12" not in found:
        return verdict(False, "the machine shows no TPM: its kernel has no driver for it", asked=False)
    try:
        expected = _phases(data)
    except FormatError as error:
        return verdict(False, error.message, asked=False)
    if found["11"] not in expected:
        return verdict(False, f"PCR 11 is {found['11']}; this UKI gives {' or '.join(expected)}")
    evidence = f"PCR 11 is {found['11']}, which this UKI gives {expected[found['11']]}"
    added = _beside(uki, credentials, secure_boot=secure_boot)
    if added is None:
        return verdict(True, f"{evidence}; PCR 12 depends on what lies beside the UKI")
    if found["12"] != added:
        return verdict(False, f"PCR 12 is {found['12']}; what lies beside the UKI gives {added}")
    return verdict(True, f"{evidence}; PCR 12 is {added}, which what lies beside it gives")


def _phases(uki: bytes) -> dict[str, str]:
    """Return the PCR 11 that a machine can have once multi-user.target is reached, and after which phases.

    All of them have passed by then; those of the initramfs, or of all, count where it has the units and TPM support.
    """
    value = pcr.uki_pcr(uki)
    early, late = pcr.PHASES[:2], pcr.PHASES[2:]
    ways = ((), early, late, (*early, *late))
    return {
        pcr.after(value, phases).hex(): f"after {':'.join(phases)}" if phases else "with no phase measured by the image"
        for phases in ways
    }


def _beside(uki: Uki, credentials: Mapping[str, bytes] | None, *, secure_boot: bool) -> str | None:
    """Return the PCR 12 that addons and credentials give; None where addons bring more than words for the command line.

    The stub drops those for another kernel and, under Secure Boot, those that nobody signed.
    """
    if credentials is None:
        return None
    lines = []
    for addon in uki.addons:
        assert isinstance(addon.file.content, bytes)
        headers = pe.parse(addon.file.content)
        if secure_boot and not headers.signed:
            continue
        if any(section.name in pe.UKI_SECTIONS - ADDON_SECTIONS for section in headers.sections):
            return None
        names = [pe.contents(addon.file.content, section) for section in headers.sections_named(b".uname")]
        if not names or names[0].rstrip(b"\0\n").decode(errors="replace") == uki.kernel_version:
            lines.append(addon.cmdline)
    return pcr.beside_pcr(lines, credentials).hex()
