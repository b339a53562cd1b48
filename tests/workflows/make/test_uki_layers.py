"""UKIs in layers of their own, wherever they lie. The digests that they promise are those of `cfsctl`."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from oci2boot.boot.layers import ANNOTATION, LABEL
from oci2boot.errors import Error, FormatError, ImageError
from oci2boot.oci.reference import Reference
from oci2boot.oci.source import SourceOptions
from oci2boot.store.images import Bootable
from oci2boot.workflows.make.again import request_again
from oci2boot.workflows.make.convert import convert
from oci2boot.workflows.make.digest import measure
from oci2boot.workflows.make.seal import SealRequest, seal
from oci2boot.workflows.progress import Event, Warned, silent
from oci2boot.workflows.requests import BootOptions, ConvertRequest, DigestRequest
from oci2boot.workflows.verify.inspect import inspect
from tests.oci.layouts import Layout, digest, documents
from tests.tarballs import END, directory, file, hard_link
from tests.witness import program
from tests.workflows.sealable import KVER, OS_RELEASE, addon, base, tar, uki

MODULES = f"usr/lib/modules/{KVER}"
LATER = 1_900_000_000
"""Seconds; directories of a UKI's layer are younger than the base's."""


def cfsctl_id(layout: Layout, tag: str, folder: Path) -> str:
    cfsctl = [program("cfsctl"), "--repo", str(folder)]
    init = [*cfsctl, "init", "--algorithm", "fsverity-sha256-12", "--insecure", str(folder)]
    subprocess.run(init, check=True, capture_output=True)
    subprocess.run([*cfsctl, "oci", "pull", f"oci:{layout.path}:{tag}", "it"], check=True, capture_output=True)
    argv = [*cfsctl, "--erofs-version=1", "oci", "compute-id", "--bootable", "it"]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture(scope="module")
def base_id(layout: Layout, tmp_path_factory: pytest.TempPathFactory) -> str:
    return cfsctl_id(layout, "base", tmp_path_factory.mktemp("cfs") / "repo")


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store") / "repo"


def image(layout: Layout, *tars: bytes, marks: dict[int, str] | None = None, label: str | None = None) -> str:
    """Add an image of the base's layers and these; `marks` annotates layers by number. Return its tag."""
    every = [*base(), *tars]
    layers = []
    for number, data in enumerate(every, 1):
        descriptor, diff_id = layout.layer(data)
        mark = (marks or {}).get(number)
        layers.append(({**descriptor, "annotations": {ANNOTATION: mark}} if mark else descriptor, diff_id))
    more: dict[str, Any] = {"config": {"Labels": {LABEL: label}}} if label else {}
    config = layout.config([diff_id for _, diff_id in layers], created="2026-11-21T10:00:00Z", **more)
    tag = f"t{len(layout.manifests)}"
    layout.tag(layout.image(layers, config=config), tag)
    return tag


def converted(
    layout: Layout, repo: Path, tag: str, events: list[Event] | None = None, uki_layer: int | None = None
) -> Bootable:
    request = ConvertRequest(
        source=Reference.parse(f"oci:{layout.path}:{tag}"),
        repo=repo,
        name="x",
        boot=BootOptions(ukify="builtin"),
        uki_layer=uki_layer,
    )
    return convert(request, events.append if events is not None else silent)


def esp_uki(repo: Path, bootable: Bootable, name: str) -> bytes:
    return (repo / "objects" / bootable.esp[f"EFI/Linux/{name}"].path).read_bytes()


def outside(karg: str) -> bytes:
    """Return a layer with a UKI and an addon where the digest would cover them, under directories of another time."""
    return tar({f"{MODULES}/os.efi": uki(karg), "opt/x.efi.extra.d/a.addon.efi": addon("quiet")}, mtime=LATER)


def test_a_layer_that_is_marked_by_annotation_does_not_count(layout: Layout, repo: Path, base_id: str) -> None:
    """C.3, C.5, C.6: neither its files nor what it does to directories; the digest is that of the layers below."""
    made = outside(f"rw composefs={base_id}")
    with pytest.raises(ImageError, match="stale UKI"):
        converted(layout, repo, image(layout, made))
    events: list[Event] = []
    bootable = converted(layout, repo, image(layout, made, marks={3: "anything"}), events)
    assert (bootable.flow, str(bootable.root.image)) == ("sealed", base_id)
    assert esp_uki(repo, bootable, "os.efi") == uki(f"rw composefs={base_id}")
    (note,) = (event.text for event in events if isinstance(event, Warned) and "layer 3" in event.text)
    assert "/opt, " in note
    assert "bootc and composefs-rs would count them" in note


