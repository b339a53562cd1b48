"""A machine's own kernel arguments. Witnesses: objcopy on the addon, sbverify on its signature."""

import subprocess
from pathlib import Path

import pytest

from oci2boot.errors import TargetError
from oci2boot.store.repository import Repository
from oci2boot.sysroot.state import read_state
from oci2boot.workflows.machine.kargs import add_arguments, list_arguments, remove_arguments
from oci2boot.workflows.progress import silent
from oci2boot.workflows.requests import SigningOptions
from tests.keys import make
from tests.witness import program
from tests.workflows.machines import Machine


def addons(machine: Machine) -> list[Path]:
    return sorted((machine.esp / "EFI/Linux").glob("*.extra.d/*"))


def command_line(addon: Path, tmp_path: Path) -> str:
    copied = tmp_path / "cmdline"
    argv = [program("objcopy"), "-O", "binary", f"--dump-section=.cmdline={copied}", str(addon), "/dev/null"]
    subprocess.run(argv, check=True, capture_output=True)
    return copied.read_bytes().rstrip(b"\0").decode()


def test_arguments_go_into_an_addon_beside_the_uki_and_on_with_upgrades(machine: Machine, tmp_path: Path) -> None:
    """P.11: machine-local kernel arguments."""
    add_arguments(machine.sysroot, ["console=ttyS0,115200", "quiet"], None, silent)
    add_arguments(machine.sysroot, ["loglevel=4", "quiet"], None, silent)
    (addon,) = addons(machine)
    assert addon.parent.name == f"{machine.entries()[0]}.extra.d"
    assert command_line(addon, tmp_path) == "console=ttyS0,115200 quiet loglevel=4"
    machine.release({"usr/bin/version": b"two" * 100})
    assert machine.upgrade().outcome == "deployed"
    assert [command_line(one, tmp_path) for one in addons(machine)] == ["console=ttyS0,115200 quiet loglevel=4"] * 2
    assert machine.upgrade().outcome == "up to date"
    remove_arguments(machine.sysroot, ["quiet", "loglevel=4"], None, silent)
    assert list_arguments(machine.sysroot).arguments == ("console=ttyS0,115200",)
    remove_arguments(machine.sysroot, ["console=ttyS0,115200"], None, silent)
    assert addons(machine) == []
    assert not list((machine.esp / "EFI/Linux").glob("*.extra.d"))


@pytest.mark.parametrize(
    "word",
    [
        "composefs=" + "ab" * 32, "root=/dev/sda1", "init=/bin/sh", "rd.break", "systemd.unit=rescue.target", "single",
        "selinux=0", "enforcing=0", "lockdown=none", "module.sig_enforce=0", "mitigations=off", "iommu=off",
        "systemd.debug_shell", "console=ttyS0 init=/bin/sh", "console=null", "ip=dhcp", 'quiet"', "", "1", "-- x",
        "rd.systemd.unit=emergency.target", "vconsole.keymap=us init=/bin/sh", "quiet\n",
    ],
)  # fmt: skip
def test_what_could_weaken_the_chain_is_refused(machine: Machine, word: str) -> None:
    """C.36: the kernel arguments that decide what is booted are the image's alone."""
    with pytest.raises(TargetError, match="not among the arguments"):
        add_arguments(machine.sysroot, ["quiet", word], None, silent)
    assert addons(machine) == []


def test_a_signed_uki_takes_a_signed_addon_only(machine: Machine, tmp_path: Path) -> None:
    db = make(tmp_path, "db")
    (name,) = machine.entries()
    uki = machine.esp / "EFI/Linux" / name
    uki.write_bytes(db.sbsign(uki.read_bytes()))
    with pytest.raises(TargetError, match="is signed"):
        add_arguments(machine.sysroot, ["quiet"], None, silent)
    assert addons(machine) == []
    add_arguments(machine.sysroot, ["quiet"], SigningOptions(certificate=db.path, key=str(db.key)), silent)
    (addon,) = addons(machine)
    argv = [program("sbverify"), "--cert", str(db.path), str(addon)]
    assert "Signature verification OK" in subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def test_a_dry_run_writes_nothing(machine: Machine) -> None:
    made = add_arguments(machine.sysroot, ["quiet"], None, silent, dry_run=True)
    assert made.plan
    assert len(made.plan.steps) == 1
    assert addons(machine) == []
    with Repository.open(machine.sysroot.repository):
        assert read_state(machine.sysroot).directory.problems == ()


def test_an_argument_that_is_not_there_is_not_removed(machine: Machine) -> None:
    with pytest.raises(TargetError, match="not an argument"):
        remove_arguments(machine.sysroot, ["quiet"], None, silent)


def test_a_deployment_of_another_tool_gets_no_arguments(machine: Machine) -> None:
    (record,) = machine.root.glob("state/deploy/*/oci2boot.json")
    record.unlink()
    with pytest.raises(TargetError, match="by another program"):
        add_arguments(machine.sysroot, ["quiet"], None, silent)
    assert addons(machine) == []
