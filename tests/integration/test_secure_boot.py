"""The chain from the firmware down: a signed disk boots under Secure Boot, and whatever is changed on it is caught.

OVMF checks the signatures, systemd-stub those of addons, Debian's kernel the files; their words on the console are the
evidence. swtpm measures, systemd-measure says what it should.
"""

import json
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from oci2boot.formats import pe
from oci2boot.formats.png import lit_lines
from oci2boot.system.qemu import Firmware, VirtualMachine, find_firmware
from oci2boot.workflows.keys.generate import enroll_in_firmware
from oci2boot.workflows.progress import silent
from oci2boot.workflows.trial.boot import BootTestRequest, try_disk
from oci2boot.workflows.trial.report import Bench
from oci2boot.workflows.trial.tamper import FIRMWARE, Tampering
from oci2boot.workflows.verify.promises import find_promise
from tests import vm
from tests.boot.debian import systemd_measure
from tests.conftest import Initramfs
from tests.keys import Pair
from tests.oci.layouts import add_layer
from tests.witness import program
from tests.workflows.sealable import tar

pytestmark = [pytest.mark.boot, pytest.mark.demo]

BOOT_SECONDS = 900
"""Two machines at a time, beside whatever else the host does."""


class Disks:
    """Made by an ordinary user, signed by the same keys: by the local flow, and by the vendor's out of its UKI."""

    def __init__(self, home: Path, image: Path) -> None:
        self.keys, self.local, self.vendor = home / "keys", home / "local.raw", home / "vendor.raw"
        self._home = home
        vm.oci2boot("keys", "generate", self.keys, home=home)
        self._make(f"{image}:latest", self.local)
        layout = home / "layout"
        db = Pair(self.keys / "db.key", self.keys / "db.crt")
        uki = db.sbsign(vm.without_promise(vm.read_uki(self.local, home)[1]))
        add_layer(image, layout, tar({"boot/EFI/Linux/os.efi": uki}), tag="vendor")
        self._make(f"{layout}:vendor", self.vendor, "--flow", "vendor")

    def _make(self, image: str, disk: Path, *words: str) -> None:
        repo = self._home / "repo"
        signing: list[str | Path] = ["--secureboot-key", self.keys / "db.key"]
        signing += ["--secureboot-certificate", self.keys / "db.crt"]
        vm.oci2boot("convert", f"oci:{image}", "--name", disk.stem, "--repo", repo, *signing, *words, home=self._home)
        vm.oci2boot("install", disk.stem, "--target", disk, "--repo", repo, home=self._home)


@pytest.fixture(scope="module")
def disks(demo_image: Callable[[Initramfs], Path], shared: Path) -> Disks:
    return Disks(vm.users_folder(shared / "signed"), demo_image("dracut"))


def test_what_is_on_the_disk_is_signed(disks: Disks, tmp_path: Path) -> None:
    """D.10, K0.12, C.35: loader, UKI and addon, by sbverify."""
    for disk in (disks.local, disks.vendor):
        _, uki = vm.read_uki(disk, tmp_path)
        (tmp_path / "signed.efi").write_bytes(uki)
        subprocess.run([program("sbverify"), "--cert", disks.keys / "db.crt", tmp_path / "signed.efi"], check=True)
        said = vm.oci2boot("verify", disk, "--db", disks.keys / "db.crt", "--json", home=disk.parent)
        assert json.loads(said)["ok"] is True


def predicted(uki: bytes, folder: Path) -> str:
    """Return PCR 11 by systemd-measure, once every phase has passed that takes no TPM library in the image: none."""
    words = []
    for section in pe.parse(uki).sections:
        if section.name in (b".linux", b".osrel", b".cmdline", b".initrd", b".uname", b".sbat"):
            path = folder / section.name.decode()
            path.write_bytes(pe.contents(uki, section))
            words.append(f"--{path.name[1:]}={path}")
    argv = [str(systemd_measure()), "calculate", "--bank=sha256", "--json=short", "--phase=", *words]
    done = subprocess.run(argv, check=True, capture_output=True, text=True)
    (value,) = (one["hash"] for one in json.loads(done.stdout)["sha256"] if one["pcr"] == 11)
    return str(value)


def test_it_boots_measured_and_every_tampering_is_caught(disks: Disks, tmp_path: Path) -> None:
    """B.4, C.20, C.23, C.32, C.33, C.36, D.1, K0.9: the tamper matrix, under Secure Boot, of a disk with an addon."""
    junit, screen = tmp_path / "junit.xml", tmp_path / "screen.png"
    request = BootTestRequest(
        disk=disks.vendor, keys=disks.keys, tamper=True, timeout=BOOT_SECONDS, junit=junit, tpm="yes", screenshot=screen
    )
    tested = try_disk(request, silent)
    assert {case.name: case.evidence for case in tested.cases if not case.ok} == {}
    evidence = {case.name: case.evidence for case in tested.cases}
    assert str(tested.digest) in evidence["boots"]
    assert tested.pcrs["11"] == predicted(vm.read_uki(disks.vendor, tmp_path)[1], tmp_path)
    for name in ("a byte of the kernel in the UKI", "the command line of the UKI", "an unsigned UKI"):
        assert "access denied" in evidence[name].lower()
    assert "denied" in evidence["a byte of the boot loader"].lower()
    assert "Access denied" in evidence["a byte of the addon with the promise"]
    assert "no composefs argument" in evidence["a byte of the addon with the promise"]
    assert "Access denied" in evidence["an unsigned addon"]
    assert f"came up on {tested.digest}" in evidence["an unsigned addon"]
    assert "more than one composefs argument" in evidence["a signed addon with a second promise"]
    assert "CORRUPTED" in evidence["a byte of the EROFS image"]
    assert "wrong fs-verity digest" in evidence["UKI A with rootfs B"]
    assert "level=-1" in evidence["a byte of a file"]
    assert "level=0" in evidence["a byte of a file's Merkle tree"]
    assert len(tested.cases) == 13
    suite = ET.parse(junit).getroot()
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("13", "0", "0")
    times = list(tested.boot_seconds)
    assert times == ["initramfs", "composefs", "switch_root", "up"]
    assert lit_lines(screen.read_bytes()) >= 8, "a word, not a cursor alone"


def test_what_nothing_catches_is_a_failure(disks: Disks, tmp_path: Path) -> None:
    """The check of the checks, by an untouched disk of the local flow, also under Secure Boot.

    One boot, seen by both judges.
    """
    firmware, variables = find_firmware(secure=True), tmp_path / "enrolled.fd"
    enroll_in_firmware(disks.keys, variables, firmware.variables)
    machine = VirtualMachine(disk=disks.local, firmware=Firmware(firmware.code, variables, secure=True))
    promise = find_promise(disks.local)
    bench = Bench(
        machine=machine, folder=tmp_path, sockets=tmp_path, digest=promise.digest, timeout=BOOT_SECONDS, report=silent
    )
    changes = [
        Tampering("nothing at all", lambda _: None, (FIRMWARE,)),
        Tampering("an argument that counts", lambda _: None, ("login:",), ignored=promise.argument),
    ]
    with ThreadPoolExecutor(len(changes)) as pool:
        refused, ignored = pool.map(bench.tampered, changes)
    assert not refused.ok
    assert "as if nothing had happened" in refused.evidence
    assert not ignored.ok
    assert f"came up with {promise.argument}" in ignored.evidence