def test_marked_layers_are_listed_without_being_fetched(layout: Layout, repo: Path) -> None:
    """C.3"""
    tag = image(layout, tar({"opt/x": b""}), tar({"opt/y": b""}), marks={4: "new"}, label="3")
    found = inspect(f"oci:{layout.path}:{tag}", repo, SourceOptions()).to_json()
    assert found["uki_layers"] == {"3": "the image's label", "4": "its annotation"}


@pytest.mark.parametrize("label", ["3", "{diff_id}", " 3 , 3"])
def test_a_layer_may_be_marked_by_a_label(label: str, layout: Layout, repo: Path, base_id: str) -> None:
    """C.3"""
    made = outside(f"composefs={base_id}")
    tag = image(layout, made, label=label.format(diff_id=digest(made)))
    bootable = converted(layout, repo, tag)
    assert (bootable.flow, str(bootable.root.image)) == ("sealed", base_id)
    source = Reference.parse(f"oci:{layout.path}:{tag}")
    assert str(measure(DigestRequest(source=source), silent).rootfs.digest) == base_id


@pytest.mark.parametrize("number", [3, -1])
def test_a_layer_may_be_marked_by_the_user(number: int, layout: Layout, repo: Path, base_id: str) -> None:
    """C.3, C.5: the UKI and its addons, in a place that nobody would look at."""
    made = tar({"opt/x.efi": uki(f"composefs={base_id}"), "opt/x.efi.extra.d/a.addon.efi": addon("quiet")}, mtime=LATER)
    tag = image(layout, made)
    assert converted(layout, repo, tag).flow == "local"
    bootable = converted(layout, repo, tag, uki_layer=number)
    assert (bootable.flow, str(bootable.root.image)) == ("sealed", base_id)
    assert bootable.cmdline == f"composefs={base_id} quiet"
    source = Reference.parse(f"oci:{layout.path}:{tag}")
    assert str(measure(DigestRequest(source=source, uki_layer=number), silent).rootfs.digest) == base_id


def test_the_next_version_is_converted_alike(layout: Layout, repo: Path, base_id: str, tmp_path: Path) -> None:
    made = tar({"opt/x.efi": uki(f"composefs={base_id}")})
    bootable = converted(layout, repo, image(layout, made), uki_layer=-1)
    again = request_again(bootable, repo, tmp_path, BootOptions())
    assert again.uki_layer == -1
    assert convert(again, silent).root.image == bootable.root.image


def test_the_users_layer_decides_which_uki_is_taken(layout: Layout, repo: Path, base_id: str) -> None:
    old = uki(f"composefs={base_id}", OS_RELEASE + b"IMAGE_VERSION=1\n")
    new = uki(f"composefs={base_id}", OS_RELEASE + b"IMAGE_VERSION=2\n")
    tag = image(layout, tar({"boot/EFI/Linux/old.efi": old}), tar({"boot/EFI/Linux/new.efi": new}))
    assert esp_uki(repo, converted(layout, repo, tag), "new.efi") == new
    assert esp_uki(repo, converted(layout, repo, tag, uki_layer=3), "old.efi") == old
    with pytest.raises(ImageError, match="layer 2 has no UKI"):
        converted(layout, repo, tag, uki_layer=2)
    for number in (0, 5, -5):
        with pytest.raises(ImageError, match=f"no layer {number}"):
            converted(layout, repo, tag, uki_layer=number)


def test_a_label_for_a_layer_that_is_not_there_is_refused(layout: Layout, repo: Path) -> None:
    with pytest.raises(FormatError, match="names the layer '9', the image has 3"):
        converted(layout, repo, image(layout, tar({"opt/x": b""}), label="9"))


def test_of_several_uki_layers_the_newest_wins_and_none_counts(layout: Layout, repo: Path, base_id: str) -> None:
    """C.4: FROM a sealed image, sealed again; both layers reach out of /boot."""
    older = outside("composefs=" + "ab" * 32)
    newer = tar({f"{MODULES}/os.efi": uki(f"composefs={base_id}")}, mtime=LATER + 1)
    bootable = converted(layout, repo, image(layout, older, newer, marks={3: "old", 4: "new"}))
    assert (bootable.flow, str(bootable.root.image)) == ("sealed", base_id)
    assert esp_uki(repo, bootable, "os.efi") == uki(f"composefs={base_id}")


