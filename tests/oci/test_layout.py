"""Layouts and archives of them: written by skopeo, by hand, and by people with bad intentions."""

import gzip
import io
import json
import os
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from oci2boot.errors import DigestError, Error, FormatError, LimitError, SourceError
from oci2boot.oci import members
from oci2boot.oci.image import Image
from oci2boot.oci.reference import Reference
from oci2boot.oci.source import open_source
from oci2boot.oci.unpack import Uncompressed
from tests.oci.layouts import REF_NAME, Layout, simple_layout, tar
from tests.witness import program


def read(name: str) -> tuple[Image, list[bytes]]:
    with open_source(Reference.parse(name)) as source:
        image = source.fetch()
        tars = []
        for layer in image.layers:
            with Uncompressed(source.open(layer), layer) as plain:
                tars.append(b"".join(iter(plain.read, b"")))
        return image, tars


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
def simple(tmp_path: Path) -> Layout:
    return simple_layout(tmp_path / "layout")


@pytest.mark.parametrize("tag", [":v", ""])
def test_an_archive_of_skopeo_holds_what_its_layout_holds(tmp_path: Path, simple: Layout, tag: str) -> None:
    """P.2: OCI layout, oci-archive."""
    archive = tmp_path / "image.tar"
    argv = [program("skopeo"), "copy", "--insecure-policy", "--preserve-digests"]
    subprocess.run([*argv, f"oci:{simple.path}:v", f"oci-archive:{archive}:v"], check=True, capture_output=True)
    before = open_descriptors()
    image, tars = read(f"oci-archive:{archive}{tag}")
    assert (image.manifest, tars) == (read(f"oci:{simple.path}{tag}")[0].manifest, tars)
    assert tars == [tar({"etc/motd": b"hello\n" * 100}), tar({"etc/issue": b"Debian\n" * 100})]
    assert open_descriptors() == before


def test_an_archive_of_gnu_tar_is_read_where_it_lies(tmp_path: Path, simple: Layout) -> None:
    archive = tmp_path / "image.tar"
    subprocess.run([program("tar"), "-C", simple.path, "-cf", archive, "."], check=True)
    assert read(f"oci-archive:{archive}")[1] == read(f"oci:{simple.path}")[1]


def test_a_tag_picks_one_of_several_images(simple: Layout) -> None:
    other = simple.image([simple.layer(tar({"other": b"x"}))])
    simple.tag(other, "w")
    assert str(read(f"oci:{simple.path}:w")[0].manifest_digest) == other["digest"]
    with pytest.raises(SourceError, match="has 2 images; say which") as caught:
        read(f"oci:{simple.path}")
    assert caught.value.hint == "its tags are v, w"
    with pytest.raises(SourceError, match="has no image with that tag") as caught:
        read(f"oci:{simple.path}:x")
    assert caught.value.hint == "its tags are v, w"


def test_one_image_under_two_tags_needs_none(simple: Layout) -> None:
    simple.tag(simple.manifests[0], "latest")
    assert len(read(f"oci:{simple.path}")[1]) == 2


def test_two_images_under_one_tag_are_refused(simple: Layout) -> None:
    simple.tag(simple.image([]), "v")
    with pytest.raises(SourceError, match="2 images under that tag"):
        read(f"oci:{simple.path}:v")


def test_annotations_and_labels_come_along(simple: Layout) -> None:
    layer = simple.layer(tar({"x": b"y"}))
    config = simple.config([layer[1]], config={"Labels": {"l": "1"}})
    simple.tag(simple.image([layer], config=config, annotations={"a": "2"}), "w")
    image, _ = read(f"oci:{simple.path}:w")
    assert (dict(image.labels), dict(image.annotations)) == ({"l": "1"}, {"a": "2"})


def layer_path(layout: Layout) -> Path:
    manifest = json.loads(layout.blob_path(layout.manifests[0]["digest"]).read_bytes())
    return layout.blob_path(manifest["layers"][0]["digest"])


def replace(path: Path, edit: Callable[[bytes], bytes]) -> None:
    path.write_bytes(edit(path.read_bytes()))


def as_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def as_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def as_link_outside(path: Path) -> None:
    outside = path.parents[3] / "outside"
    path.rename(outside)
    path.symlink_to(outside)


def as_linked_folder(path: Path) -> None:
    outside = path.parents[3] / "outside"
    path.parent.rename(outside)
    path.parent.symlink_to(outside)


