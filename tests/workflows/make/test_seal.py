"""`seal`: what it makes is held to cfsctl, skopeo, umoci, docker-registry and sbverify."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from oci2boot.errors import DigestError, ImageError, TargetError
from oci2boot.oci.reference import Reference
from oci2boot.workflows.make.seal import SealedImage, SealRequest, seal
from oci2boot.workflows.progress import Event, Step, silent
from oci2boot.workflows.requests import BootOptions, SigningOptions
from tests.keys import make
from tests.oci.layouts import Layout, documents
from tests.oci.registries import docker_registry, push
from tests.tarballs import END, directory, file
from tests.witness import program
from tests.workflows.make.seals import converted, last_layer, run, sealed_to
from tests.workflows.sealable import add_image, addon, base, tar, uki


def test_the_uki_is_in_a_layer_of_its_own_over_the_same_layers(layout: Layout, out: Path, sealed: SealedImage) -> None:
    """C.2, C.6, C.13, C.27, C.29, O.7"""
    (old, old_config), (new, new_config) = documents(layout.path, "base"), documents(out, "sealed")
    assert new["layers"][:-1] == old["layers"]
    assert new["layers"][-1]["annotations"] == {"io.oci2boot.uki.v1": sealed.karg}
    key = "composefs.merged.bootable.erofs.v1.fsverity-sha256-12"
    assert new["annotations"] == {key: sealed.rootfs}
    assert sealed.karg == f"composefs={sealed.rootfs}"
    assert new_config["rootfs"]["diff_ids"][:-1] == old_config["rootfs"]["diff_ids"]
    assert new_config["history"][:-1] == old_config["history"]
    assert len(new_config["history"]) == len(new["layers"])
    with last_layer(out, "sealed") as archive:
        names = archive.getnames()
    assert names == ["boot", "boot/EFI", "boot/EFI/Linux", "boot/EFI/Linux/debian_20261121100000.efi"]


def test_a_sealed_image_is_taken_as_it_is(layout: Layout, repo: Path, out: Path, sealed: SealedImage) -> None:
    """D.14: the digest of the final image is the digest of the base."""
    bootable = converted(repo, f"oci:{out}:sealed")
    assert (bootable.flow, str(bootable.root.image)) == ("sealed", sealed.rootfs)
    assert str(bootable.root.image) == str(converted(repo, f"oci:{layout.path}:base").root.image)


def test_cfsctl_boots_a_sealed_image(out: Path, sealed: SealedImage, tmp_path: Path) -> None:
    """`prepare-boot` checks the argument in the UKI against the digest that it computes itself."""
    repo, boot = tmp_path / "cfs/repo", tmp_path / "boot"
    boot.mkdir()
    repo.parent.mkdir()
    cfsctl = [program("cfsctl"), "--repo", str(repo), "--insecure"]
    run(program("cfsctl"), "init", "--algorithm", "fsverity-sha256-12", "--insecure", repo)
    run(*cfsctl, "oci", "pull", f"oci:{out}:sealed", "sealed")
    assert run(*cfsctl, "--erofs-version=1", "oci", "compute-id", "--bootable", "sealed").strip() == sealed.rootfs
    run(*cfsctl, "oci", "prepare-boot", "--bootdir", boot, "sealed")
    assert [path.name for path in (boot / "EFI/Linux").iterdir()] == [Path(sealed.uki).name]


def test_sealing_twice_gives_the_same_image(
    layout: Layout, repo: Path, out: Path, sealed: SealedImage, tmp_path: Path
) -> None:
    """C.24: bit-identical, also from another store."""
    again = sealed_to(tmp_path / "other", f"oci:{layout.path}:base", f"oci:{tmp_path}/layout:x")
    assert again.manifest == sealed.manifest
    once_more = sealed_to(repo, f"oci:{out}:sealed", f"oci:{out}:twice")
    assert once_more.karg == sealed.karg


def test_a_derived_image_is_stale_until_it_is_sealed_again(
    out: Path, repo: Path, sealed: SealedImage, tmp_path: Path
) -> None:
    """C.4: what the base brought to boot with is whited out, so one UKI is left."""
    layout = Layout(tmp_path / "layout")
    shutil.copytree(out / "blobs", layout.path / "blobs", dirs_exist_ok=True)
    manifest, config = documents(out, "sealed")
    changed, diff_id = layout.layer(
        tar(
            {
                "usr/bin/added": b"new",
                "boot/EFI/Linux/old.efi": uki("composefs=" + "ab" * 32),
                "boot/EFI/Linux/old.efi.extra.d/a.addon.efi": addon("quiet"),
                "boot/EFI/Linux/sub/deep.efi": uki("rw"),
                "boot/loader/addons/old.addon.efi": addon("composefs=" + "ab" * 32),
                "boot/loader/addons/kept.addon.efi": addon("quiet"),
            }
        )
    )
    diff_ids = [*config["rootfs"]["diff_ids"], diff_id]
    layers = [(layer, "") for layer in manifest["layers"]] + [(changed, diff_id)]
    config = layout.config(diff_ids, created="2026-11-22T00:00:00Z")
    annotations = {"composefs.merged.erofs.v1.fsverity-sha256-12": "ab" * 32, "org.example": "kept"}
    layout.tag(layout.image(layers, config=config, annotations=annotations), "derived")
    with pytest.raises(ImageError, match="stale UKI"):
        converted(repo, f"oci:{layout.path}:derived")
    again = sealed_to(repo, f"oci:{layout.path}:derived", f"oci:{layout.path}:resealed")
    assert again.rootfs != sealed.rootfs
    with last_layer(layout.path, "resealed") as archive:
        files = [member.name for member in archive if member.isfile()]
    assert files == [
        "boot/EFI/Linux/.wh.debian_20261121100000.efi",
        "boot/EFI/Linux/.wh.old.efi",
        "boot/EFI/Linux/.wh.old.efi.extra.d",
        "boot/EFI/Linux/sub/.wh.deep.efi",
        "boot/loader/addons/.wh.old.addon.efi",
        "boot/EFI/Linux/debian_20261122000000.efi",
    ]
    bootable = converted(repo, f"oci:{layout.path}:resealed")
    assert {path for path in bootable.esp if path.startswith("EFI/Linux")} == {
        "EFI/Linux/debian_20261122000000.efi",
        "EFI/Linux/debian_20261122000000.efi.extra.d/kept.addon.efi",
    }
    new, _ = documents(layout.path, "resealed")
    assert new["annotations"] == {
        "composefs.merged.bootable.erofs.v1.fsverity-sha256-12": again.rootfs,
        "org.example": "kept",
    }
    assert [index for index, layer in enumerate(new["layers"]) if "annotations" in layer] == [len(new["layers"]) - 1]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with docker_registry(tmp_path_factory.mktemp("registry") / "storage") as address:
        yield address


def test_a_sealed_image_survives_registries_and_skopeo(
    layout: Layout, repo: Path, registry: str, sealed: SealedImage
) -> None:
    """From a registry, to it, and copied on by skopeo."""
    push(f"oci:{layout.path}:base", f"docker://{registry}/os/base:1")
    steps: list[Event] = []
    pushed = sealed_to(repo, f"docker://{registry}/os/base:1", f"docker://{registry}/os/base:2", report=steps.append)
    assert pushed.manifest == sealed.manifest
    notes = [step.note for step in steps if isinstance(step, Step) and step.task.startswith("blob") and step.finished]
    assert notes == ["already there", "already there", "written", "written"]
    run(
        program("skopeo"), "copy", "--preserve-digests", "--insecure-policy", "--src-tls-verify=false",
        "--dest-tls-verify=false", f"docker://{registry}/os/base:2", f"docker://{registry}/copy/of:it",
    )  # fmt: skip
    bootable = converted(repo, f"docker://{registry}/copy/of:it")
    assert (bootable.flow, str(bootable.manifest)) == ("sealed", str(sealed.manifest))


def test_an_archive_is_one_for_skopeo_and_is_not_overwritten(
    layout: Layout, repo: Path, sealed: SealedImage, tmp_path: Path
) -> None:
    archive = f"oci-archive:{tmp_path}/os.tar:v"
    sealed_to(repo, f"oci:{layout.path}:base", archive)
    run(program("skopeo"), "copy", "--insecure-policy", "--preserve-digests", archive, f"oci:{tmp_path}/copy:v")
    assert json.loads((tmp_path / "copy/index.json").read_text())["manifests"][0]["digest"] == str(sealed.manifest)
    assert converted(repo, archive).flow == "sealed"
    with pytest.raises(TargetError, match="exists"):
        sealed_to(repo, f"oci:{layout.path}:base", archive)


def test_umoci_unpacks_a_sealed_image(out: Path, sealed: SealedImage, tmp_path: Path) -> None:
    run(program("umoci"), "unpack", "--rootless", "--image", f"{out}:sealed", tmp_path / "bundle")
    made = (tmp_path / "bundle/rootfs" / sealed.uki.lstrip("/")).read_bytes()
    assert made[:2] == b"MZ"


def test_other_tags_of_a_layout_stay_and_its_own_is_replaced(repo: Path, tmp_path: Path) -> None:
    made = Layout(tmp_path / "layout")
    add_image(made, base(), "base")
    for _ in range(2):
        sealed_to(repo, f"oci:{made.path}:base", f"oci:{made.path}:sealed")
    index = json.loads((made.path / "index.json").read_text())
    tags = [one["annotations"]["org.opencontainers.image.ref.name"] for one in index["manifests"]]
    assert tags == ["base", "sealed"]


def test_dockers_documents_become_ocis(layout: Layout, repo: Path, tmp_path: Path) -> None:
    """Docker's manifest has no annotations; the blobs are the same."""
    docker = f"dir:{tmp_path}/docker"
    run(program("skopeo"), "copy", "--insecure-policy", "--format", "v2s2", f"oci:{layout.path}:base", docker)
    with docker_registry(tmp_path / "storage") as registry:
        run(
            program("skopeo"), "copy", "--insecure-policy", "--dest-tls-verify=false", docker,
            f"docker://{registry}/os:v2s2",
        )  # fmt: skip
        sealed_to(repo, f"docker://{registry}/os:v2s2", f"oci:{tmp_path}/layout:x")
    manifest, _ = documents(tmp_path / "layout", "x")
    oci = "application/vnd.oci.image"
    assert manifest["config"]["mediaType"] == f"{oci}.config.v1+json"
    assert {layer["mediaType"] for layer in manifest["layers"]} == {f"{oci}.layer.v1.tar+gzip"}
    assert converted(repo, f"oci:{tmp_path}/layout:x").flow == "sealed"


