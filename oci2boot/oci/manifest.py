"""Manifests, indexes and configs. OCI image-spec 1.1: descriptor.md, manifest.md, image-index.md, config.md;
Docker's "Image Manifest Version 2, Schema 2" says the same in other media types.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from oci2boot.digest import OciDigest
from oci2boot.errors import FormatError, ImageError
from oci2boot.oci.documents import digest_of, list_of, object_of, parse_object, size_of, text_of, texts_of

Compression = Literal["none", "gzip", "zstd"]

OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
MANIFEST_TYPES: Final = (OCI_MANIFEST, DOCKER_MANIFEST)
INDEX_TYPES: Final = (OCI_INDEX, DOCKER_LIST)
OCI_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
CONFIG_TYPES: Final = (OCI_CONFIG, "application/vnd.docker.container.image.v1+json")

SIGNATURES: Final = "application/vnd.oci2boot.signatures.v1"
"""The artifact type of signatures that are kept beside an image; `referrers` says what is in one."""

OCI_LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
_OCI_NONDISTRIBUTABLE = "application/vnd.oci.image.layer.nondistributable.v1.tar"
_DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
LAYER_TYPES: Final[Mapping[str, Compression]] = {
    OCI_LAYER: "none",
    f"{OCI_LAYER}+gzip": "gzip",
    f"{OCI_LAYER}+zstd": "zstd",
    _OCI_NONDISTRIBUTABLE: "none",
    f"{_OCI_NONDISTRIBUTABLE}+gzip": "gzip",
    f"{_OCI_NONDISTRIBUTABLE}+zstd": "zstd",
    _DOCKER_LAYER: "none",
    f"{_DOCKER_LAYER}.gzip": "gzip",
    f"{_DOCKER_LAYER}.zstd": "zstd",
}

MAX_LAYERS: Final = 512
MAX_MANIFESTS: Final = 4096
"""Entries of an index."""
REF_NAME: Final = "org.opencontainers.image.ref.name"


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What a blob or a document is, and which bytes."""

    media_type: str
    digest: OciDigest
    size: int
    """In bytes."""
    annotations: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Layer(Descriptor):
    """A layer's blob, and the tar that is in it."""

    diff_id: OciDigest
    """Of the tar, after decompression."""

    @property
    def compression(self) -> Compression:
        return LAYER_TYPES[self.media_type]


@dataclass(frozen=True, slots=True)
class Platform:
    """What an image runs on, in Go's words: `linux/amd64`, `linux/arm/v7`."""

    os: str
    architecture: str
    variant: str = ""

    @classmethod
    def parse(cls, text: str) -> "Platform":
        words = text.lower().split("/")
        if len(words) not in (2, 3) or not all(word.isascii() and word.replace("_", "").isalnum() for word in words):
            raise FormatError(f"not a platform: {text!r}", hint="for example linux/amd64 or linux/arm/v7")
        return cls(words[0], _ARCHITECTURES.get(words[1], words[1]), *words[2:])

    def matches(self, other: "Platform") -> bool:
        """Whether an image for `other` is one for this; without a variant any will do."""
        if (self.os, self.architecture) != (other.os, other.architecture):
            return False
        return not self.variant or self.full_variant == other.full_variant

    @property
    def full_variant(self) -> str:
        return self.variant or _USUAL_VARIANT.get(self.architecture, "")

    def __str__(self) -> str:
        return "/".join(filter(None, (self.os, self.architecture, self.variant)))


_ARCHITECTURES: Final = {
    "x86_64": "amd64",
    "aarch64": "arm64",
    "armv7l": "arm",
    "armhf": "arm",
    "i386": "386",
    "i686": "386",
    "loongarch64": "loong64",
}
"""The kernel's and Debian's words to Go's, where they differ."""
_USUAL_VARIANT: Final = {"arm64": "v8", "arm": "v7", "amd64": "v1"}


@dataclass(frozen=True, slots=True)
class IndexEntry:
    descriptor: Descriptor
    platform: Platform | None
    artifact_type: str = ""
    """Of what is no image: a signature, a bill of materials."""


