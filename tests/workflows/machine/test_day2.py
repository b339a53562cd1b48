"""A machine in plain directories: installed, upgraded, rolled back, cleaned. Witness: `cfsctl` on its repository."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from oci2boot.errors import Error, StoreError, TargetError
from oci2boot.store.repository import Repository
from oci2boot.sysroot.bootdir import read_boot_directory
from oci2boot.sysroot.machine import changing
from oci2boot.workflows.machine import keep as choose
from oci2boot.workflows.machine.collect import collect_garbage
from oci2boot.workflows.machine.deploy import DeployOptions
from oci2boot.workflows.machine.directories import install_directories
from oci2boot.workflows.machine.rollback import rollback
from oci2boot.workflows.machine.status import read_status
from oci2boot.workflows.machine.upgrade import UpgradeRequest, upgrade
from oci2boot.workflows.progress import silent
from tests.store.stored import cfsctl, everything
from tests.workflows.machines import SECOND, Machine, digests, upgraded, upper


def test_an_installation_into_directories_is_whole(machine: Machine) -> None:
    """P.8, P.11: repository, state and boot directory, as cfsctl and the boot loader read them."""
    assert "status: ok" in cfsctl(machine.sysroot.repository, "fsck")
    assert "demo" in cfsctl(machine.sysroot.repository, "oci", "images")
    (digest,) = digests(machine)
    state = machine.root / "state/deploy" / digest
    assert (state / "var").readlink() == Path("../../os/default/var")
    assert (state / "etc/upper").is_dir()
    assert (state / "etc/work").is_dir()
    assert (machine.root / "state/os/default/var").is_dir()
    (entry,) = read_boot_directory(machine.esp).entries
    assert [str(argument) for argument in entry.arguments] == [f"composefs=?{digest}"]
    assert (machine.esp / "EFI/BOOT/BOOTX64.EFI").is_file()


def test_installing_again_changes_nothing(machine: Machine) -> None:
    before = everything(machine.sysroot.repository), machine.entries(), digests(machine)
    (upper(machine, digests(machine)[0]) / "hostname").write_text("box\n")
    machine.install()
    assert (everything(machine.sysroot.repository), machine.entries(), digests(machine)) == before
    assert (upper(machine, digests(machine)[0]) / "hostname").read_text() == "box\n"


def test_a_file_system_without_verity_is_refused_unless_asked_for(machine: Machine, tmp_path: Path) -> None:
    """D.23: nothing is weakened silently."""
    with Repository.open(machine.sysroot.repository) as repository:
        if repository.secure:
            pytest.fail("this test needs a file system without fs-verity")
    for name in ("other", "esp2"):
        (tmp_path / name).mkdir()
    with pytest.raises(TargetError, match="no fs-verity"):
        install_directories(machine.repo, "demo", tmp_path / "other", tmp_path / "esp2", DeployOptions(), silent)
    assert list((tmp_path / "esp2").iterdir()) == []


def test_an_upgrade_fetches_and_writes_only_what_is_new(machine: Machine) -> None:
    """P.11, D.17, D.21: one layer of three, and the objects of what changed."""
    stored = {path.name for path in (machine.sysroot.repository / "objects").glob("*/*")}
    machine.release(SECOND)
    done = machine.upgrade()
    assert done.outcome == "deployed"
    assert done.news
    assert done.news.layers == 1
    added = {path for path in (machine.sysroot.repository / "objects").glob("*/*") if path.name not in stored}
    contents = [path.read_bytes() for path in added]
    assert b"two" * 100 in contents
    # The one large file that is new is the UKI; what else there is are the rootfs image, streams and documents.
    assert sum(len(data) > 64 << 10 for data in contents) == 1
    assert len(added) < 12
    assert "status: ok" in cfsctl(machine.sysroot.repository, "fsck")


def test_what_the_machine_changed_in_etc_goes_with_it(machine: Machine) -> None:
    """C.22: merged into the new deployment, the old one's kept as it was."""
    (first,) = digests(machine)
    (upper(machine, first) / "hostname").write_text("box\n")
    _, second = upgraded(machine)
    assert (upper(machine, second) / "hostname").read_text() == "box\n"
    assert sorted(path.name for path in upper(machine, second).iterdir()) == ["hostname"]
    (upper(machine, second) / "hostname").write_text("changed\n")
    assert (upper(machine, first) / "hostname").read_text() == "box\n"


def test_nothing_new_is_nothing_done(machine: Machine) -> None:
    before = everything(machine.root), everything(machine.esp)
    assert machine.upgrade().outcome == "up to date"
    assert (everything(machine.root), everything(machine.esp)) == before


def test_a_check_writes_nothing(machine: Machine) -> None:
    machine.release(SECOND)
    before = everything(machine.root), everything(machine.esp)
    done = upgrade(UpgradeRequest(machine.sysroot, "check"), silent)
    assert done.outcome == "available"
    assert done.news
    assert done.news.layers == 1
    assert done.news.bytes > 0
    assert json.loads(json.dumps(done.to_json()))["outcome"] == "available"
    assert (everything(machine.root), everything(machine.esp)) == before


