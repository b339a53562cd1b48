"""The unit by which a machine enrols its TPM. Witness: systemd-analyze."""

import subprocess
from pathlib import Path

import pytest

from oci2boot.errors import FormatError, TargetError
from oci2boot.sysroot.first_boot import FirstBoot, with_first_boot
from oci2boot.sysroot.tpm2 import enrolment
from oci2boot.tree.model import find
from tests.sysroot.images import directory, file, image, read
from tests.witness import program


def files(pcrs: str) -> dict[str, str]:
    return dict(enrolment(pcrs))


def test_the_unit_is_what_systemd_takes(tmp_path: Path) -> None:
    """P.8"""
    (unit,) = (Path(path) for path in files("0+7") if path.endswith(".service"))
    target = tmp_path / unit.name
    target.write_text(files("0+7")[str(unit)])
    argv = [program("systemd-analyze"), "verify", "--man=no", str(target)]
    done = subprocess.run(argv, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # Debian 12's systemd is older than ImportCredential=.
    assert [line for line in done.stderr.splitlines() if unit.name in line and "ImportCredential" not in line] == []
    assert "--tpm2-pcrs=0+7 " in target.read_text()
    assert all(path in target.read_text() for path in files("0+7"))


@pytest.mark.parametrize("pcrs", ["", "7+", "+7", "24", "7,9", "7 9", "-1", "7; reboot", "7\n", "٧"])
def test_what_are_no_pcrs_is_refused(pcrs: str) -> None:
    with pytest.raises(FormatError, match="not a list of PCRs"):
        FirstBoot(tpm2_pcrs=pcrs).check()


@pytest.mark.parametrize("pcrs", ["11", "7+11", "15"])
def test_what_changes_after_the_disk_was_opened_is_refused(pcrs: str) -> None:
    """systemd-stub(7), systemd-pcrphase.service(8): PCR 11 grows with each phase of the boot."""
    with pytest.raises(FormatError, match=r"PCR 1[15] holds"):
        FirstBoot(tpm2_pcrs=pcrs).check()


def test_the_unit_lies_in_etc_of_the_machine() -> None:
    tree = image()
    with pytest.raises(TargetError, match="no systemd-cryptenroll"):
        with_first_boot(FirstBoot(tpm2_pcrs="7"), tree, None, read)
    able = directory({**tree.entries, b"usr": directory({b"bin": directory({b"systemd-cryptenroll": file(b"ELF")})})})
    etc, var = with_first_boot(FirstBoot(tpm2_pcrs="7"), able, None, read)
    assert etc
    assert var is None
    for path in files("7"):
        assert find(etc, path.removeprefix("/etc").encode())
