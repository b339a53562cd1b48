"""What goes into a sealed image beside the UKI, and what may leave it."""

import shutil
import stat
from pathlib import Path
from typing import Any

import pytest

from oci2boot.boot.uki_layer import uki_layer
from oci2boot.errors import DigestError
from oci2boot.formats.tar import Entry
from oci2boot.oci.reference import Reference
from oci2boot.workflows.make.convert import convert
from oci2boot.workflows.make.seal import SealedImage
from oci2boot.workflows.progress import Event, Told
from oci2boot.workflows.requests import ConvertRequest
from tests.boot.initrds import CLOSED
from tests.oci.layouts import Layout, documents
from tests.tarballs import END, directory, file
from tests.witness import program
from tests.workflows.make.seals import cfsctl_id, converted, last_layer, run, sealed_to
from tests.workflows.sealable import KVER, add_image, base, tar


def test_a_uki_layer_that_would_change_the_digest_is_not_written(
    layout: Layout, repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C.2, by a fault put in: the layer reaches into /usr."""

    def misplaced(*arguments: Any) -> list[Entry]:
        return [entry._replace(path=b"usr/uki.efi") for entry in uki_layer(*arguments) if stat.S_ISREG(entry.kind)]

    monkeypatch.setattr("oci2boot.workflows.make.seal.uki_layer", misplaced)
    with pytest.raises(DigestError, match="changes the image's digest"):
        sealed_to(repo, f"oci:{layout.path}:base", f"oci:{tmp_path}/layout:x")
    assert not (tmp_path / "layout/index.json").exists()


def test_an_image_with_no_kernel_but_that_of_its_uki_is_sealed_again(
    out: Path, repo: Path, sealed: SealedImage, tmp_path: Path
) -> None:
    """C.7, D.9: the base dropped its kernel from /usr once it was sealed; the UKI's parts and arguments go on."""
    layout = Layout(tmp_path / "layout")
    shutil.copytree(out / "blobs", layout.path / "blobs", dirs_exist_ok=True)
    manifest, config = documents(out, "sealed")
    modules = f"usr/lib/modules/{KVER}"
    gone = directory(f"{modules}/".encode()) + b"".join(
        file(f"{modules}/.wh.{name}".encode()) for name in ("vmlinuz", "initramfs.img")
    )
    changed, diff_id = layout.layer(gone + file(b"etc/kernel/cmdline", b"not these\n") + END)
    new_config = layout.config([*config["rootfs"]["diff_ids"], diff_id], created="2026-11-22T00:00:00Z")
    layers = [(layer, "") for layer in manifest["layers"]] + [(changed, diff_id)]
    layout.tag(layout.image(layers, config=new_config), "derived")
    again = sealed_to(repo, f"oci:{layout.path}:derived", f"oci:{layout.path}:resealed")

    def sections(folder: Path, tag: str, path: str) -> dict[str, bytes]:
        with last_layer(folder, tag) as archive:
            found = archive.extractfile(path.lstrip("/"))
            assert found
            (tmp_path / "uki.efi").write_bytes(found.read())
        names = (".linux", ".initrd", ".uname", ".cmdline")
        dumps = [word for name in names for word in ("--dump-section", f"{name}={tmp_path / name}")]
        run(program("objcopy"), *dumps, tmp_path / "uki.efi", tmp_path / "copy")
        return {name: (tmp_path / name).read_bytes() for name in names}

    old, new = sections(out, "sealed", sealed.uki), sections(layout.path, "resealed", again.uki)
    assert old.pop(".cmdline").decode().startswith("rw quiet ")
    assert new.pop(".cmdline").decode() == f"rw quiet {CLOSED} composefs={again.rootfs}"
    assert new == old
    assert converted(repo, f"oci:{layout.path}:resealed").flow == "sealed"


def test_the_rootfs_image_may_come_along(layout: Layout, repo: Path, sealed: SealedImage, tmp_path: Path) -> None:
    """C.9: the same digest, by `fsverity digest` and cfsctl, and an image for fsck.erofs; another one is refused."""
    out = tmp_path / "out"
    shipped = sealed_to(repo, f"oci:{layout.path}:base", f"oci:{out}:x", ship_erofs=True)
    assert shipped.rootfs == sealed.rootfs == cfsctl_id(out, "x", tmp_path / "cfs")
    name = f"boot/composefs/{shipped.rootfs}.erofs"
    with last_layer(out, "x") as archive:
        found = archive.extractfile(name)
        assert found
        image = found.read()
    (tmp_path / "image.erofs").write_bytes(image)
    said = run(program("fsverity"), "digest", "--compact", tmp_path / "image.erofs").strip()
    assert said == shipped.rootfs
    run(program("fsck.erofs"), tmp_path / "image.erofs")
    told: list[Event] = []
    request = ConvertRequest(source=Reference.parse(f"oci:{out}:x"), repo=tmp_path / "other", name="x")
    bootable = convert(request, told.append)
    assert (bootable.flow, str(bootable.root.image)) == ("sealed", shipped.rootfs)
    assert f"took the rootfs image that came along: it has the promised digest {shipped.rootfs}" in [
        event.text for event in told if isinstance(event, Told)
    ]
    assert (tmp_path / "other/objects" / bootable.root.image.path).read_bytes() == image

    damaged = Layout(tmp_path / "damaged")
    add_image(damaged, [*base(), tar({name: image[:-1] + b"x"})], "x")
    with pytest.raises(DigestError, match=f"/{name} was tampered with: promised is {shipped.rootfs}, it measures"):
        converted(repo, f"oci:{damaged.path}:x")
    resealed = sealed_to(repo, f"oci:{damaged.path}:x", f"oci:{damaged.path}:again")
    with last_layer(damaged.path, "again") as archive:
        assert f"boot/composefs/.wh.{shipped.rootfs}.erofs" in archive.getnames()
    assert converted(repo, f"oci:{damaged.path}:again").root.image.hex == resealed.rootfs


def test_the_kernel_may_leave_usr(layout: Layout, repo: Path, sealed: SealedImage, tmp_path: Path) -> None:
    """C.7: umoci unpacks an image without it, and cfsctl computes the digest that is promised."""
    out = tmp_path / "out"
    stripped = sealed_to(repo, f"oci:{layout.path}:base", f"oci:{out}:x", strip_kernel=True)
    assert stripped.rootfs != sealed.rootfs
    assert cfsctl_id(out, "x", tmp_path / "cfs") == stripped.rootfs
    run(program("umoci"), "unpack", "--rootless", "--image", f"{out}:x", tmp_path / "bundle")
    modules = tmp_path / "bundle/rootfs/usr/lib/modules" / KVER
    assert sorted(path.name for path in modules.iterdir()) == ["config", "modules.builtin", "modules.dep"]
    assert (tmp_path / "bundle/rootfs" / stripped.uki.lstrip("/")).exists()
    manifest, config = documents(out, "x")
    assert len(manifest["layers"]) == len(config["rootfs"]["diff_ids"]) == len(config["history"]) == 4
    assert converted(repo, f"oci:{out}:x").flow == "sealed"
    again = sealed_to(repo, f"oci:{out}:x", f"oci:{tmp_path}/again:x", strip_kernel=True)
    assert again.rootfs == stripped.rootfs