def test_a_change_above_the_ukis_layer_is_named(layout: Layout, repo: Path, base_id: str) -> None:
    """C.4: which layer, and what in it; one that touches only /boot is no change."""
    sealed = tar({"boot/EFI/Linux/os.efi": uki(f"composefs={base_id}")})
    only_boot = tar({"boot/loader/loader.conf": b"timeout 0\n"})
    assert converted(layout, repo, image(layout, sealed, only_boot)).flow == "sealed"
    above = file(b"usr/bin/added", b"new") + END
    said = (
        r"; layer 5 changed /usr/bin/added above the UKI's layer 3; /usr/bin/added: path: promised absent, found file$"
    )
    with pytest.raises(ImageError, match=said):
        converted(layout, repo, image(layout, sealed, only_boot, above))
    with pytest.raises(ImageError) as caught:
        converted(layout, repo, image(layout, above, tar({"boot/EFI/Linux/os.efi": uki(f"composefs={base_id}")})))
    assert "above" not in caught.value.message


# ---- /composefs-meta


def hidden(karg: str) -> list[bytes]:
    """Return the layers of the slide: boot files of a build, and their directory removed by a step after it."""
    boot = "composefs-meta/boot/EFI/Linux"
    with_link = tar({f"{boot}/os.efi": uki(karg), f"{boot}/os.efi.extra.d/a.addon.efi": addon("quiet")})
    link = hard_link(b"composefs-meta/boot/EFI/Linux/also.efi", b"composefs-meta/boot/EFI/Linux/os.efi")
    return [with_link.removesuffix(END) + link + END, file(b".wh.composefs-meta") + END]


def test_boot_files_that_a_whiteout_hides_are_found(layout: Layout, repo: Path, base_id: str, tmp_path: Path) -> None:
    """D.15: for cfsctl too the image is what it was without them."""
    tag = image(layout, *hidden(f"rw composefs={base_id}"))
    assert cfsctl_id(layout, tag, tmp_path / "repo") == base_id
    bootable = converted(layout, repo, tag)
    assert (bootable.flow, str(bootable.root.image)) == ("sealed", base_id)
    assert bootable.cmdline == f"rw composefs={base_id} quiet"
    assert esp_uki(repo, bootable, "os.efi") == uki(f"rw composefs={base_id}")


def test_boot_files_that_nothing_hides_count(layout: Layout, repo: Path, base_id: str, tmp_path: Path) -> None:
    """D.15: the digest stays that of composefs-rs, so the UKI in them is stale."""
    tag = image(layout, hidden(f"composefs={base_id}")[0])
    theirs = cfsctl_id(layout, tag, tmp_path / "repo")
    assert theirs != base_id
    with pytest.raises(ImageError, match=f"stale UKI.*this image is {theirs}"):
        converted(layout, repo, tag)


def test_hidden_boot_files_that_are_stale_are_replaced_by_sealing(layout: Layout, repo: Path, tmp_path: Path) -> None:
    tag = image(layout, *hidden("composefs=" + "ab" * 32))
    with pytest.raises(Error, match="stale UKI"):
        converted(layout, repo, tag)
    source, target = Reference.parse(f"oci:{layout.path}:{tag}"), Reference.parse(f"oci:{tmp_path}/out:x")
    sealed = seal(SealRequest(source=source, destination=target, repo=repo, boot=BootOptions(ukify="builtin")), silent)
    assert sealed
    bootable = convert(ConvertRequest(source=target, repo=repo, name="y"), silent)
    assert (bootable.flow, str(bootable.root.image)) == ("sealed", sealed.rootfs)
    assert [path for path in bootable.esp if path.startswith("EFI/Linux/")] == [f"EFI/Linux/{Path(sealed.uki).name}"]


def test_sealing_keeps_a_marked_layer_out(layout: Layout, repo: Path, base_id: str, tmp_path: Path) -> None:
    """C.3, C.4: its mark stays, for the layer would count without it."""
    tag = image(layout, outside("composefs=" + "ab" * 32), marks={3: "old"})
    source, target = Reference.parse(f"oci:{layout.path}:{tag}"), Reference.parse(f"oci:{tmp_path}/out:x")
    sealed = seal(SealRequest(source=source, destination=target, repo=repo, boot=BootOptions(ukify="builtin")), silent)
    assert sealed
    assert sealed.rootfs == base_id
    manifest, _ = documents(tmp_path / "out", "x")
    assert [layer.get("annotations") for layer in manifest["layers"][2:]] == [
        {ANNOTATION: "old"},
        {ANNOTATION: sealed.karg},
    ]
    bootable = convert(ConvertRequest(source=target, repo=repo, name="y"), silent)
    assert (bootable.flow, str(bootable.root.image)) == ("sealed", base_id)


def test_directories_of_boot_may_have_any_time(layout: Layout, repo: Path, base_id: str) -> None:
    """C.6: by path alone, without a mark."""
    made = directory(b"boot/", mtime=LATER) + tar({"boot/EFI/Linux/os.efi": uki(f"composefs={base_id}")}, mtime=LATER)
    assert str(converted(layout, repo, image(layout, made)).root.image) == base_id
