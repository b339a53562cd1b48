"""Live ISOs of converted images. Witnesses: xorriso, sgdisk, veritysetup, mtools."""

import json
from pathlib import Path
from typing import Any

import pytest

from oci2boot.errors import TargetError
from oci2boot.rootfs.dmverity import Overlay, VerityOptions
from oci2boot.store.images import save
from oci2boot.store.repository import Repository
from oci2boot.sysroot.first_boot import FirstBoot
from oci2boot.target.luks import Secret
from oci2boot.workflows.install.disk import install
from oci2boot.workflows.progress import Event, Warned, silent
from oci2boot.workflows.requests import InstallRequest
from oci2boot.workflows.verify.disk import VerifyRequest, verify
from tests.flips import flipped
from tests.keys import Pair, make
from tests.partitions import partition, table
from tests.store.stored import SKELETON, layer, store_image
from tests.tarballs import file
from tests.target.disks import said
from tests.workflows.verity_disks import UKI, Image, converted

TARS = [layer(SKELETON, file(b"usr/bin/tool", b"tool" * 3000), file(b"etc/inline", b"inline"))]


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make(tmp_path_factory.mktemp("keys"), "db")


@pytest.fixture(scope="module")
def image(key: Pair, tmp_path_factory: pytest.TempPathFactory) -> Image:
    return converted(tmp_path_factory.mktemp("store") / "repo", TARS, VerityOptions(), key)


@pytest.fixture(scope="module")
def iso(image: Image, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image.install(tmp_path_factory.mktemp("disk") / "live.iso").target


def test_the_name_of_the_target_asks_for_a_live_iso(image: Image, iso: Path, tmp_path: Path) -> None:
    """K0.13"""
    torito = said("xorriso", "-no_rc", "-indev", iso, "-report_el_torito", "plain", "-pvd_info")
    assert " UEFI  y   none " in torito
    assert "Volume Id    : DEMO\n" in torito
    assert "No problems found" in said("sgdisk", "--verify", iso)
    assert [part["name"] for part in table(iso)] == ["ESP", "root", "root-verity", "root-verity-sig"]
    data, tree = partition(iso, "root", tmp_path / "data"), partition(iso, "root-verity", tmp_path / "tree")
    said("veritysetup", "verify", data, tree, str(image.root_hash))
    assert UKI in said("mdir", "-/", "-b", "-i", f"{iso}@@{table(iso)[0]['start']}", "::").replace("::/", "")


def test_two_runs_give_the_same_bytes(image: Image, iso: Path, tmp_path: Path) -> None:
    again = image.install(tmp_path / "disk", format="iso").target
    assert again.read_bytes() == iso.read_bytes()


def test_a_dry_run_writes_nothing(image: Image, tmp_path: Path) -> None:
    told: list[Event] = []
    planned = install(
        InstallRequest(repo=image.repo, target=tmp_path / "live.iso", name="demo"), told.append, dry_run=True
    )
    found = json.loads(json.dumps(planned.to_json()))
    assert (found["format"], found["written"]) == ("iso", False)
    assert [part["label"] for part in found["plan"]["partitions"]] == ["ESP", "root", "root-verity", "root-verity-sig"]
    lost, media = (event.text for event in told if isinstance(event, Warned) and not event.lint)
    assert lost == "what is written to /etc and /var is in memory: a live ISO keeps none of it"
    assert "not on a DVD: convert it with --initrd builtin" in media
    assert list(tmp_path.iterdir()) == []


def test_verify_reads_it_whole(image: Image, iso: Path, tmp_path: Path) -> None:
    """K0.13: what it is, that firmware finds the partition that it starts from, and that every block is intact."""
    verified = verify(VerifyRequest(iso), silent)
    assert verified.kind == "live ISO"
    assert verified.ok, verified.to_json()
    states = {check.name: check.state for check in verified.checks}
    assert states["optical drives"] == "ok"
    assert states[f"root file system {image.root_hash}"] == "ok"
    damaged = tmp_path / "damaged.iso"
    start = table(iso)[1]["start"]
    for position, name in ((start + 3000, f"root file system {image.root_hash}"), (33 * 2048 + 40, "optical drives")):
        damaged.write_bytes(flipped(iso.read_bytes(), position))
        found = verify(VerifyRequest(damaged), silent)
        assert not found.ok
        assert name in [check.name for check in found.checks if check.state == "failed"]


def test_without_places_to_write_that_is_said(key: Pair, tmp_path: Path) -> None:
    image = converted(tmp_path / "repo", TARS, VerityOptions(overlays=()), key)
    told: list[Event] = []
    install(InstallRequest(repo=image.repo, target=tmp_path / "live.iso", name="demo"), told.append, dry_run=True)
    assert "nothing can be written" in "".join(event.text for event in told if isinstance(event, Warned))
    places = VerityOptions(overlays=(Overlay("/home", "tmpfs"),))
    image = converted(tmp_path / "other", TARS, places, key)
    assert len(install(InstallRequest(repo=image.repo, target=tmp_path / "live.iso"), silent).plan.partitions) == 4


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"size": 1 << 40}, "a size"),
        ({"sector": 4096}, "512 bytes"),
        ({"secret": Secret(b"secret")}, "encrypted"),
        ({"first_boot": FirstBoot(hostname="a")}, "host name"),
    ],
)
def test_what_it_cannot_have_is_refused(asked: dict[str, Any], why: str, image: Image, tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=why):
        image.install(tmp_path / "live.iso", **asked)
    assert list(tmp_path.iterdir()) == []


def test_an_image_of_single_files_needs_the_other_mode(tmp_path: Path) -> None:
    with Repository.ensure(tmp_path / "repo") as repository:
        stored = store_image(repository, "demo", TARS)
        save(repository, stored.bootable, stored.rootfs.image, {UKI: b"uki"}, None)
    with pytest.raises(TargetError, match="one piece") as caught:
        install(InstallRequest(repo=tmp_path / "repo", target=tmp_path / "live.iso"), silent)
    assert "--mode verity" in str(caught.value.hint)
