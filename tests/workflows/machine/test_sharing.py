"""What a machine need not have, and what else its one store may hold. Witness: `cfsctl`."""

from pathlib import Path

from oci2boot.oci.reference import Reference
from oci2boot.rootfs.reader import read_rootfs
from oci2boot.store.repository import Repository
from oci2boot.sysroot.state import read_state
from oci2boot.tree.model import walk
from oci2boot.workflows.machine import keep as choose
from oci2boot.workflows.machine.collect import collect_garbage
from oci2boot.workflows.make.convert import convert
from oci2boot.workflows.progress import silent
from oci2boot.workflows.requests import ConvertRequest
from tests.store.stored import cfsctl, everything
from tests.workflows.machines import FIRST, make_machine
from tests.workflows.sealable import add_image, tar

APPLICATION: dict[str, bytes | Path] = {
    "usr/bin/version": FIRST["usr/bin/version"],
    "usr/bin/application": b"an application" * 500,
}


def test_an_image_without_python_is_installed_and_upgraded_from_outside(tmp_path: Path) -> None:
    """O.10: nothing of oci2boot is in the image or comes to the machine; the demo image boots so in QEMU."""
    machine = make_machine(tmp_path)
    machine.release({"usr/bin/version": b"two" * 100})
    assert machine.upgrade().outcome == "deployed"
    deployments = read_state(machine.sysroot).deployments
    assert len(deployments) == 2
    for one in deployments:
        with Repository.open(machine.sysroot.repository) as repository:
            paths = [path for path, _ in walk(read_rootfs(repository.read_object(one.digest)))]
        assert b"/usr/bin/version" in paths
        assert not [path for path in paths if b"python" in path or b"oci2boot" in path]
    places = {path.name for path in machine.root.iterdir()}
    assert places == {"composefs", "state"}


def test_applications_share_the_store_of_the_machine(tmp_path: Path) -> None:
    """D.26: an image that boots nothing is kept, shares what is equal, and is mounted and collected like any other."""
    machine = make_machine(tmp_path)
    repo = machine.sysroot.repository
    before = {path.read_bytes() for path in repo.glob("objects/*/*")}
    add_image(machine.layout, [tar(APPLICATION)], "app")
    source = Reference.parse(f"oci:{machine.layout.path}:app")
    application = convert(ConvertRequest(source=source, repo=repo, name="app", boot=None), silent)
    added = [path.read_bytes() for path in repo.glob("objects/*/*") if path.read_bytes() not in before]
    assert APPLICATION["usr/bin/application"] in added
    assert FIRST["usr/bin/version"] in before
    assert FIRST["usr/bin/version"] not in added
    menu = machine.entries()

    machine.release({"usr/bin/version": b"two" * 100})
    machine.upgrade()
    second, first = read_state(machine.sysroot).deployments
    choose.delete(machine.sysroot, first.digest.hex)
    collect_garbage(repo, dry_run=False, sysroot=machine.sysroot)
    needed = {
        line.removeprefix("sha256:") for line in cfsctl(repo, "image-objects", application.root.image.hex).split()
    }
    assert needed
    assert needed <= {path.parent.name + path.name for path in repo.glob("objects/*/*")}
    assert "status: ok" in cfsctl(repo, "fsck")
    assert "Objects: 0 removed" in cfsctl(repo, "gc", "--dry-run")
    assert [one.digest for one in read_state(machine.sysroot).deployments] == [second.digest]
    assert len(machine.entries()) == len(menu)
    with Repository.open(repo) as repository:
        assert repository.image_digest(application.root.image.hex) == application.root.image
    assert not [path for path in everything(machine.esp) if "app" in path]
