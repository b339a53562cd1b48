"""Manifests, indexes and configs: what the image specification allows, and the ambiguous and hostile rest."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oci2boot.errors import Error, FormatError, ImageError, LimitError, SourceError
from oci2boot.oci import documents
from oci2boot.oci.image import Image, choose_platform
from oci2boot.oci.manifest import Index, Platform, parse_config, parse_document
from oci2boot.oci.reference import Reference
from oci2boot.oci.source import SourceOptions, open_source
from tests.oci.layouts import CONFIG, DOCKER, INDEX, LAYER, MANIFEST, Json, Layout, digest, platform, tar

DIGEST = digest(b"x")


def descriptor(media_type: str, **changes: Any) -> Json:
    return {"mediaType": media_type, "digest": DIGEST, "size": 1, **changes}


def manifest(**changes: Any) -> Json:
    document = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": descriptor(CONFIG),
        "layers": [descriptor(f"{LAYER}+gzip")],
    }
    return {**document, **changes}


def without(document: Json, key: str) -> Json:
    return {name: value for name, value in document.items() if name != key}


def encode(document: Json) -> bytes:
    return json.dumps(document).encode()


def also(member: bytes) -> bytes:
    """Return a good manifest with one more member."""
    return encode(manifest())[:-1] + b", " + member + b"}"


GOOD = {
    "oci": (manifest(), MANIFEST),
    "no media type of its own": (without(manifest(), "mediaType"), MANIFEST),
    "no media type from outside": (manifest(), None),
    "docker schema 2": (
        manifest(
            mediaType=f"{DOCKER}.distribution.manifest.v2+json",
            config=descriptor(f"{DOCKER}.container.image.v1+json"),
            layers=[descriptor(f"{DOCKER}.image.rootfs.diff.tar.gzip")],
        ),
        f"{DOCKER}.distribution.manifest.v2+json",
    ),
    "one more member": (json.loads(also(b'"x": [1, {"y": 2, "z": 2}]')), MANIFEST),
    "unknown members": (manifest(future={"x": [1.5]}), MANIFEST),
    "null annotations": (manifest(annotations=None), MANIFEST),
    "512 layers": (manifest(layers=[descriptor(LAYER)] * 512), MANIFEST),
    "index": ({"schemaVersion": 2, "manifests": [descriptor(MANIFEST)]}, INDEX),
    "sha512": (manifest(layers=[descriptor(LAYER, digest=digest(b"x", "sha512"))]), MANIFEST),
}


@pytest.mark.parametrize("name", GOOD)
def test_manifests_as_the_specification_has_them_are_read(name: str) -> None:
    """P.1: OCI and Docker schema 2 media types."""
    document, promised = GOOD[name]
    parse_document(encode(document), promised, "the manifest")


BAD: dict[str, tuple[bytes, str | None]] = {
    "not JSON": (b"<html>", MANIFEST),
    "not UTF-8": (b'{"a": "\xff"}', MANIFEST),
    "UTF-16": (json.dumps(manifest()).encode("utf-16"), MANIFEST),
    "empty": (b"", MANIFEST),
    "a list": (b"[]", MANIFEST),
    "deep": (b"[" * 200_000, MANIFEST),
    "NaN": (also(b'"x": NaN'), MANIFEST),
    "minus infinity": (also(b'"x": [-Infinity]'), MANIFEST),
    "a huge number": (also(b'"x": ' + b"9" * 10_000), MANIFEST),
    "nested too deep": (also(b'"x": ' + b"[" * 100_000 + b"]" * 100_000), MANIFEST),
    "layers twice": (also(b'"layers": []'), MANIFEST),
    "a key twice, far inside": (also(b'"x": {"y": [{"z": 1, "z": 1}]}'), MANIFEST),
    "schema 1": (encode({"schemaVersion": 1, "fsLayers": [], "history": []}), None),
    "schemaVersion 3": (encode(manifest(schemaVersion=3)), MANIFEST),
    "schemaVersion true": (encode(manifest(schemaVersion=True)), MANIFEST),
    "schemaVersion 2.0": (encode(manifest(schemaVersion=2.0)), MANIFEST),
    "schemaVersion as text": (encode(manifest(schemaVersion="2")), MANIFEST),
    "no schemaVersion": (encode(without(manifest(), "schemaVersion")), MANIFEST),
    # CVE-2021-41190
    "layers and manifests": (encode(manifest(manifests=[])), MANIFEST),
    "config and manifests": (encode({"schemaVersion": 2, "manifests": [], "config": {}}), INDEX),
    "layers and fsLayers": (encode(manifest(fsLayers=[])), MANIFEST),
    "an index called a manifest": (encode({"schemaVersion": 2, "manifests": []}), MANIFEST),
    "a manifest called an index": (encode(without(manifest(), "mediaType")), INDEX),
    "another type than promised": (encode(manifest()), f"{DOCKER}.distribution.manifest.v2+json"),
    "no type at all": (encode(without(manifest(), "mediaType")), None),
    "an unknown type": (encode(manifest(mediaType="application/json")), None),
    "an artifact": (encode(manifest(config=descriptor("application/vnd.oci.empty.v1+json"))), MANIFEST),
    "a Helm chart": (encode(manifest(config=descriptor("application/vnd.cncf.helm.config.v1+json"))), MANIFEST),
    "no config": (encode(without(manifest(), "config")), MANIFEST),
    "no layers": (encode(without(manifest(), "layers")), MANIFEST),
    "layers null": (encode(manifest(layers=None)), MANIFEST),
    "layers an object": (encode(manifest(layers={})), MANIFEST),
    "a layer that is a string": (encode(manifest(layers=["x"])), MANIFEST),
    "513 layers": (encode(manifest(layers=[descriptor(LAYER)] * 513)), MANIFEST),
    "layer of unknown type": (encode(manifest(layers=[descriptor("application/octet-stream")])), MANIFEST),
    "encrypted layer": (encode(manifest(layers=[descriptor(f"{LAYER}+gzip+encrypted")])), MANIFEST),
    "size negative": (encode(manifest(layers=[descriptor(LAYER, size=-1)])), MANIFEST),
    "size as text": (encode(manifest(layers=[descriptor(LAYER, size="1")])), MANIFEST),
    "size a fraction": (encode(manifest(layers=[descriptor(LAYER, size=1.0)])), MANIFEST),
    "size true": (encode(manifest(layers=[descriptor(LAYER, size=True)])), MANIFEST),
    "size over 63 bits": (encode(manifest(layers=[descriptor(LAYER, size=1 << 63)])), MANIFEST),
    "no size": (encode(manifest(layers=[without(descriptor(LAYER), "size")])), MANIFEST),
    "digest a path": (encode(manifest(layers=[descriptor(LAYER, digest="sha256:/etc/passwd")])), MANIFEST),
    "digest upper case": (encode(manifest(layers=[descriptor(LAYER, digest=f"sha256:{'A' * 64}")])), MANIFEST),
    "digest md5": (encode(manifest(layers=[descriptor(LAYER, digest=f"md5:{'a' * 32}")])), MANIFEST),
    "digest with a line end": (encode(manifest(layers=[descriptor(LAYER, digest=DIGEST + "\n")])), MANIFEST),
    "digest a number": (encode(manifest(layers=[descriptor(LAYER, digest=1)])), MANIFEST),
    "annotations a list": (encode(manifest(annotations=["x"])), MANIFEST),
    "annotations of numbers": (encode(manifest(annotations={"x": 1})), MANIFEST),
    "half a surrogate": (also(b'"annotations": {"x": "\\ud800"}'), MANIFEST),
    "a platform that is text": (
        encode({"schemaVersion": 2, "manifests": [descriptor(MANIFEST, platform="linux")]}),
        INDEX,
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_hostile_manifest_is_refused_with_a_sentence(name: str) -> None:
    data, promised = BAD[name]
    with pytest.raises((FormatError, ImageError, LimitError)) as caught:
        parse_document(data, promised, "the manifest")
    assert caught.value.message.startswith(("the manifest", "not an OCI digest", "not a"))
    assert len(caught.value.message) < 400


def test_a_manifest_of_more_than_4_mib_is_refused() -> None:
    with pytest.raises(LimitError):
        parse_document(encode(manifest(x="y" * documents.MAX_DOCUMENT)), MANIFEST, "the manifest")


@pytest.mark.parametrize(
    "change",
    [
        {"rootfs": None},
        {"rootfs": {"type": "tar", "diff_ids": []}},
        {"rootfs": {"type": "layers"}},
        {"rootfs": {"type": "layers", "diff_ids": [1]}},
        {"rootfs": {"type": "layers", "diff_ids": ["sha256:1"]}},
        {"os": 1},
        {"config": []},
        {"config": {"Labels": ["x"]}},
    ],
)
def test_a_hostile_config_is_refused(change: Json) -> None:
    good = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [DIGEST]}}
    parse_config(encode(good), "the config")
    with pytest.raises(FormatError):
        parse_config(encode({**good, **change}), "the config")


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=150)
@given(st.sampled_from(sorted({*manifest(), "manifests", "annotations", "artifactType"})), _JSON)
def test_any_member_replaced_gives_a_value_or_an_error_of_ours(key: str, value: Any) -> None:
    data = json.dumps(manifest(**{key: value})).encode(errors="replace")
    try:
        parse_document(data, MANIFEST, "the manifest")
    except Error as error:
        str(error).encode()


def parsed_index(*platforms: Json) -> Index:
    entries = [descriptor(MANIFEST, digest=digest(bytes([n])), **what) for n, what in enumerate(platforms)]
    index = parse_document(encode({"schemaVersion": 2, "manifests": entries}), INDEX, "x")
    assert isinstance(index, Index)
    return index


ARM = (platform("arm", "v6"), platform("arm", "v7"), platform("arm64", "v8"), platform("amd64"))

CHOICES: list[tuple[tuple[Json, ...], str, int | None]] = [
    (ARM, "linux/amd64", 3),
    (ARM, "linux/x86_64", 3),
    (ARM, "linux/arm64", 2),
    (ARM, "linux/arm64/v8", 2),
    (ARM, "linux/aarch64", 2),
    (ARM, "linux/arm/v6", 0),
    (ARM, "linux/arm", 1),  # v7 is what Go's and Debian's "arm" is today
    (ARM, "linux/riscv64", None),
    (ARM, "windows/amd64", None),
    ((platform("amd64"), platform("amd64", "v3")), "linux/amd64", 0),
    ((platform("amd64"), platform("amd64", "v3")), "linux/amd64/v3", 1),
    ((platform("amd64", "v2"), platform("amd64", "v3")), "linux/amd64", None),
    ((platform("amd64"), platform("amd64")), "linux/amd64", None),
    ((platform("unknown", os="unknown"), platform("amd64")), "linux/amd64", 1),
    (({},), "linux/amd64", 0),
    (({}, {}), "linux/amd64", None),
    ((), "linux/amd64", None),
]


@pytest.mark.parametrize(("platforms", "wanted", "chosen"), CHOICES)
def test_of_an_index_the_one_image_for_the_platform_is_taken(
    platforms: tuple[Json, ...], wanted: str, chosen: int | None
) -> None:
    """P.1: image index and --platform."""
    index = parsed_index(*platforms)
    if chosen is None:
        with pytest.raises(SourceError):
            choose_platform(index, Platform.parse(wanted), "it")
    else:
        assert str(choose_platform(index, Platform.parse(wanted), "it").digest) == digest(bytes([chosen]))


def test_the_error_lists_the_platforms_that_there_are() -> None:
    index = parsed_index(*ARM, platform("unknown", os="unknown"))
    with pytest.raises(SourceError) as caught:
        choose_platform(index, Platform.parse("linux/s390x"), "it")
    assert "linux/amd64, linux/arm/v6, linux/arm/v7, linux/arm64/v8" in (caught.value.hint or "")


@pytest.mark.parametrize("text", ["", "linux", "linux/", "linux/a/b/c", "linux/am d64", "../x"])
def test_what_is_no_platform_is_refused(text: str) -> None:
    with pytest.raises(FormatError):
        Platform.parse(text)


def fetch(layout: Layout, wanted: str | None = None) -> Image:
    options = SourceOptions(platform=Platform.parse(wanted) if wanted else None)
    with open_source(Reference.parse(f"oci:{layout.path}:v"), options) as source:
        return source.fetch()


def one_layer(layout: Layout, architecture: str = "amd64") -> Json:
    return layout.image([layout.layer(tar({architecture: b"x" * 100}))], architecture=architecture)


def test_an_image_that_stands_alone_need_not_be_for_this_machine_unless_asked(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "l")
    layout.tag(one_layer(layout, "s390x"))
    assert str(fetch(layout).platform) == "linux/s390x"
    assert str(fetch(layout, "linux/s390x").platform) == "linux/s390x"
    with pytest.raises(ImageError, match="linux/s390x, not for linux/amd64"):
        fetch(layout, "linux/amd64")


def test_an_image_chosen_from_an_index_is_the_one_asked_for(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "l")
    entries = [{**one_layer(layout, name), **platform(name)} for name in ("amd64", "arm64", "riscv64")]
    layout.tag(layout.index(entries))
    image = fetch(layout, "linux/riscv64")
    assert image.manifest_digest.hex == entries[2]["digest"][7:]
    assert str(image.platform) == "linux/riscv64"


HOSTILE: dict[str, Callable[[Layout], Json]] = {
    "more diff_ids than layers": lambda it: it.image(
        [it.layer(tar({}))], config=it.config([digest(b"a"), digest(b"b")])
    ),
    "fewer diff_ids than layers": lambda it: it.image([it.layer(tar({}))], config=it.config([])),
    "config of the wrong size": lambda it: it.image([], config={**it.config([]), "size": 5}),
    "config that is not there": lambda it: it.image([], config=descriptor(CONFIG)),
    "config of 5 MiB": lambda it: it.image([], config=it.config([], x="y" * (5 << 20))),
    "manifest of 5 MiB": lambda it: it.image([], x="y" * (5 << 20)),
    "manifest of another size": lambda it: {**one_layer(it), "size": 10},
    "manifest of another digest": lambda it: {**one_layer(it), "digest": it.config([])["digest"]},
    "index of indexes": lambda it: it.index([{**it.index([]), **platform("amd64")}]),
    "entry announced as Docker's": lambda it: {
        **one_layer(it),
        "mediaType": f"{DOCKER}.distribution.manifest.v2+json",
    },
}


@pytest.mark.parametrize("name", HOSTILE)
def test_documents_that_contradict_each_other_are_refused(tmp_path: Path, name: str) -> None:
    layout = Layout(tmp_path / "l")
    layout.tag(HOSTILE[name](layout))
    with pytest.raises(Error):
        fetch(layout, "linux/amd64")
