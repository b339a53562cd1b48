"""The other ways from the firmware to the root file system, each under Secure Boot: a vendor's UKI with our addon,
behind a shim and alone; and a machine that learns its keys from the disk.

OVMF checks the signatures, Debian's shim and systemd-boot start what lies beside them; the guest says what it sees.
"""

import json
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from oci2boot.system.qemu import Firmware, VirtualMachine, boot, credential, find_firmware, unit_credentials
from tests import vm
from tests.boot.debian import package
from tests.conftest import ROOT
from tests.keys import make
from tests.oci.layouts import add_layer
from tests.partitions import table
from tests.witness import program
from tests.workflows.sealable import tar

pytestmark = [pytest.mark.boot, pytest.mark.demo]

UKI = "EFI/Linux/vendor.efi"
ADDON = "composefs.addon.efi"
SECONDS = 2 * vm.BOOT_SECONDS
"""Secure Boot's firmware is slower than the other, and one of the machines starts twice."""

# systemd's variables are those of https://systemd.io/BOOT_LOADER_INTERFACE; shim leaves SbatLevelRT.
REPORT = r"""
exec >/dev/ttyS1 2>&1
cd /sys/firmware/efi/efivars
say() { printf '%s=%s\n' "$1" "$(eval "$2" 2>&1 | tr '\n' ';')"; }
variable() { cat "$1-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f" | tail -c +5 | tr -d '\0'; } # efivarfs does not seek
flag() { od -An -tu1 -j4 "$1-8be4df61-93ca-11d2-aa0d-00e098032b8c" | tr -d ' '; }
say multi-user 'systemctl is-active multi-user.target'
say secure-boot 'flag SecureBoot'
say setup-mode 'flag SetupMode'
say cmdline 'cat /proc/cmdline'
say root 'journalctl -b -o cat | grep "root is the image"'
say loader 'variable LoaderImageIdentifier'
say stub 'variable StubImageIdentifier'
say shim 'ls | grep ^SbatLevelRT'
echo end
"""


@dataclass(frozen=True, slots=True)
class Made:
    """What an ordinary user made: keys, images in a store and, of the demo image, a disk."""

    home: Path
    keys: Path
    vendor: Path
    """The certificate of a vendor, which the machine trusts as well."""
    vendors_image: str
    disk: Path

    def convert(self, source: str, name: str, *words: str | Path) -> tuple[str, Path]:
        """Return the digest of the image, and a disk made of it."""
        signing: list[str | Path] = ["--secureboot-key", self.keys / "db.key"]
        signing += ["--secureboot-certificate", self.keys / "db.crt"]
        repo, disk = self.home / "repo", self.home / f"{name}.raw"
        made = vm.oci2boot(
            "convert", source, "--name", name, "--repo", repo, "--json", *signing, *words, home=self.home
        )
        vm.oci2boot("install", name, "--target", disk, "--repo", repo, home=self.home)
        digest: str = json.loads(made)["rootfs"]
        return digest, disk


@pytest.fixture(scope="module")
def made(shared: Path) -> Made:
    home = vm.users_folder(shared / "chains")
    folder = home / "vendor"
    folder.mkdir()
    vendor = make(folder, "vendor")
    vm.oci2boot("keys", "generate", home / "keys", "--db", vendor.path, home=home)
    script: list[str | Path] = [ROOT / "scripts/demo-image", "--initramfs", "dracut"]
    demo = Path(subprocess.run(script, check=True, capture_output=True, text=True).stdout.strip())
    made = Made(home, home / "keys", vendor.path, f"oci:{home}/image:vendor", home / "plain.raw")
    made.convert(f"oci:{demo}:latest", "plain", "--secure-boot-enroll", "force", "--timeout", "0")
    signed = vendor.sbsign(vm.without_promise(vm.read_uki(made.disk, folder)[1]))
    shim = package("shim-signed") / "usr/lib/shim/shimx64.efi.signed"
    mok_manager = package("shim-helpers-amd64-signed") / "usr/lib/shim/mmx64.efi.signed"
    layer: dict[str, bytes | Path] = {
        f"boot/{UKI}": signed,
        "usr/lib/shim/shimx64.efi.signed": shim.read_bytes(),
        "usr/lib/shim/mmx64.efi.signed": mok_manager.read_bytes(),
    }
    add_layer(demo, home / "image", tar(layer), tag="vendor")
    return made


def reporting(disk: Path, firmware: Firmware) -> VirtualMachine:
    unit = unit_credentials("oci2boot-report.service", vm.REPORT_UNIT, wanted_by="multi-user.target")
    return VirtualMachine(disk=disk, firmware=firmware, smbios=(*unit, credential("oci2boot.report", REPORT.encode())))