DAMAGE: dict[str, tuple[Callable[[Layout], object], str]] = {
    "layer cut short": (lambda it: replace(layer_path(it), lambda data: data[:-1]), "cut short"),
    "layer too long": (lambda it: replace(layer_path(it), lambda data: data + b"x"), "too long"),
    "layer changed": (lambda it: replace(layer_path(it), lambda data: data[:-1] + b"x"), "has the digest"),
    "layer missing": (lambda it: layer_path(it).unlink(), "incomplete"),
    "layer a directory": (lambda it: as_directory(layer_path(it)), "not a regular file"),
    "layer a fifo": (lambda it: as_fifo(layer_path(it)), "not a regular file"),
    "layer a link": (lambda it: as_link_outside(layer_path(it)), "cannot be read"),
    "blobs in a linked folder": (lambda it: as_linked_folder(layer_path(it)), "cannot be read"),
    "no index": (lambda it: (it.path / "index.json").unlink(), "not an OCI layout"),
    "no oci-layout": (lambda it: (it.path / "oci-layout").unlink(), "not an OCI layout"),
    "another version": (lambda it: (it.path / "oci-layout").write_text('{"imageLayoutVersion":"2"}'), "version 1.0.0"),
    "index not JSON": (lambda it: it.write_index(b"x"), "not valid JSON"),
    "index of 5 MiB": (lambda it: it.write_index(bytes(5 << 20)), "at most 4194304 are read"),
    "index ambiguous": (lambda it: it.write_index(b'{"schemaVersion":2,"manifests":[],"layers":[]}'), "ambiguous"),
    "no image": (lambda it: it.write_index(b'{"schemaVersion":2,"manifests":[]}'), "no image in it"),
}


@pytest.mark.parametrize("form", ["oci", "oci-archive"])
@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_layout_is_refused_with_a_sentence(tmp_path: Path, simple: Layout, name: str, form: str) -> None:
    damage, sentence = DAMAGE[name]
    damage(simple)
    path = simple.path
    before = open_descriptors()
    if form == "oci-archive":
        path = tmp_path / "image.tar"
        subprocess.run([program("tar"), "-C", simple.path, "-cf", path, "."], check=True)
        # In a tar, what is no regular file is not there at all.
        sentence = sentence if sentence not in ("cannot be read", "not a regular file") else "incomplete"
    with pytest.raises(Error, match=sentence) as caught:
        read(f"{form}:{path}")
    assert isinstance(caught.value, SourceError | FormatError | DigestError | Error)
    # A blob that was not read to its end is closed with its thread.
    assert open_descriptors() <= before


def test_a_layout_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for name in ("oci:nowhere", "oci-archive:nowhere", f"oci:{tmp_path}/file", f"oci-archive:{tmp_path}"):
        with pytest.raises(SourceError, match=r"cannot be opened|is not a file"):
            read(name)


def archive_of(layout: Layout, change: Callable[[tarfile.TarFile], None]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        archive.add(layout.path, ".")
        change(archive)
    return stream.getvalue()


def again(archive: tarfile.TarFile) -> None:
    member = tarfile.TarInfo("index.json")
    member.size = 1
    archive.addfile(member, io.BytesIO(b"x"))


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (gzip.compress, "compressed"),
        (lambda data: data[:2000], "cut short"),
        (lambda _: b"x" * 2000, "not a proper tar"),
        (lambda _: b"", "not an OCI layout"),
        (lambda data: data[:148] + b"1" * 8 + data[156:], "checksum"),
    ],
)
def test_what_is_no_tar_is_no_archive(
    tmp_path: Path, simple: Layout, edit: Callable[[bytes], bytes], sentence: str
) -> None:
    path = tmp_path / "image.tar"
    path.write_bytes(edit(archive_of(simple, lambda _: None)))
    with pytest.raises(Error, match=sentence):
        read(f"oci-archive:{path}")


def test_an_archive_with_two_members_of_one_name_is_refused(tmp_path: Path, simple: Layout) -> None:
    path = tmp_path / "image.tar"
    path.write_bytes(archive_of(simple, again))
    with pytest.raises(FormatError, match="two members"):
        read(f"oci-archive:{path}")


def test_an_index_may_hold_things_that_are_no_images(simple: Layout) -> None:
    index = {"schemaVersion": 2, "manifests": [*simple.manifests, simple.blob(b"x", "application/x")]}
    simple.write_index(json.dumps(index).encode())
    assert read(f"oci:{simple.path}")[0].layers
    assert REF_NAME in simple.manifests[0]["annotations"]


def test_an_archive_of_too_many_members_is_refused(
    tmp_path: Path, simple: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "image.tar"
    path.write_bytes(archive_of(simple, lambda _: None))
    monkeypatch.setattr(members, "MAX_MEMBERS", 2)
    with pytest.raises(LimitError, match="more than 2 members"):
        read(f"oci-archive:{path}")
