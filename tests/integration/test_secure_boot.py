"""The chain from the firmware down: a signed disk boots under Secure Boot, and whatever is changed on it is caught.

OVMF checks the signatures, Debian's kernel the files; their words on the console are the evidence.
"""

import json
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import pytest

from oci2boot.system.qemu import find_firmware
from oci2boot.workflows.boot_test import BootTestRequest, _Bench, _promise, try_disk
from oci2boot.workflows.events import silent
from oci2boot.workflows.tamper import FIRMWARE, Tampering
from tests import vm
from tests.conftest import Initramfs
from tests.witness import program

pytestmark = [pytest.mark.boot, pytest.mark.demo]


@pytest.fixture(scope="module")
def signed(demo_image: Callable[[Initramfs], Path], shared: Path) -> tuple[Path, Path]:
    """Return the folder of the keys and the disk, both made by an ordinary user."""
    home = vm.users_folder(shared / "signed")
    keys, repo, disk = home / "keys", home / "repo", home / "disk.raw"
    vm.oci2boot("keys", "generate", keys, home=home)
    words: list[str | Path] = ["--secureboot-key", keys / "db.key", "--secureboot-certificate", keys / "db.crt"]
    vm.oci2boot("convert", f"oci:{demo_image('dracut')}:latest", "--repo", repo, *words, home=home)
    vm.oci2boot("install", "--target", disk, "--repo", repo, home=home)
    return keys, disk


def test_what_is_on_the_disk_is_signed(signed: tuple[Path, Path], tmp_path: Path) -> None:
    """D.10, K0.12, C.35: loader and UKI, by sbverify."""
    keys, disk = signed
    _, uki = vm.read_uki(disk, tmp_path)
    (tmp_path / "signed.efi").write_bytes(uki)
    subprocess.run([program("sbverify"), "--cert", keys / "db.crt", tmp_path / "signed.efi"], check=True)
    said = vm.oci2boot("verify", disk, "--db", keys / "db.crt", "--json", home=disk.parent)
    assert json.loads(said)["ok"] is True


def test_it_boots_and_every_tampering_is_refused(signed: tuple[Path, Path], tmp_path: Path) -> None:
    """B.4, D.1, C.23, C.32, C.36, K0.9: the tamper matrix, under Secure Boot."""
    keys, disk = signed
    tested = try_disk(BootTestRequest(disk, keys, tamper=True, junit=tmp_path / "junit.xml"), silent)
    assert {case.name: case.evidence for case in tested.cases if not case.ok} == {}
    evidence = {case.name: case.evidence for case in tested.cases}
    assert str(tested.digest) in evidence["boots"]
    for name in ("a byte of the kernel in the UKI", "the command line of the UKI", "an unsigned UKI"):
        assert "access denied" in evidence[name].lower()
    assert "denied" in evidence["a byte of the boot loader"].lower()
    assert "CORRUPTED" in evidence["a byte of the EROFS image"]
    assert "wrong fs-verity digest" in evidence["UKI A with rootfs B"]
    assert "level=-1" in evidence["a byte of a file"]
    assert "level=0" in evidence["a byte of a file's Merkle tree"]
    suite = ET.parse(tmp_path / "junit.xml").getroot()
    assert (suite.get("tests"), suite.get("failures")) == ("9", "0")


def test_a_tampering_that_nothing_catches_is_a_failure(signed: tuple[Path, Path], tmp_path: Path) -> None:
    """The check of the check: an untouched disk comes up, and that is no refusal."""
    _, disk = signed
    firmware = find_firmware()
    bench = _Bench(BootTestRequest(disk), firmware, "tcg", tmp_path, _promise(disk)[1])
    case = bench.tampered(Tampering("nothing at all", lambda _: None, FIRMWARE))
    assert not case.ok
    assert "as if nothing had happened" in case.evidence