def report_of(machine: VirtualMachine, folder: Path) -> dict[str, str]:
    """Return what the guest says of itself."""
    with boot(machine, folder) as running:
        running.wait_for(r"(?m)^end$", SECONDS, port="report")
        return vm.parse_report(running.report)


def check_root(report: dict[str, str], digest: str) -> None:
    """The root file system is the one promised, under Secure Boot."""
    assert (report["multi-user"], report["secure-boot"], report["setup-mode"]) == ("active", "1", "0"), report
    hexdigits = digest.rpartition(":")[2]
    assert [word for word in report["cmdline"].split() if word.startswith("composefs")] == [f"composefs={hexdigits}"]
    assert f"oci2boot: root is the image sha256:{hexdigits}" in report["root"].split(";")


def test_a_vendors_uki_behind_a_shim_boots_what_our_addon_promises(made: Made, tmp_path: Path) -> None:
    """P.9, D.1, C.5: OVMF checks shim, shim systemd-boot and, with it, the vendor's UKI and our addon."""
    words: list[str | Path] = ["--flow", "vendor", "--db", made.vendor, "--loader", "shim", "--timeout", "1"]
    digest, disk = made.convert(made.vendors_image, "shim", *words)
    firmware = find_firmware(secure=True)
    enrolled = made.home / "enrolled.fd"
    vm.oci2boot("keys", "enroll", made.keys, "--ovmf-vars", enrolled, home=made.home)
    report = report_of(reporting(disk, replace(firmware, variables=enrolled)), tmp_path / "vm")
    assert report["shim"].startswith("SbatLevelRT-")
    assert report["loader"].lower() == "\\efi\\boot\\grubx64.efi"
    assert report["stub"].lower() == f"\\{UKI}".replace("/", "\\").lower()
    check_root(report, digest)
    checks = json.loads(vm.oci2boot("verify", disk, "--db", made.keys / "db.esl", "--json", home=made.home))
    assert {check["result"] for check in checks["checks"]} <= {"ok", "not checked"}
    assert {
        f"signature {path}" for path in ("EFI/BOOT/BOOTX64.EFI", "EFI/BOOT/grubx64.efi", UKI, f"{UKI}.extra.d/{ADDON}")
    } <= {check["name"] for check in checks["checks"] if check["result"] == "ok"}


def test_the_firmware_starts_a_uki_and_its_addon_without_a_loader(made: Made) -> None:
    """P.9, B.4: the vendor's UKI is the only program on the disk, and without our addon it would refuse to boot."""
    words: list[str | Path] = ["--flow", "vendor", "--db", made.vendor, "--loader", "direct"]
    digest, disk = made.convert(made.vendors_image, "direct", *words)
    esp = f"{disk}@@{table(disk)[0]['start']}"
    listed = subprocess.check_output([program("mdir"), "-/", "-b", "-i", esp, "::"], text=True).split()
    files = {name.removeprefix("::/").upper() for name in listed if not name.endswith("/")}
    assert files == {"EFI/BOOT/BOOTX64.EFI", f"EFI/BOOT/BOOTX64.EFI.extra.d/{ADDON}".upper()}
    vm.oci2boot("verify", disk, "--db", made.keys / "db.esl", home=made.home)
    said = vm.oci2boot("test", disk, "--keys", made.keys, "--timeout", str(SECONDS), "--json", home=made.home)
    tested = json.loads(said)
    assert (tested["ok"], tested["secure_boot"], tested["digest"]) == (True, True, digest)


def test_a_machine_learns_its_keys_from_the_disk(made: Made, tmp_path: Path) -> None:
    """P.7: systemd-boot enrols PK, KEK and db into firmware that knows no keys, and from then on they count."""
    disk = vm.copy(made.disk, tmp_path / "disk.raw")
    vm.oci2boot("keys", "enroll", made.keys, "--esp", disk, home=made.home, demote=False)
    machine = replace(reporting(disk, find_firmware(secure=True)), may_reboot=True)
    report = report_of(machine, tmp_path / "vm")
    check_root(report, vm.promised_digest(disk, tmp_path))
    assert report["loader"].lower() == "\\efi\\boot\\bootx64.efi"
    said = tmp_path / "variables.json"
    argv: list[str | Path] = [program("virt-fw-vars"), "-i", tmp_path / "vm/variables.fd", "--output-json", said]
    subprocess.run(argv, check=True, capture_output=True)
    variables = {one["name"]: bytes.fromhex(one["data"]) for one in json.loads(said.read_bytes())["variables"]}
    for name in ("PK", "KEK", "db"):
        assert variables[name] == (made.keys / f"{name}.esl").read_bytes()
