"""A machine that runs from a slot, upgraded from where its image came from. Witness: jsonschema, for its status."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from oci2boot.digest import RootHash
from oci2boot.errors import OtherSignerError, TargetError, UnsealedError
from oci2boot.oci.reference import Reference
from oci2boot.rootfs.dmverity import VerityOptions
from oci2boot.store.images import Bootable
from oci2boot.store.roots import DmVerityRoot
from oci2boot.workflows.install.disk import install
from oci2boot.workflows.machine import slots
from oci2boot.workflows.machine.demands import Allowed
from oci2boot.workflows.machine.rollback import rollback
from oci2boot.workflows.machine.slots import SlotPlace
from oci2boot.workflows.machine.status import read_status
from oci2boot.workflows.machine.upgrade import Upgraded, UpgradeRequest, switch, upgrade
from oci2boot.workflows.make.convert import convert
from oci2boot.workflows.progress import silent
from oci2boot.workflows.requests import BootOptions, ConvertRequest, DiskRequest, InstallRequest
from tests.oci.layouts import Layout
from tests.partitions import table
from tests.status_schema import check_status
from tests.store.stored import everything
from tests.target.disks import said
from tests.workflows.verity_images import BUILTIN_OPTIONS, Publisher, convert_verity, make_signing


def root_hash(image: Bootable | None) -> RootHash:
    assert image
    assert isinstance(image.root, DmVerityRoot)
    assert image.root.root_hash
    return image.root.root_hash


@pytest.fixture
def publisher(tmp_path: Path) -> Publisher:
    return Publisher(Layout(tmp_path / "layout"))


@pytest.fixture
def place(publisher: Publisher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SlotPlace:
    """Return a machine that was made elsewhere, with its ESP mounted."""
    monkeypatch.setattr(slots, "STORE", tmp_path / "var/composefs")
    publisher.release(b"one")
    source = Reference.parse(publisher.source)
    made = convert_verity(source, tmp_path / "repo", VerityOptions(signature=False))
    disk, esp = tmp_path / "disk.raw", tmp_path / "esp"
    size = DiskRequest(ab=True, esp_size=270 << 20)
    install(InstallRequest(repo=tmp_path / "repo", target=disk, name="demo", disk=size), silent)
    esp.mkdir()
    said("mcopy", "-s", "-n", "-i", f"{disk}@@{table(disk)[0]['start']}", "::/*", esp)
    return SlotPlace(disk, esp, root_hash(made))


def status(place: SlotPlace) -> Any:
    return check_status(read_status(place).to_json())


def states(place: SlotPlace) -> dict[str, list[str]]:
    return {one["id"]: one["states"] for one in status(place)["deployments"]}


def run(place: SlotPlace, **how: Any) -> Upgraded:
    return upgrade(UpgradeRequest(place, **how), silent)


def test_a_running_machine_keeps_a_new_image_until_it_is_in_a_slot(
    place: SlotPlace, publisher: Publisher, tmp_path: Path
) -> None:
    """P.11: downloaded, planned, deployed; what it took is given back."""
    first = str(place.booted)
    assert states(place) == {first: ["booted", "next"]}
    assert run(place, goal="check").outcome == "up to date"
    publisher.release(b"two")
    assert run(place, dry_run=True).outcome == run(place, goal="check").outcome == "available"
    assert not place.repository.exists()
    downloaded = run(place, goal="download")
    assert downloaded.outcome == "downloaded"
    second = str(root_hash(downloaded.bootable))
    assert [one["image"] for one in status(place)["downloaded"]] == ["demo"]
    # An image of the other mode is none for a slot, though it comes from the same manifest.
    other = ConvertRequest(source=Reference.parse(publisher.source), repo=place.repository, name="demo")
    convert(replace(other, boot=BUILTIN_OPTIONS), silent)
    assert run(place, dry_run=True).outcome == "available"
    run(place, goal="download")
    before = place.disk.read_bytes(), everything(tmp_path / "esp"), everything(place.repository)
    planned = run(place, dry_run=True)
    assert planned.outcome == "planned"
    assert planned.plan
    assert planned.plan.to_json()["root_hash"] == second
    assert (place.disk.read_bytes(), everything(tmp_path / "esp"), everything(place.repository)) == before
    assert run(place).outcome == "deployed"
    assert not place.repository.exists()
    assert states(place) == {second: ["staged"], first: ["booted"]}
    assert status(place)["downloaded"] == []


def test_a_store_that_is_named_stays(place: SlotPlace, publisher: Publisher, tmp_path: Path) -> None:
    """P.11: its layers are not fetched again; and the machine goes back to what it runs."""
    named = replace(place, store=tmp_path / "named")
    publisher.release(b"two")
    assert run(named).outcome == "deployed"
    assert (tmp_path / "named/meta.json").exists()
    publisher.release(b"three")
    assert (news := run(named, goal="check").news)
    assert news.layers == 1
    assert rollback(named)[0].id == str(named.booted)
    assert states(named)[str(named.booted)] == ["booted", "next"]


def test_a_switch_takes_options_on_top(place: SlotPlace, publisher: Publisher) -> None:
    """P.11: one memory for both kinds of machines."""
    source = Reference.parse(publisher.release(b"other", "w"))
    boot = BootOptions(kargs=("debug",))
    wanted = ConvertRequest(source=source, repo=place.repository, name="other", boot=boot)
    done = switch(UpgradeRequest(place), wanted, silent, {"kargs"})
    assert done.bootable
    assert "debug" in str(done.bootable.cmdline).split()
    assert done.bootable.options["kargs"] == ["debug"]
    assert done.bootable.options["ukify"] == "builtin"


def test_a_switch_makes_the_new_image_as_the_one_before(place: SlotPlace, publisher: Publisher, tmp_path: Path) -> None:
    """P.11: what is asked of a machine with deployments in directories has no say in it."""
    source = Reference.parse(publisher.release(b"other", "w"))
    wanted = ConvertRequest(source=source, repo=tmp_path / "elsewhere", name="other", boot=None)
    planned = switch(UpgradeRequest(place, dry_run=True), wanted, silent)
    assert (planned.outcome, planned.plan) == ("available", None)
    assert planned.news
    assert planned.news.source == str(source)
    done = switch(UpgradeRequest(place), wanted, silent)
    assert done.outcome == "deployed"
    (new,) = (one for one in status(place)["deployments"] if one["states"] == ["staged"])
    assert (new["image"], new["source"], new["id"]) == ("other", str(source), str(root_hash(done.bootable)))
    assert not (tmp_path / "elsewhere").exists()
    assert run(place, goal="check").outcome == "up to date"


def test_a_signed_machine_demands_the_same_key_of_the_next_image(
    publisher: Publisher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B.11, C.32: a disk with slots too, whether its record says who signed it or not."""
    monkeypatch.setattr(slots, "STORE", tmp_path / "var/composefs")
    publisher.release(b"one")
    owner, other = make_signing(tmp_path, "owner"), make_signing(tmp_path, "other")
    hash_only, source = VerityOptions(signature=False), Reference.parse(publisher.source)
    boot = replace(BUILTIN_OPTIONS, signing=owner)
    convert_verity(source, tmp_path / "repo", hash_only, owner, boot)
    disk = tmp_path / "disk.raw"
    size = DiskRequest(ab=True, esp_size=270 << 20)
    install(InstallRequest(repo=tmp_path / "repo", target=disk, name="demo", disk=size), silent)
    place = SlotPlace(disk, store=tmp_path / "named")
    (first,) = status(place)["deployments"]
    assert first["outcome"] == {"kind": "local", "signed_by": ["CN=owner"], "given_up": None}
    publisher.release(b"two")
    before = said("sha256sum", disk)
    with pytest.raises(TargetError, match="was signed when it was converted"):
        run(place)
    with pytest.raises(OtherSignerError, match=r"signed by CN=owner; the new one is local, signed by CN=other"):
        run(place, given=BootOptions(signing=other))
    assert said("sha256sum", disk) == before
    with pytest.raises(UnsealedError, match=r"the new one is local, signed by nobody"):
        switch(
            UpgradeRequest(place),
            ConvertRequest(source=source, repo=place.repository, name="demo", boot=BootOptions()),
            silent,
        )
    assert said("sha256sum", disk) == before
    assert run(place, allowed=Allowed(unsealed=True)).outcome == "deployed"
    assert status(place)["deployments"][0]["outcome"]["given_up"] == "local, signed by CN=owner"