@dataclass(frozen=True, slots=True)
class Index:
    media_type: str
    entries: tuple[IndexEntry, ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    media_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Config:
    platform: Platform
    diff_ids: tuple[OciDigest, ...]
    labels: Mapping[str, str]


def oci_type(layer_type: str) -> str:
    """Return the OCI media type of a layer that has Docker's; the bytes are the same."""
    if not layer_type.startswith(_DOCKER_LAYER):
        return layer_type
    compression = LAYER_TYPES[layer_type]
    return OCI_LAYER if compression == "none" else f"{OCI_LAYER}+{compression}"


def parse_descriptor(value: Any, what: str) -> Descriptor:
    if not isinstance(value, dict):
        raise FormatError(f"{what} has a descriptor that is no object")
    return Descriptor(
        text_of(value, "mediaType", what),
        digest_of(value, "digest", what),
        size_of(value, "size", what),
        texts_of(value, "annotations", what),
    )


def parse_referrers(data: bytes, what: str) -> list[Descriptor]:
    """Read a list of what refers to an image, and return the signatures in it; a registry need not have filtered."""
    entries = parse_layout_index(data, what).entries
    return [entry.descriptor for entry in entries if entry.artifact_type == SIGNATURES]


def referrers_tag(subject: OciDigest) -> str:
    """Return where the list is in a registry that cannot make it. distribution-spec, "Referrers Tag Schema"."""
    return f"{subject.algorithm}-{subject.hex}"[:128]


def _check_kind(document: Mapping[str, Any], promised: str | None, what: str) -> str:
    """Return the document's media type; `promised` is what its descriptor or its server called it.

    A document that can be read as two kinds is refused, whatever it is called: CVE-2021-41190.
    """
    if "fsLayers" in document or document.get("schemaVersion") == 1:
        raise FormatError(
            f"{what} is of Docker's schema 1, which names no layer reliably",
            hint="push the image again with a current tool",
        )
    if document.get("schemaVersion") != 2 or isinstance(document["schemaVersion"], bool | float):
        raise FormatError(f"{what} does not have schemaVersion 2")
    own = text_of(document, "mediaType", what) if "mediaType" in document else None
    kind = own or promised
    if own and promised and own != promised:
        raise FormatError(f"{what} is announced as {promised} and calls itself {own}")
    if kind is None or kind not in (*MANIFEST_TYPES, *INDEX_TYPES):
        raise ImageError(f"{what} is not of a container image but of type {kind or 'unknown'}")
    is_index, is_manifest = "manifests" in document, "layers" in document or "config" in document
    if is_index and is_manifest:
        raise FormatError(f"{what} is ambiguous: it has both layers and manifests")
    if (kind in INDEX_TYPES) != is_index:
        raise FormatError(f"{what} does not have the members of its type {kind}")
    return kind


def parse_document(data: bytes, promised: str | None, what: str) -> Index | Manifest:
    """Read an index or a manifest; the media type promised for it must be its own."""
    document = parse_object(data, what)
    kind = _check_kind(document, promised, what)
    return (_parse_index if kind in INDEX_TYPES else _parse_manifest)(document, kind, what)


def parse_layout_index(data: bytes, what: str) -> Index:
    """Read a layout's index.json, which seldom says its media type."""
    document = parse_object(data, what)
    return _parse_index(document, _check_kind(document, OCI_INDEX, what), what)


def _parse_index(document: Mapping[str, Any], kind: str, what: str) -> Index:
    entries = []
    for value in list_of(document, "manifests", what, MAX_MANIFESTS):
        descriptor = parse_descriptor(value, what)
        platform = None
        if value.get("platform") is not None:
            platform = _parse_platform(object_of(value, "platform", what), what)
        entries.append(IndexEntry(descriptor, platform, text_of(value, "artifactType", what, "")))
    return Index(kind, tuple(entries))


def _parse_platform(holder: Mapping[str, Any], what: str) -> Platform:
    return Platform(
        text_of(holder, "os", what, ""), text_of(holder, "architecture", what, ""), text_of(holder, "variant", what, "")
    )


def _parse_manifest(document: Mapping[str, Any], kind: str, what: str) -> Manifest:
    config = parse_descriptor(document.get("config"), what)
    if config.media_type not in CONFIG_TYPES:
        artifact = document.get("artifactType") or config.media_type
        raise ImageError(
            f"{what} is not of a container image but of an artifact: {str(artifact)[:120]!r}",
            hint="signatures, SBOMs and Helm charts are kept in registries, too; give the image itself",
        )
    layers = [parse_descriptor(value, what) for value in list_of(document, "layers", what, MAX_LAYERS)]
    for layer in layers:
        if layer.media_type not in LAYER_TYPES:
            raise FormatError(
                f"{what} has a layer of unknown type {layer.media_type[:120]!r}",
                hint="if it is encrypted, decrypt it with skopeo copy first"
                if layer.media_type.endswith("+encrypted")
                else "known are plain, gzip and zstd tars",
            )
    return Manifest(kind, config, tuple(layers), texts_of(document, "annotations", what))


def parse_config(data: bytes, what: str) -> Config:
    document = parse_object(data, what)
    rootfs = object_of(document, "rootfs", what)
    if rootfs.get("type") != "layers":
        raise FormatError(f"{what} has a rootfs that is not made of layers")
    diff_ids = []
    for value in list_of(rootfs, "diff_ids", what, MAX_LAYERS):
        if not isinstance(value, str):
            raise FormatError(f"{what} has a diff_id that is no string")
        diff_ids.append(OciDigest.parse(value))
    inner = object_of(document, "config", what) if document.get("config") is not None else {}
    return Config(_parse_platform(document, what), tuple(diff_ids), texts_of(inner, "Labels", what))
