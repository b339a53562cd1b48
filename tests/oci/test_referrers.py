"""What refers to an image: distribution-spec 1.1 and image-spec 1.1, by a registry that keeps the list itself and by
docker-registry, which does not.
"""

import hashlib
import json
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from oci2boot.digest import OciDigest
from oci2boot.errors import LimitError, SourceError
from oci2boot.oci.destination import open_destination
from oci2boot.oci.manifest import OCI_MANIFEST, SIGNATURES, Descriptor
from oci2boot.oci.outgoing import pack_json
from oci2boot.oci.reference import Reference
from oci2boot.oci.referrers import Detached, find_signatures, pack_artifact
from oci2boot.oci.source import SourceOptions, open_source
from tests.oci.layouts import INDEX, MANIFEST, Json, Layout, simple_layout
from tests.oci.registries import Fake, Handler, docker_registry, push

INSECURE = SourceOptions(tls_verify=False)
HASH = OciDigest("sha256", "ab" * 32)
ONE = Detached("uki.efi", HASH, b"one signature")
TWO = Detached("uki.efi", HASH, b"another one")


def put(name: str, *signatures: Detached) -> tuple[Descriptor, OciDigest]:
    """Put an artifact beside the image; return its descriptor, and the digest of the image."""
    reference = Reference.parse(name)
    with open_source(reference, INSECURE) as source:
        subject = source.fetch().descriptor
    document, blobs = pack_artifact(subject, signatures)
    manifest = pack_json(document)
    artifact = Descriptor(OCI_MANIFEST, OciDigest.of(manifest), len(manifest), {})
    with open_destination(reference, INSECURE) as destination:
        for blob, data in blobs:
            if not destination.has(blob):
                destination.put(blob, [data].copy)
        destination.refer(artifact, manifest, subject.digest, SIGNATURES)
    return artifact, subject.digest


def found(name: str, wanted: OciDigest = HASH) -> list[Detached]:
    warned: list[str] = []
    with open_source(Reference.parse(name), INSECURE) as source:
        signatures = list(find_signatures(source, source.fetch().manifest_digest, {wanted}, warned.append))
    assert warned == []
    return signatures


def test_an_artifact_is_as_the_image_specification_has_it() -> None:
    """Its empty config is the one of "Guidance for an Empty Descriptor", digest and all."""
    subject = Descriptor(OCI_MANIFEST, OciDigest("sha256", "cd" * 32), 7, {"kept": "no"})
    document, blobs = pack_artifact(subject, [TWO, ONE])
    assert document["config"] == {
        "mediaType": "application/vnd.oci.empty.v1+json",
        "digest": "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
        "size": 2,
    }
    assert document["subject"] == {"mediaType": MANIFEST, "digest": f"sha256:{'cd' * 32}", "size": 7}
    assert (document["schemaVersion"], document["mediaType"]) == (2, MANIFEST)
    assert [blob.digest for blob, data in blobs] == [OciDigest.of(data) for _, data in blobs]
    assert document == pack_artifact(subject, [ONE, TWO])[0]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with docker_registry(tmp_path_factory.mktemp("registry") / "storage") as address:
        yield address


def test_a_registry_without_lists_gets_one_under_a_tag(registry: str, tmp_path: Path) -> None:
    """ "Referrers Tag Schema": the tag is the subject's digest, and what others put into the list stays."""
    layout = simple_layout(tmp_path / "layout")
    name = f"docker://{registry}/tagged/os:v"
    push(f"oci:{layout.path}:v", name)
    assert found(name) == []
    first, subject = put(name, ONE)
    second, _ = put(name, TWO)
    put(name, ONE)
    url = f"http://{registry}/v2/tagged/os/manifests/sha256-{subject.hex}"
    with urllib.request.urlopen(urllib.request.Request(url, headers={"Accept": INDEX})) as response:
        index = json.load(response)
        assert response.headers["Content-Type"] == INDEX
    listed = {entry["digest"]: entry for entry in index["manifests"]}
    assert listed.keys() == {str(first.digest), str(second.digest)}
    assert {entry["artifactType"] for entry in listed.values()} == {SIGNATURES}
    assert {one.signature for one in found(name)} == {ONE.signature, TWO.signature}
    assert found(name, OciDigest("sha256", "00" * 32)) == []