def test_a_download_is_deployed_later_and_planned_before(machine: Machine) -> None:
    (first,) = digests(machine)
    machine.release(SECOND)
    assert upgrade(UpgradeRequest(machine.sysroot, "download"), silent).outcome == "downloaded"
    assert digests(machine) == [first]
    assert [one.name for one in read_status(machine.sysroot).downloaded] == ["demo"]
    before = everything(machine.root), everything(machine.esp)
    planned = upgrade(UpgradeRequest(machine.sysroot, dry_run=True), silent)
    assert planned.outcome == "planned"
    assert planned.plan
    assert any("write" in step for step in planned.plan.to_json()["boot"]["steps"])
    assert (everything(machine.root), everything(machine.esp)) == before
    assert machine.upgrade().outcome == "deployed"
    assert len(digests(machine)) == 2


def test_a_new_image_with_an_old_name_on_the_esp_gets_another(machine: Machine) -> None:
    """Images built reproducibly have the same time, and so the same version."""
    upgraded(machine)
    assert machine.entries() == ["debian_20261121100000.1.efi", "debian_20261121100000.efi"]


def test_two_changes_at_once_are_one_sentence(machine: Machine) -> None:
    with changing(machine.sysroot):
        with pytest.raises(TargetError, match=f"process {os.getpid()}"):
            machine.upgrade()
        with pytest.raises(TargetError, match=f"process {os.getpid()}"):
            rollback(machine.sysroot, digests(machine)[0])
        read_status(machine.sysroot)
        assert rollback(machine.sysroot, digests(machine)[0][:8], dry_run=True)[0].id == digests(machine)[0]


def test_a_store_of_a_newer_version_is_refused(machine: Machine) -> None:
    meta = machine.sysroot.repository / "meta.json"
    meta.write_text(json.dumps(json.loads(meta.read_text()) | {"version": 2}))
    machine.release(SECOND)
    before = everything(machine.root), everything(machine.esp)
    for change in (
        machine.upgrade,
        lambda: collect_garbage(machine.sysroot.repository, dry_run=False, sysroot=machine.sysroot),
    ):
        with pytest.raises(StoreError, match="newer version"):
            change()
    assert (everything(machine.root), everything(machine.esp)) == before


@pytest.mark.parametrize("text", ["", "{", "[]", '{"rootfs": "x"}', '{"deployment": 1}', "\udcff"])
def test_a_damaged_record_is_one_sentence(machine: Machine, text: str) -> None:
    (digest,) = digests(machine)
    record = machine.root / "state/deploy" / digest / "oci2boot.json"
    record.write_text(text, errors="surrogateescape")
    for command in (lambda: read_status(machine.sysroot), machine.upgrade):
        with pytest.raises(Error):
            command()


def test_what_deployed_it_is_told_and_older_records_are_read(machine: Machine) -> None:
    """P.8: the provenance in the target; a version that did not say so is no error."""
    (digest,) = digests(machine)
    path = machine.root / "state/deploy" / digest / "oci2boot.json"
    argv: list[str | Path] = [Path(sys.executable).with_name("oci2boot"), "--version"]
    said = subprocess.run(argv, check=True, capture_output=True, text=True).stdout.split()
    facts = json.loads(path.read_text())
    assert facts["deployment"]["tool"] == f"oci2boot {said[1]}"

    def told(tool: object) -> object:
        path.write_text(json.dumps(facts | {"deployment": {"deployed": 5, "tool": tool}}))
        choose.pin(machine.sysroot, digest, pinned=True)
        (one,) = read_status(machine.sysroot).to_json()["deployments"]
        assert one["pinned"]
        return one["tool"]

    assert told("oci2boot 0.0.1") == "oci2boot 0.0.1"
    assert told(None) is None
    assert json.loads(path.read_text())["deployment"] == {"deployed": 5, "pinned": True}
    with pytest.raises(Error, match="damaged"):
        told(7)


def test_a_deployment_of_another_tool_is_shown_and_left_alone(machine: Machine) -> None:
    """P.11: what bootc deployed has no record of ours."""
    other = "ab" * 32
    (machine.root / "state/deploy" / other / "etc").mkdir(parents=True)
    found = {one["digest"]: one for one in read_status(machine.sysroot).to_json()["deployments"]}
    assert found[other]["image"] is None
    upgraded_from = machine.upgrade()
    assert upgraded_from.outcome == "up to date"
    assert (machine.root / "state/deploy" / other / "etc").is_dir()


def test_another_process_holds_the_lock(machine: Machine) -> None:
    """The lock is between processes, and goes with the one that held it."""
    script = (
        "import sys; from pathlib import Path; from oci2boot.sysroot.machine import *\n"
        "with changing(open_sysroot(Path(sys.argv[1]), Path(sys.argv[2]))):\n"
        "    print('held', flush=True); sys.stdin.read()\n"
    )
    argv = [sys.executable, "-c", script, str(machine.root), str(machine.esp)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(TargetError, match=f"process {holder.pid}"):
            machine.upgrade()
        holder.kill()
    assert machine.upgrade().outcome == "up to date"
