"""PCRs compared: what systemd-measure says of a UKI, and what a machine would say."""

import hashlib
from functools import partial
from pathlib import Path

import pytest

from oci2boot.boot.pcr import beside_pcr
from oci2boot.formats import pe
from oci2boot.workflows.trial.measured import compare
from oci2boot.workflows.trial.report import Booted, Case
from oci2boot.workflows.verify.esp import EspFiles
from tests.boot.pcrs import measured
from tests.workflows.sealable import addon, uki

LINE = f"rw composefs={'ab' * 32}"
ZERO = "00" * 32


@pytest.fixture
def by_phase(tmp_path: Path) -> dict[str, str]:
    """By systemd-measure."""
    data = uki(LINE)
    names = (b".linux", b".osrel", b".cmdline", b".initrd", b".uname", b".sbat")
    sections = {
        section.name: pe.contents(data, section) for section in pe.parse(data).sections if section.name in names
    }
    return measured(tmp_path, sections, "sha256")


PATH = "EFI/Linux/os.efi"
EXTRA = f"{PATH}.extra.d"


def found(*addons: bytes, **others: bytes) -> EspFiles:
    files = {PATH: uki(LINE), **{f"{EXTRA}/{number}.addon.efi": data for number, data in enumerate(addons)}, **others}
    return {path: partial(bytes, data) for path, data in files.items()}


def compared(files: EspFiles, *, secure_boot: bool = False, demanded: bool = False, **pcrs: str) -> Case:
    report = {"cmdline": LINE, **{name.replace("_", "-"): value for name, value in pcrs.items()}}
    return compare(Booted("", report, 42.0), files, PATH, secure_boot=secure_boot, demanded=demanded)


def test_what_the_uki_gives_is_found_in_the_phase_it_was_measured_in(by_phase: dict[str, str]) -> None:
    """C.33"""
    last = "enter-initrd:leave-initrd:sysinit:ready"
    case = compared(found(), pcr_11=by_phase[last].upper(), pcr_12=ZERO)
    assert case.ok
    assert f"{by_phase[last]}, which this UKI gives after {last}" in case.evidence
    assert compared(found(), pcr_11=by_phase["enter-initrd:leave-initrd"], pcr_12=ZERO).ok


def test_another_value_is_a_failure(by_phase: dict[str, str]) -> None:
    case = compared(found(), pcr_11="12" * 32, pcr_12=ZERO)
    assert (case.ok, case.skipped) == (False, False)
    assert "PCR 11 is 1212" in case.evidence
    halfway = compared(found(), pcr_11=by_phase["enter-initrd"], pcr_12=ZERO)
    assert not halfway.ok, "the machine is up, and the initramfs is left"
    case = compared(found(), pcr_11=by_phase["enter-initrd:leave-initrd"], pcr_12="12" * 32)
    assert (case.ok, case.skipped) == (False, False)
    assert "PCR 12 is 1212" in case.evidence


def test_an_addon_is_measured_into_pcr_12_unless_the_stub_drops_it(by_phase: dict[str, str]) -> None:
    value = by_phase["enter-initrd:leave-initrd"]
    event = hashlib.sha256("debug\0".encode("utf-16-le")).digest()
    given = hashlib.sha256(bytes(32) + event).hexdigest()
    assert compared(found(addon("debug")), pcr_11=value, pcr_12=given).ok
    assert not compared(found(addon("debug")), pcr_11=value, pcr_12=ZERO).ok
    assert compared(found(addon("debug")), secure_boot=True, pcr_11=value, pcr_12=ZERO).ok, "nobody signed it"


def test_credentials_are_measured_as_the_stub_passes_them_on(by_phase: dict[str, str]) -> None:
    """C.33: and nothing is said of PCR 12 where something else lies beside the UKI."""
    value = by_phase["enter-initrd:leave-initrd"]
    files = found(**{f"{EXTRA}/b.cred": b"secret", "EFI/Linux/other.efi.extra.d/c.cred": b""})
    given = beside_pcr([], {"b.cred": b"secret"}).hex()
    assert compared(files, pcr_11=value, pcr_12=given).ok
    assert not compared(files, pcr_11=value, pcr_12=ZERO).ok
    case = compared(found(**{f"{EXTRA}/x.confext.raw": b""}), pcr_11=value, pcr_12="12" * 32)
    assert case.ok
    assert case.evidence.partition("; ")[2] == "PCR 12 is not known with x.confext.raw beside the UKI"


def test_without_a_tpm_nothing_is_said_unless_it_was_demanded() -> None:
    case = compared(found())
    assert (case.ok, case.skipped) == (False, True)
    assert "shows no TPM" in case.evidence
    case = compared(found(), demanded=True)
    assert (case.ok, case.skipped) == (False, False)
