"""What `docker save` and skopeo write, and what buildah keeps: the image is the one of the layout it came from."""

import io
import json
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from oci2boot.errors import Error, SourceError
from oci2boot.oci.image import Image
from oci2boot.oci.reference import Reference
from oci2boot.oci.source import open_source
from oci2boot.oci.unpack import Uncompressed
from tests.oci.layouts import Layout, digest, simple_layout, tar
from tests.witness import program

LAYER = tar({"etc/motd": b"hello\n" * 100})


def read(name: str) -> tuple[Image, list[bytes]]:
    with open_source(Reference.parse(name)) as source:
        image = source.fetch()
        tars = []
        for layer in image.layers:
            with Uncompressed(source.open(layer), layer) as plain:
                tars.append(b"".join(iter(plain.read, b"")))
        return image, tars


def skopeo(*words: str | Path) -> None:
    subprocess.run([program("skopeo"), "copy", "--insecure-policy", *words], check=True, capture_output=True)


def archive(
    path: Path, images: Any, files: dict[str, bytes], links: dict[str, str] | None = None, kind: bytes = tarfile.SYMTYPE
) -> str:
    """Write an archive by hand, as `docker save` of any age does."""
    with tarfile.open(path, "w") as out:
        for name, content in {**files, "manifest.json": json.dumps(images).encode()}.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            out.addfile(member, io.BytesIO(content))
        for name, target in (links or {}).items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            out.addfile(member)
    return f"docker-archive:{path}"


def config(*diff_ids: str) -> bytes:
    return json.dumps(
        {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}}
    ).encode()


@pytest.fixture
def simple(tmp_path: Path) -> Layout:
    return simple_layout(tmp_path / "layout")


@pytest.mark.parametrize("tag", ["", ":demo:1", ":docker.io/library/demo:1"])
def test_an_archive_of_skopeo_holds_what_its_layout_holds(tmp_path: Path, simple: Layout, tag: str) -> None:
    """P.2: docker-archive."""
    skopeo(f"oci:{simple.path}:v", f"docker-archive:{tmp_path}/image.tar:demo:1")
    image, tars = read(f"docker-archive:{tmp_path}/image.tar{tag}")
    original, expected = read(f"oci:{simple.path}:v")
    assert tars == expected
    assert [layer.diff_id for layer in image.layers] == [layer.diff_id for layer in original.layers]
    assert image.platform == original.platform
    assert image.manifest == read(f"docker-archive:{tmp_path}/image.tar")[0].manifest


def test_the_manifest_made_for_it_is_one_to_skopeo(tmp_path: Path, simple: Layout) -> None:
    """The blobs and the manifest, written out as a layout, are an image that skopeo checks and copies."""
    skopeo(f"oci:{simple.path}:v", f"docker-archive:{tmp_path}/image.tar:demo:1")
    image, tars = read(f"docker-archive:{tmp_path}/image.tar")
    copy = Layout(tmp_path / "copy")
    for content in (*tars, image.config):
        copy.blob(content, "")
    described = copy.blob(image.manifest, "application/vnd.oci.image.manifest.v1+json")
    index = {"schemaVersion": 2, "manifests": [described]}
    (copy.path / "index.json").write_text(json.dumps(index))
    skopeo(f"oci:{copy.path}", f"dir:{tmp_path}/checked")


@pytest.mark.parametrize(("kind", "target"), [(tarfile.SYMTYPE, "../a/layer.tar"), (tarfile.LNKTYPE, "a/layer.tar")])
def test_equal_layers_may_be_links(tmp_path: Path, kind: bytes, target: str) -> None:
    name = archive(
        tmp_path / "x.tar",
        [{"Config": "c.json", "RepoTags": None, "Layers": ["a/layer.tar", "b/layer.tar"]}],
        {"c.json": config(digest(LAYER), digest(LAYER)), "a/layer.tar": LAYER},
        {"b/layer.tar": target},
        kind,
    )
    assert read(name)[1] == [LAYER, LAYER]


GOOD = {"Config": "c.json", "RepoTags": ["demo:1"], "Layers": ["l.tar"]}
FILES = {"c.json": config(digest(LAYER)), "l.tar": LAYER}


@pytest.mark.parametrize(
    ("images", "files", "words"),
    [
        ([GOOD, {**GOOD, "RepoTags": ["other:1"]}], FILES, "has 2 images; say which"),
        ([], FILES, "has 0 images"),
        ({}, FILES, "not a list of images"),
        ([7], FILES, "not a list of images"),
        ([{**GOOD, "Config": 7}], FILES, "no proper 'Config'"),
        ([{**GOOD, "Layers": "l.tar"}], FILES, "no proper 'Layers'"),
        ([{**GOOD, "Layers": ["../l.tar"]}], FILES, "has no ../l.tar"),
        ([{**GOOD, "Layers": []}], FILES, "0 layers and 1 diff_ids"),
        ([GOOD], {**FILES, "l.tar": LAYER + bytes(512)}, "has the digest"),
        ([GOOD], {**FILES, "l.tar": b"\x1f\x8b" + LAYER}, "compressed layer"),
        ([GOOD], {**FILES, "c.json": b"{}"}, "no proper"),
    ],
)
def test_a_bad_archive_is_refused(tmp_path: Path, images: Any, files: dict[str, bytes], words: str) -> None:
    with pytest.raises(Error, match=words):
        read(archive(tmp_path / "x.tar", images, files))


def test_links_in_a_circle_are_refused(tmp_path: Path) -> None:
    name = archive(tmp_path / "x.tar", [GOOD], {"c.json": FILES["c.json"]}, {"l.tar": "m.tar", "m.tar": "l.tar"})
    with pytest.raises(Error, match="links that lead nowhere"):
        read(name)


def test_a_name_that_is_not_in_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no image of that name") as caught:
        read(archive(tmp_path / "x.tar", [GOOD], FILES) + ":nothing:1")
    assert caught.value.hint == "it has demo:1"


def test_an_image_in_local_storage_is_read(tmp_path: Path, simple: Layout) -> None:
    """P.2: containers-storage."""
    storage = f"[vfs@{tmp_path}/storage+{tmp_path}/run]"
    skopeo(f"oci:{simple.path}:v", f"containers-storage:{storage}localhost/demo:1")
    image, tars = read(f"containers-storage:{storage}localhost/demo:1")
    assert tars == read(f"oci:{simple.path}:v")[1]
    assert str(image.reference) == f"containers-storage:{storage}localhost/demo:1"
    with pytest.raises(SourceError, match="cannot be read: skopeo failed"):
        read(f"containers-storage:{storage}localhost/other:1")
