"""What a machine keeps, and what a collection takes. Witness: cfsctl."""

from pathlib import Path

import pytest

from oci2boot.errors import TargetError
from oci2boot.store import reach
from oci2boot.store.images import find_image, remove_image
from oci2boot.store.repository import Repository
from oci2boot.sysroot.machine import open_sysroot
from oci2boot.workflows.machine import keep as choose
from oci2boot.workflows.machine.collect import collect_garbage
from oci2boot.workflows.machine.directories import install_directories
from oci2boot.workflows.machine.rollback import rollback
from oci2boot.workflows.machine.upgrade import UpgradeRequest, upgrade
from oci2boot.workflows.progress import silent
from tests.store.stored import cfsctl, everything, store_image, system
from tests.workflows.machines import ANY_FILE_SYSTEM, SECOND, Machine, digests, upgraded


def test_deleting_and_collecting_leaves_what_a_fresh_machine_has(machine: Machine, tmp_path: Path) -> None:
    """C.12: exactly what nobody else needs is freed; `cfsctl` finds nothing more."""
    first, second = upgraded(machine)
    repo = machine.sysroot.repository
    kept = collect_garbage(repo, dry_run=True, sysroot=machine.sysroot)
    assert kept.objects == ()
    choose.delete(machine.sysroot, first[:8])
    assert digests(machine) == [second]
    collect_garbage(repo, dry_run=False, sysroot=machine.sysroot)
    for name in ("root2", "esp2"):
        (tmp_path / name).mkdir()
    machine.convert()
    install_directories(machine.repo, "demo", tmp_path / "root2", tmp_path / "esp2", ANY_FILE_SYSTEM, silent)
    assert everything(repo) == everything(tmp_path / "root2/composefs")
    assert "Objects: 0 removed" in cfsctl(repo, "gc", "--dry-run")
    assert "status: ok" in cfsctl(repo, "fsck")


def test_a_boot_entry_alone_keeps_what_it_needs(machine: Machine) -> None:
    """C.11: its promise is read from its own command line."""
    first, _ = upgraded(machine)
    repo = machine.sysroot.repository
    for area in ("images", "streams"):
        (repo / area / "refs/oci2boot-deploy" / first).unlink()
    (machine.root / "state/deploy" / first).rename(machine.root / "elsewhere")
    needed = {line.removeprefix("sha256:") for line in cfsctl(repo, "image-objects", first).split()}
    freed = collect_garbage(repo, dry_run=False, sysroot=machine.sysroot)
    assert freed.objects  # its layer and documents, which only an upgrade could use
    assert needed
    assert needed <= {path.parent.name + path.name for path in (repo / "objects").glob("*/*")}
    assert {line.removeprefix("sha256:") for line in cfsctl(repo, "image-objects", first).split()} == needed


def test_a_stopped_deployment_keeps_nothing_for_ever(machine: Machine) -> None:
    """C.12: references without state and without a boot entry are left over."""
    machine.release(SECOND)
    upgrade(UpgradeRequest(machine.sysroot, "download"), silent)
    repo = machine.sysroot.repository
    with Repository.open(repo) as repository:
        found = find_image(repository, "demo")
        for area, target in (("images", found.root.image.hex), ("streams", f"oci-manifest-{found.manifest}")):
            repository.set_ref(area, f"oci2boot-deploy/{found.root.image}", target)
        remove_image(repository, "demo")
    planned = collect_garbage(repo, dry_run=True, sysroot=machine.sysroot)
    assert found.root.image in planned.objects
    assert collect_garbage(repo, dry_run=False, sysroot=machine.sysroot).objects == planned.objects
    assert "status: ok" in cfsctl(repo, "fsck")
    assert "Objects: 0 removed" in cfsctl(repo, "gc", "--dry-run")


def test_the_name_of_an_image_goes_with_its_last_deployment(machine: Machine) -> None:
    """C.12: after a switch, the image before is freed as a whole."""
    _, second = upgraded(machine)
    rollback(machine.sysroot)
    choose.delete(machine.sysroot, second[:8])
    freed = collect_garbage(machine.sysroot.repository, dry_run=False, sysroot=machine.sysroot)
    assert second in {digest.hex for digest in freed.objects}
    assert machine.upgrade().outcome == "deployed"


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_an_esp_that_cannot_be_read_stops_the_collection(machine: Machine, damage: str) -> None:
    """C.11: fail closed."""
    upgraded(machine)
    if damage == "cut":
        victim = machine.esp / "EFI/Linux/debian_20261121100000.efi"
        victim.write_bytes(victim.read_bytes()[:1000])
    else:
        machine.esp.rename(machine.esp.with_name("away"))
    before = everything(machine.root)
    with pytest.raises(TargetError):
        collect_garbage(machine.sysroot.repository, dry_run=False, sysroot=machine.sysroot)
    assert everything(machine.root) == before
    with pytest.raises(TargetError, match="boot directory"):
        collect_garbage(machine.sysroot.repository, dry_run=False, sysroot=open_sysroot(machine.root))


def test_what_others_keep_in_the_store_stays(machine: Machine) -> None:
    """P.11: references of any name are roots, as for cfsctl."""
    repo = machine.sysroot.repository
    with Repository.open(repo) as repository:
        theirs = store_image(repository, "theirs", system())
        repository.set_ref("images", "somebody/else/x", theirs.rootfs.digest.hex)
        repository.set_ref("streams", "ostree/y", f"oci-manifest-{theirs.bootable.manifest}")
        for area, ref in (("images", "oci2boot"), ("streams", "oci2boot"), ("streams", "oci")):
            (repo / area / "refs" / ref / "theirs").unlink()
        live = reach.live_objects(repository)
    freed = collect_garbage(repo, dry_run=False, sysroot=machine.sysroot)
    assert not live & set(freed.objects)
    assert (repo / "images" / theirs.rootfs.digest.hex).read_bytes() == theirs.rootfs.image
    assert "status: ok" in cfsctl(repo, "fsck")
