"""Signatures beside an image: an artifact whose subject is the image's manifest. OCI image-spec 1.1, manifest.md,
"Guidelines for Artifact Usage"; distribution-spec 1.1, "Listing Referrers".

Each layer of the artifact is one PKCS #7 signature, and an annotation says of what: an executable, by its hash. Nothing
is trusted for being there: who attaches a signature holds it to certificates.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from oci2boot.digest import OciDigest
from oci2boot.errors import Error, FormatError, LimitError
from oci2boot.oci.blob import read_document
from oci2boot.oci.documents import digest_of, list_of, object_of, parse_object, text_of
from oci2boot.oci.image import ImageSource
from oci2boot.oci.manifest import MAX_LAYERS, OCI_MANIFEST, SIGNATURES, Descriptor, parse_descriptor
from oci2boot.oci.outgoing import to_json

SIGNATURE: Final = "application/pkcs7-signature"
SIGNS: Final = "io.oci2boot.signs.v1"
"""On a signature: the digest of what it is of, an executable's Authenticode hash as `sha256:…`."""
TITLE: Final = "org.opencontainers.image.title"
EMPTY: Final = Descriptor("application/vnd.oci.empty.v1+json", OciDigest.of(b"{}"), 2, {})
"""The config of what needs none."""
MAX_SIGNATURE: Final = 64 << 10
"""Bytes of one signature."""
MAX_ARTIFACTS: Final = 64


@dataclass(frozen=True, slots=True)
class Detached:
    """A signature apart from what it is of."""

    name: str
    """Of the executable, for people."""
    image: OciDigest
    signature: bytes
    """PKCS #7, as it stands in an executable's table of certificates."""


def pack_artifact(
    subject: Descriptor, signatures: Iterable[Detached]
) -> tuple[Mapping[str, Any], list[tuple[Descriptor, bytes]]]:
    """Return the artifact's manifest and its blobs; the same signatures always make the same one."""
    blobs = [(EMPTY, b"{}")]
    for one in sorted(signatures, key=lambda one: (one.name, one.image.hex, one.signature)):
        annotations = {SIGNS: str(one.image), TITLE: one.name}
        layer = Descriptor(SIGNATURE, OciDigest.of(one.signature), len(one.signature), annotations)
        blobs.append((layer, one.signature))
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": SIGNATURES,
        "config": to_json(EMPTY),
        "layers": [to_json(layer) for layer, _ in blobs[1:]],
        "subject": to_json(Descriptor(subject.media_type, subject.digest, subject.size, {})),
    }
    return manifest, blobs


def find_signatures(
    source: ImageSource, subject: OciDigest, wanted: Collection[OciDigest], warn: Callable[[str], None]
) -> Iterator[Detached]:
    """Yield the signatures of what is `wanted` that are kept beside the image with this manifest.

    An artifact that cannot be read is named and passed over: whoever may write there must not stop the others.
    """
    artifacts = source.referrers(subject)
    if len(artifacts) > MAX_ARTIFACTS:
        warn(f"{len(artifacts)} artifacts with signatures are beside {source.reference}, {MAX_ARTIFACTS} are looked at")
    for artifact in artifacts[-MAX_ARTIFACTS:]:
        try:
            yield from _read(source, artifact, subject, wanted)
        except Error as error:
            warn(f"the signatures in {artifact.digest} are passed over: {error.message}")


def _read(
    source: ImageSource, artifact: Descriptor, subject: OciDigest, wanted: Collection[OciDigest]
) -> Iterator[Detached]:
    what = f"the artifact {artifact.digest}"
    document = parse_object(source.read(artifact, what), what)
    if document.get("artifactType") != SIGNATURES:
        raise FormatError(f"{what} is announced as {SIGNATURES}, and is none")
    if digest_of(object_of(document, "subject", what), "digest", what) != subject:
        return
    for value in list_of(document, "layers", what, MAX_LAYERS):
        layer = parse_descriptor(value, what)
        signs = OciDigest.parse(text_of(layer.annotations, SIGNS, what))
        if layer.media_type != SIGNATURE or signs not in wanted:
            continue
        if layer.size > MAX_SIGNATURE:
            raise LimitError(f"a signature of {layer.size} bytes, at most {MAX_SIGNATURE} are read")
        yield Detached(layer.annotations.get(TITLE, ""), signs, read_document(source.open(layer)))