def test_a_directory_becomes_a_sealed_image(layout: Layout, repo: Path, tmp_path: Path) -> None:
    """C.28"""
    run(program("umoci"), "unpack", "--rootless", "--image", f"{layout.path}:base", tmp_path / "bundle")
    sealed = sealed_to(repo, f"dir:{tmp_path}/bundle/rootfs", f"oci:{tmp_path}/layout:x")
    bootable = converted(repo, f"oci:{tmp_path}/layout:x")
    assert (bootable.flow, str(bootable.root.image)) == ("sealed", sealed.rootfs)


def test_a_layer_that_can_be_read_in_two_ways_is_not_sealed(repo: Path, tmp_path: Path) -> None:
    """B.2: composefs lets a whiteout hide what its own layer has; container tools do not. Path and field are named."""
    layout = Layout(tmp_path / "layout")
    twice = directory(b"usr/bin/") + file(b"usr/bin/tool", b"tool") + file(b"usr/bin/.wh.tool") + END
    add_image(layout, [*base(), twice], "odd")
    with pytest.raises(DigestError, match=r"/usr/bin/tool: path is absent in the layers, file unpacked"):
        sealed_to(repo, f"oci:{layout.path}:odd", f"oci:{layout.path}:sealed")
    assert "sealed" not in (layout.path / "index.json").read_text()


