"""A damaged store, made whole from the image's source. Witness: `cfsctl fsck`."""

from pathlib import Path

import pytest

from oci2boot.formats.fsverity import measure
from oci2boot.store.repository import Repository
from oci2boot.workflows.machine.repair import repair, repair_machine
from oci2boot.workflows.progress import Event, Warned, silent
from oci2boot.workflows.requests import BootOptions
from tests.flips import flip
from tests.store.stored import cfsctl, everything
from tests.workflows.machines import Machine

CONTENT = b"one" * 100


def victims(machine: Machine) -> dict[str, Path]:
    """Return an object of each kind."""
    with Repository.open(machine.sysroot.repository) as repository:
        names = {name: digest for digest, name in repository.names_of_streams().items()}
        (rootfs,) = (path.name for path in (repository.path / "images").iterdir() if path.name != "refs")
        digests = {
            "file": measure(CONTENT),
            "rootfs image": repository.image_digest(rootfs),
            "layer": next(digest for name, digest in names.items() if name.startswith("oci-layer-")),
            "manifest": next(digest for name, digest in names.items() if name.startswith("oci-manifest-")),
        }
        return {kind: repository.object_path(digest) for kind, digest in digests.items() if digest}


@pytest.mark.parametrize("how", ["damaged", "missing"])
@pytest.mark.parametrize("kind", ["file", "rootfs image", "layer", "manifest"])
def test_what_is_broken_is_fetched_again(machine: Machine, kind: str, how: str) -> None:
    """P.11: as it was, name for name and byte for byte."""
    before = everything(machine.root)
    victim = victims(machine)[kind]
    content = victim.read_bytes()
    if how == "damaged":
        flip(victim, -1)
    else:
        victim.unlink()
    checked = repair_machine(machine.sysroot, BootOptions(), silent)
    assert checked.problems == ()
    assert victim.read_bytes() == content
    # The record of the image that was only fetched for its contents is garbage.
    assert before <= everything(machine.root)
    assert "status: ok" in cfsctl(machine.sysroot.repository, "fsck")


@pytest.mark.parametrize("why", ["moved", "gone"])
def test_without_the_very_image_nothing_is_removed(machine: Machine, why: str) -> None:
    if why == "moved":
        machine.release({"usr/bin/version": b"two" * 100})
    else:
        machine.layout.path.rename(machine.layout.path.with_name("away"))
    victim = victims(machine)["file"]
    victim.write_bytes(CONTENT[:-1] + b"x")
    before = everything(machine.root)
    events: list[Event] = []
    checked = repair_machine(machine.sysroot, BootOptions(), events.append)
    assert [str(measure(CONTENT)) in problem for problem in checked.problems] == [True]
    assert any(isinstance(event, Warned) for event in events)
    assert everything(machine.root) == before


def test_a_store_that_is_whole_is_left_alone(machine: Machine) -> None:
    before = everything(machine.repo)
    machine.layout.path.rename(machine.layout.path.with_name("away"))
    assert repair(machine.repo, BootOptions(), silent).problems == ()
    assert everything(machine.repo) == before