@dataclass
class Keeping:
    """A registry that keeps the list, one entry a page: "Listing Referrers", "Pushing Manifests with Subject"."""

    layout: Layout
    listed: list[Json] = field(default_factory=list)
    next: str = ""
    """Where each page says that the next one is, if not at itself."""

    def __call__(self, handler: Handler) -> bool:
        path = urlsplit(handler.path)
        if handler.command == "HEAD":
            handler.send(404)
        elif handler.command == "POST":
            handler.send(202, headers={"Location": "/upload"})
        elif handler.command == "PUT":
            self._store(handler)
        elif "/referrers/" in handler.path:
            self._list(handler, int(parse_qs(path.query).get("at", ["0"])[0]))
        else:
            return False
        return True

    def _store(self, handler: Handler) -> None:
        name = f"sha256:{hashlib.sha256(handler.body).hexdigest()}"
        self.layout.blob_path(name).write_bytes(handler.body)
        if "/manifests/" not in handler.path:
            return handler.send(201)
        document = json.loads(handler.body)
        assert handler.path.endswith(f"/manifests/{name}"), "a registry with lists needs no tag"
        entry = {"mediaType": document["mediaType"], "digest": name, "size": len(handler.body)}
        self.listed.append({**entry, "artifactType": document["artifactType"]})
        return handler.send(201, headers={"OCI-Subject": document["subject"]["digest"]})

    def _list(self, handler: Handler, at: int) -> None:
        entries = [{**entry, "artifactType": "application/another"} for entry in self.listed[:1]] + self.listed
        more = at + 1 < len(entries)
        link = self.next or f"{urlsplit(handler.path).path}?at={at + 1}"
        index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": entries[at : at + 1]}
        headers = {"Content-Type": INDEX, **({"Link": f'<{link}>; rel="next"'} if more or self.next else {})}
        handler.send(200, json.dumps(index).encode(), headers)


@pytest.fixture
def keeping(tmp_path: Path) -> Iterator[tuple[Keeping, str]]:
    layout = simple_layout(tmp_path / "layout")
    respond = Keeping(layout)
    with Fake(layout, respond).serving() as fake:
        yield respond, f"docker://{fake.address}/some/os:v"


def test_a_registry_that_keeps_lists_is_asked_for_them(keeping: tuple[Keeping, str]) -> None:
    """Page by page; what another program put there is passed over."""
    _, name = keeping
    assert found(name) == []
    put(name, ONE)
    put(name, TWO)
    assert [one.signature for one in found(name)] == [ONE.signature, TWO.signature]


def test_a_list_leads_to_no_other_place_and_ends(keeping: tuple[Keeping, str]) -> None:
    """B.2: a password for this registry goes to no other."""
    registry, name = keeping
    put(name, ONE)
    registry.next = "http://elsewhere.invalid/v2/list"
    with pytest.raises(SourceError, match="which is another registry"):
        found(name)
    registry.next = "/v2/some/os/referrers/again?at=0"
    with pytest.raises(LimitError, match="more than 16 pages"):
        found(name)


def test_a_layout_lists_the_artifacts_of_all_its_images(tmp_path: Path) -> None:
    """image-spec, image-layout.md: they stand in index.json; each says whose it is."""
    layout = simple_layout(tmp_path / "layout")
    layout.tag(layout.image([layout.layer(b"\0" * 1024)]), "w")
    artifact, subject = put(f"oci:{layout.path}:v", ONE)
    put(f"oci:{layout.path}:v", ONE)
    (entry,) = (
        one for one in json.loads((layout.path / "index.json").read_text())["manifests"] if "annotations" not in one
    )
    assert (entry["digest"], entry["artifactType"]) == (str(artifact.digest), SIGNATURES)
    written = json.loads(layout.blob_path(entry["digest"]).read_text())
    assert written["subject"]["digest"] == str(subject)
    assert (found(f"oci:{layout.path}:v"), found(f"oci:{layout.path}:w")) == ([ONE], [])