def test_the_uki_in_the_layer_is_signed(layout: Layout, repo: Path, tmp_path: Path) -> None:
    db = make(tmp_path, "db")
    boot = BootOptions(ukify="builtin", signing=SigningOptions(certificate=db.path, key=str(db.key)))
    sealed = sealed_to(repo, f"oci:{layout.path}:base", f"oci:{tmp_path}/layout:x", boot)
    with last_layer(tmp_path / "layout", "x") as archive:
        found = archive.extractfile(sealed.uki.lstrip("/"))
        assert found
        (tmp_path / "uki.efi").write_bytes(found.read())
    assert "Signature verification OK" in run(program("sbverify"), "--cert", db.path, tmp_path / "uki.efi")
    secret = db.key.read_bytes().splitlines()[3]
    for path in (tmp_path / "layout").rglob("*"):
        assert not path.is_file() or secret not in path.read_bytes()


def test_a_request_for_signatures_writes_no_image(layout: Layout, repo: Path, tmp_path: Path) -> None:
    """B.5"""
    db = make(tmp_path, "db")
    boot = BootOptions(ukify="builtin", signing=SigningOptions(certificate=db.path, request=tmp_path / "request.json"))
    source, destination = Reference.parse(f"oci:{layout.path}:base"), Reference.parse(f"oci-archive:{tmp_path}/x.tar")
    assert seal(SealRequest(source=source, destination=destination, repo=repo, boot=boot), silent) is None
    assert (tmp_path / "request.json").exists()
    assert not (tmp_path / "x.tar").exists()


def test_a_file_where_boot_directories_belong_is_refused(repo: Path, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "layout")
    add_image(layout, [*base(), tar({"boot/EFI": b"a file"})], "odd")
    with pytest.raises(ImageError, match="/boot/EFI of the image is not a directory"):
        sealed_to(repo, f"oci:{layout.path}:odd", f"oci:{layout.path}:sealed")
