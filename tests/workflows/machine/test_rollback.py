"""Which deployment boots next, and which stay: rolled back, pinned, deleted, kept up to a number."""

from pathlib import Path

import pytest

from oci2boot.errors import TargetError
from oci2boot.workflows.machine import keep as choose
from oci2boot.workflows.machine.collect import collect_garbage
from oci2boot.workflows.machine.deploy import DeployOptions
from oci2boot.workflows.machine.rollback import rollback
from oci2boot.workflows.machine.status import read_status
from oci2boot.workflows.machine.upgrade import UpgradeRequest, upgrade
from oci2boot.workflows.progress import silent
from tests.store.stored import everything
from tests.workflows.machines import FIRST, Machine, digests, make_machine, upgraded


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return make_machine(tmp_path)


def test_rollback_goes_back_and_forth_and_an_upgrade_respects_it(machine: Machine) -> None:
    """D.20: by names on the ESP alone."""
    first, second = upgraded(machine)
    assert digests(machine) == [second, first]
    assert rollback(machine.sysroot)[0].id == first
    assert digests(machine) == [first, second]
    assert machine.upgrade().outcome == "rejected"
    assert digests(machine) == [first, second]
    assert rollback(machine.sysroot)[0].id == second
    assert digests(machine) == [second, first]


def test_what_could_not_boot_is_not_chosen(machine: Machine) -> None:
    """P.11: and status says why."""
    first, second = upgraded(machine)
    victim = machine.sysroot.repository / "objects" / first[:2] / first[2:]
    victim.rename(machine.root / "away")
    before = everything(machine.esp)
    with pytest.raises(TargetError, match=f"the rootfs image of {first} is gone"):
        rollback(machine.sysroot)
    assert read_status(machine.sysroot).problems == (f"deployment {first}: its rootfs image is not in the repository",)
    assert everything(machine.esp) == before
    (machine.root / "away").rename(victim)
    (machine.esp / "EFI/Linux/debian_20261121100000.efi").unlink()
    with pytest.raises(TargetError, match=f"no boot entry starts {first}"):
        rollback(machine.sysroot, first[:8])
    with pytest.raises(TargetError, match="no other deployment to go back to"):
        rollback(machine.sysroot)
    assert read_status(machine.sysroot).problems == (f"deployment {first}: no boot entry starts it",)
    assert digests(machine) == [second, first]


def test_an_image_that_its_publisher_takes_back_is_left(machine: Machine) -> None:
    """The tag leads to the first image again: that is an upgrade, not a rollback of ours."""
    first, second = upgraded(machine)
    machine.release(FIRST)
    assert machine.upgrade().outcome == "deployed"
    assert digests(machine) == [first, second]


@pytest.mark.parametrize("clock", [0, 1 << 33])
def test_a_wrong_clock_does_not_confuse_the_order(
    machine: Machine, clock: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In 1970 as in a far future, what came last is the latest."""
    monkeypatch.setattr("time.time", lambda: float(clock))
    first, second = upgraded(machine)
    rollback(machine.sysroot)
    assert machine.upgrade().outcome == "rejected"
    monkeypatch.undo()
    machine.release({"usr/bin/version": b"three" * 100})
    assert machine.upgrade().outcome == "deployed"
    third = digests(machine)[0]
    rollback(machine.sysroot)
    assert digests(machine)[0] in (first, second)
    rollback(machine.sysroot)
    assert digests(machine)[0] == third


def test_only_so_many_are_kept_where_that_is_asked_for(machine: Machine) -> None:
    """P.11, D.20: any number by default; what is pinned stays."""
    (first,) = digests(machine)
    choose.pin(machine.sysroot, first[:8], pinned=True)
    made = []
    for number in range(3):
        machine.release({"usr/bin/version": b"%d" % number * 300})
        upgrade(UpgradeRequest(machine.sysroot, options=DeployOptions(keep=3)), silent)
        made.append(digests(machine)[0])
    assert set(digests(machine)) == {first, made[1], made[2]}
    assert digests(machine)[0] == made[2]
    assert not (machine.root / "state/deploy" / made[0]).exists()
    assert made[0] in {
        digest.hex
        for digest in collect_garbage(machine.sysroot.repository, dry_run=False, sysroot=machine.sysroot).objects
    }


def test_pins_and_what_runs_are_not_deleted(machine: Machine) -> None:
    first, second = upgraded(machine)
    choose.pin(machine.sysroot, first[:6], pinned=True)
    with pytest.raises(TargetError, match="pinned"):
        choose.delete(machine.sysroot, first[:6])
    choose.pin(machine.sysroot, first[:6], pinned=False)
    choose.delete(machine.sysroot, first[:6])
    with pytest.raises(TargetError, match="last entry"):
        choose.delete(machine.sysroot, second[:6])
    assert digests(machine) == [second]
    with pytest.raises(TargetError, match="no deployment begins"):
        choose.pin(machine.sysroot, "ffff0000", pinned=True)
