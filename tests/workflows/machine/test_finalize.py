"""What changes in /etc between an upgrade and the restart: machines in plain directories."""

from dataclasses import replace
from pathlib import Path

import pytest

from oci2boot.errors import TargetError
from oci2boot.sysroot.etc import EtcPolicy
from oci2boot.sysroot.machine import changing
from oci2boot.sysroot.state import read_state
from oci2boot.workflows.machine import keep as choose
from oci2boot.workflows.machine.deploy import DeployOptions
from oci2boot.workflows.machine.finalize import Finalized, check_finalized, finalize
from oci2boot.workflows.machine.reset import reset
from oci2boot.workflows.progress import silent
from oci2boot.workflows.requests import BootOptions
from tests.store.stored import everything
from tests.workflows.machines import ANY_FILE_SYSTEM, Machine

SECOND: dict[str, bytes | Path] = {"usr/bin/version": b"two" * 100, "etc/motd": b"image two\n"}
LONG = b"more than sixty-four bytes, so that it is a file of its own in every store\n" * 3


def staged(machine: Machine, options: DeployOptions = ANY_FILE_SYSTEM) -> tuple[Path, Path]:
    """Upgrade; return the upper directories of what runs and of what boots next."""
    machine.release(SECOND)
    assert machine.upgrade(options).outcome == "deployed"
    second, first = read_state(machine.sysroot).deployments
    folder = machine.sysroot.deployments
    return folder / first.digest.hex / "etc/upper", folder / second.digest.hex / "etc/upper"


def outcome(machine: Machine, *, dry_run: bool = False) -> str:
    (one,) = finalize(machine.sysroot, silent, dry_run=dry_run)
    return one.outcome


def test_what_changed_since_the_upgrade_goes_with_it(machine: Machine) -> None:
    """P.10, C.22: added, changed and removed files, links and folders; twice is as once."""
    before = next(machine.sysroot.deployments.iterdir()) / "etc/upper"
    (before / "kept").write_bytes(LONG)
    (before / "gone").write_bytes(b"x")
    (before / "folder").mkdir(mode=0o750)
    (before / "folder/link").symlink_to("../kept")
    (before / "same").hardlink_to(before / "kept")
    old, new = staged(machine)
    assert outcome(machine) == "unchanged"
    untouched = everything(machine.root)
    (old / "hostname").write_text("box\n")
    (old / "kept").write_bytes(LONG * 2)
    (old / "gone").unlink()
    (old / "folder/inner").mkdir()
    assert outcome(machine, dry_run=True) == "merged"
    (old / "hostname").unlink()
    (old / "kept").write_bytes(LONG)
    (old / "gone").write_bytes(b"x")
    (old / "folder/inner").rmdir()
    assert everything(machine.root) == untouched
    (old / "hostname").write_text("box\n")
    (old / "kept").write_bytes(LONG * 2)
    (old / "gone").unlink()
    (old / "folder/inner").mkdir()
    assert outcome(machine) == "merged"
    assert sorted(path.name for path in new.iterdir()) == ["folder", "hostname", "kept", "same"]
    assert (new / "kept").read_bytes() == LONG * 2
    assert (new / "folder/inner").is_dir()
    assert (new / "folder/link").readlink() == Path("../kept")
    assert outcome(machine) == "unchanged"
    assert [path for path in machine.sysroot.deployments.iterdir() if path.name.startswith(".")] == []
    (old / "hostname").unlink()
    assert outcome(machine) == "merged"
    assert not (new / "hostname").exists()


def test_an_etc_that_somebody_edited_is_left(machine: Machine) -> None:
    """P.10"""
    old, new = staged(machine)
    (new / "prepared").write_text("for the new image\n")
    (old / "hostname").write_text("box\n")
    before = everything(machine.root)
    assert outcome(machine) == "edited"
    assert everything(machine.root) == before


def test_an_etc_that_was_mounted_once_is_the_machines_own(machine: Machine) -> None:
    """D.20: overlayfs makes work/work when it is mounted; a rollback and back merges nothing."""
    old, new = staged(machine)
    (new.parent / "work/work").mkdir()
    (old / "hostname").write_text("box\n")
    assert finalize(machine.sysroot, silent) == ()
    assert not (new / "hostname").exists()


def test_the_policy_of_the_upgrade_is_remembered(machine: Machine) -> None:
    """P.10: ours by default; theirs and stop where the upgrade said so."""
    theirs = replace(ANY_FILE_SYSTEM, etc=EtcPolicy.parse(("/etc/motd=theirs", "ours")))
    old, new = staged(machine, theirs)
    (old / "motd").write_text("mine\n")
    (old / "hostname").write_text("box\n")
    assert outcome(machine) == "merged"
    assert [path.name for path in new.iterdir()] == ["hostname"]
    choose.pin(machine.sysroot, new.parent.parent.name[:8], pinned=True)
    (old / "hostname").write_text("box two\n")
    assert outcome(machine) == "merged"
    assert [path.name for path in new.iterdir()] == ["hostname"]
    assert read_state(machine.sysroot).deployments[0].pinned


def test_a_conflict_that_is_to_stop_leaves_the_new_etc_as_it_was(machine: Machine) -> None:
    """P.10: named, and whole."""
    old, new = staged(machine, replace(ANY_FILE_SYSTEM, etc=EtcPolicy.parse(("stop",))))
    (old / "hostname").write_text("box\n")
    (old / "motd").write_text("mine\n")
    before = everything(machine.root)
    found = finalize(machine.sysroot, silent)
    with pytest.raises(TargetError, match=r"stays as it was at the upgrade: .*/etc/motd"):
        check_finalized(found)
    assert everything(machine.root) == before
    (one,) = finalize(machine.sysroot, silent, EtcPolicy.parse(("ours",)))
    assert one.outcome == "merged"
    assert (new / "motd").read_text() == "mine\n"


def test_only_one_command_changes_the_machine(machine: Machine) -> None:
    old, new = staged(machine)
    (old / "hostname").write_text("box\n")
    with changing(machine.sysroot), pytest.raises(TargetError, match="another oci2boot command"):
        finalize(machine.sysroot, silent)
    assert not (new / "hostname").exists()


def test_a_machine_that_was_reset_has_nothing_to_take_over(machine: Machine) -> None:
    """P.11: what was dropped does not come back."""
    old, _ = staged(machine)
    reset(machine.sysroot, BootOptions(), silent, full=False)
    (old / "hostname").write_text("box\n")
    assert finalize(machine.sysroot, silent) == ()


def test_a_chain_of_upgrades_is_followed(machine: Machine) -> None:
    """P.11: each of three images, none booted; the change reaches the last."""
    old, second = staged(machine)
    machine.release({"usr/bin/version": b"three" * 100})
    assert machine.upgrade().outcome == "deployed"
    third = machine.sysroot.deployments / read_state(machine.sysroot).deployments[0].digest.hex / "etc/upper"
    (old / "hostname").write_text("box\n")
    found: tuple[Finalized, ...] = finalize(machine.sysroot, silent)
    assert [one.outcome for one in found] == ["merged", "merged"]
    assert (second / "hostname").read_text() == (third / "hostname").read_text() == "box\n"
