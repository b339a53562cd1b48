"""A machine that changes to another image is made as it was: loader, console, arguments. Witness: objcopy."""

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from oci2boot.oci.reference import Reference
from oci2boot.workflows.machine.upgrade import Upgraded, UpgradeRequest, switch
from oci2boot.workflows.make.convert import convert
from oci2boot.workflows.progress import silent
from oci2boot.workflows.requests import BootOptions, ConvertRequest
from tests.boot.debian import package
from tests.boot.loaders import loader
from tests.oci.layouts import Layout
from tests.witness import program
from tests.workflows.machines import ANY_BOOT, FIRST, SECOND, Machine, digests

SHIM: dict[str, bytes | Path] = {
    "usr/lib/shim/shimx64.efi.signed": (package("shim-signed") / "usr/lib/shim/shimx64.efi.signed").read_bytes(),
    "usr/lib/shim/mmx64.efi.signed": (
        package("shim-helpers-amd64-signed") / "usr/lib/shim/mmx64.efi.signed"
    ).read_bytes(),
}
GRUB = (package("grub-efi-amd64-signed") / "usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed").read_bytes()


def installed(folder: Path, **options: Any) -> Machine:
    """Return a machine whose first image was converted with these options."""
    made = Machine(Layout(folder / "layout"), folder / "repo", folder / "root", folder / "esp")
    made.root.mkdir()
    (made.esp / "EFI/BOOT").mkdir(parents=True)
    made.release({**FIRST, **SHIM})
    request = ConvertRequest(source=made.source, repo=made.repo, name="demo", boot=replace(ANY_BOOT, **options))
    convert(request, silent)
    return made


def switched(machine: Machine, **said: Any) -> Upgraded:
    machine.release({**SECOND, **SHIM}, name="w")
    source = Reference.parse(f"oci:{machine.layout.path}:w")
    wanted = ConvertRequest(source=source, repo=machine.sysroot.repository, name="other", boot=BootOptions(**said))
    return switch(UpgradeRequest(machine.sysroot), wanted, silent, said)


def arguments(machine: Machine, tmp_path: Path) -> list[str]:
    """Return the command line of the UKI that boots first."""
    record = json.loads((machine.root / "state/deploy" / digests(machine)[0] / "oci2boot.json").read_text())
    (uki,) = (path for path in record["esp"] if path.startswith("EFI/Linux/") and ".extra.d" not in path)
    found = next(path for path in (machine.esp / "EFI/Linux").iterdir() if path.name.startswith(Path(uki).stem))
    argv: list[str | Path] = [
        program("objcopy"),
        "-O",
        "binary",
        "--dump-section",
        f".cmdline={tmp_path}/line",
        found,
        tmp_path / "x",
    ]
    subprocess.run(argv, check=True, capture_output=True)
    return (tmp_path / "line").read_bytes().rstrip(b"\0").decode().split()


def test_a_switch_remembers_loader_console_and_arguments(tmp_path: Path) -> None:
    """P.11: as `upgrade` does. The ESP's BOOTX64.EFI was systemd-boot afterwards, and `console=` was gone."""
    machine = installed(tmp_path, loader="shim", console="serial", kargs=("mitigations=off",), timeout=9)
    machine.install()
    assert switched(machine).outcome == "deployed"
    assert (machine.esp / "EFI/BOOT/BOOTX64.EFI").read_bytes() == SHIM["usr/lib/shim/shimx64.efi.signed"]
    assert (machine.esp / "EFI/BOOT/grubx64.efi").read_bytes() == loader()
    assert {"console=ttyS0,115200", "mitigations=off"} < set(arguments(machine, tmp_path))
    assert not (machine.esp / "EFI/systemd").exists()


def test_what_is_said_goes_on_top(tmp_path: Path) -> None:
    """P.11: and is remembered from then on; the default of an option can be said too."""
    machine = installed(tmp_path, loader="none", console="serial", kargs=("quiet", "mitigations=off"), timeout=9)
    machine.install()
    assert not list((machine.esp / "EFI/BOOT").iterdir())
    done = switched(machine, loader="systemd-boot", kargs=("debug",))
    assert done.bootable
    assert (machine.esp / "EFI/BOOT/BOOTX64.EFI").read_bytes() == loader()
    words = arguments(machine, tmp_path)
    assert words.index("mitigations=off") < words.index("debug")
    assert "console=ttyS0,115200" in words
    kept = done.bootable.options
    assert (kept["loader"], kept["kargs"], kept["timeout"]) == (
        "systemd-boot",
        ["quiet", "mitigations=off", "debug"],
        9,
    )


@pytest.mark.parametrize("sbat", [b".sbat\0", b".none\0"])
def test_a_grub_that_was_there_first_is_left_alone(sbat: bytes, tmp_path: Path) -> None:
    """P.9: installed with `--loader none`, switched without a word about the loader."""
    machine = installed(tmp_path, loader="none")
    there = GRUB.replace(b".sbat\0", sbat)
    (machine.esp / "EFI/BOOT/BOOTX64.EFI").write_bytes(there)
    machine.install()
    assert switched(machine).outcome == "deployed"
    assert (machine.esp / "EFI/BOOT/BOOTX64.EFI").read_bytes() == there
    programs = {str(path.relative_to(machine.esp)) for path in machine.esp.rglob("*.efi")}
    assert all(path.startswith("EFI/Linux/") for path in programs), programs
    assert not (machine.esp / "loader/loader.conf").exists()


def test_what_names_a_part_of_one_image_is_not_asked_of_another(tmp_path: Path) -> None:
    machine = installed(tmp_path, kernel="6.12.1-test")
    machine.install()
    done = switched(machine)
    assert done.bootable
    assert done.bootable.options["kernel"] is None


def test_a_registry_that_is_not_trusted_is_one_registry(tmp_path: Path) -> None:
    """D.23: that certificates of one registry are not looked at says nothing of the next."""
    machine = installed(tmp_path)
    machine.install()
    (digest,) = digests(machine)
    record = machine.root / "state/deploy" / digest / "oci2boot.json"
    facts = json.loads(record.read_text())
    facts["options"]["tls_verify"] = False
    record.write_text(json.dumps(facts))
    done = switched(machine)
    assert done.bootable
    assert done.bootable.options["tls_verify"] is True
