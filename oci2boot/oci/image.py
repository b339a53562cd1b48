"""An image as a value, and how a source comes by it: index, manifest, config, each checked before the next."""

import platform as host
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

from oci2boot.digest import OciDigest
from oci2boot.errors import FormatError, ImageError, PlatformError, SourceError
from oci2boot.oci.blob import Blob, read_document
from oci2boot.oci.manifest import (
    INDEX_TYPES,
    MANIFEST_TYPES,
    REF_NAME,
    Descriptor,
    Index,
    IndexEntry,
    Layer,
    Manifest,
    Platform,
    parse_config,
    parse_document,
)
from oci2boot.oci.reference import Reference


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """One platform's image: its documents as they are in the source, byte for byte, and what they say."""

    reference: Reference
    descriptor: Descriptor
    """Of the manifest."""
    manifest: bytes
    config_descriptor: Descriptor
    config: bytes
    layers: tuple[Layer, ...]
    """Lowest first."""
    platform: Platform
    annotations: Mapping[str, str]
    labels: Mapping[str, str]

    @property
    def manifest_digest(self) -> OciDigest:
        return self.descriptor.digest

    @property
    def config_digest(self) -> OciDigest:
        return self.config_descriptor.digest

    @property
    def size(self) -> int:
        """Bytes of all layers as they are in the source."""
        return sum(layer.size for layer in self.layers)


class ImageSource(ABC):
    """A place that has the image of one reference; a context manager, and safe for several threads in `open`."""

    def __init__(self, reference: Reference, platform: Platform | None) -> None:
        self.reference = reference
        self._platform = platform

    @abstractmethod
    def _root(self) -> tuple[Descriptor, bytes]:
        """Return the index or manifest that the reference names, with its digest checked.

        Its media type is empty where the source does not tell.
        """

    @abstractmethod
    def _document(self, descriptor: Descriptor, what: str) -> bytes:
        """Return a manifest that an index names, checked."""

    @abstractmethod
    def open(self, descriptor: Descriptor) -> Blob:
        """Return a layer's blob, or a config's; it checks digest and size while it is read."""

    def referrers(self, subject: OciDigest) -> list[Descriptor]:  # noqa: ARG002 most sources have none
        """Return the signatures that are kept beside the image: artifacts that may be of this manifest."""
        return []

    def read(self, descriptor: Descriptor, what: str) -> bytes:
        """Return a small manifest, checked."""
        return self._document(descriptor, what)

    @abstractmethod
    def close(self) -> None:
        """Let go of connections and files; blobs that are open stay so."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fetch(self) -> Image:
        """Return the image for the platform asked for, or for this machine's."""
        descriptor, data = self._root()
        what = f"the manifest of {self.reference}"
        document = parse_document(data, descriptor.media_type or None, what)
        if isinstance(document, Index):
            descriptor = choose_platform(document, self._platform, str(self.reference))
            data = self._document(descriptor, what)
            document = parse_document(data, descriptor.media_type, what)
            if isinstance(document, Index):
                raise FormatError(f"{self.reference} is an index of indexes, not an image")
        return self._image(descriptor, data, document)

    def _image(self, descriptor: Descriptor, data: bytes, manifest: Manifest) -> Image:
        config_data = read_document(self.open(manifest.config))
        config = parse_config(config_data, f"the config of {self.reference}")
        if self._platform and not self._platform.matches(config.platform):
            raise ImageError(f"{self.reference} is an image for {config.platform}, not for {self._platform}")
        if len(config.diff_ids) != len(manifest.layers):
            raise FormatError(
                f"{self.reference} has {len(manifest.layers)} layers and {len(config.diff_ids)} diff_ids in its config"
            )
        layers = tuple(
            Layer(layer.media_type, layer.digest, layer.size, layer.annotations, diff_id)
            for layer, diff_id in zip(manifest.layers, config.diff_ids, strict=True)
        )
        return Image(
            reference=self.reference,
            descriptor=replace(descriptor, media_type=manifest.media_type),
            manifest=data,
            config_descriptor=manifest.config,
            config=config_data,
            layers=layers,
            platform=config.platform,
            annotations=manifest.annotations,
            labels=config.labels,
        )


def host_platform() -> Platform:
    return Platform.parse(f"linux/{host.machine()}")


def choose_platform(index: Index, wanted: Platform | None, what: str) -> Descriptor:
    """Return the one image of an index for a platform (by default this machine's).

    Where several variants would do, the usual one is taken; an index that still leaves a choice is an error.
    """
    entries = index.entries
    if len(entries) == 1 and entries[0].platform is None:
        return entries[0].descriptor
    asked = wanted or host_platform()
    fitting = _matching(entries, asked)
    if len(fitting) == 1:
        return fitting[0]
    # Attestations of BuildKit are listed as images for unknown/unknown.
    known = sorted({str(entry.platform) for entry in entries if entry.platform and entry.platform.os != "unknown"})
    hint = f"it has {', '.join(known) or 'no platforms'}" if len(known) < 40 else None
    if fitting:
        raise PlatformError(f"{what} has {len(fitting)} images for {asked}", hint=hint)
    raise PlatformError(f"{what} has no image for {asked}", hint=hint)


def _matching(entries: tuple[IndexEntry, ...], asked: Platform) -> list[Descriptor]:
    def distinct(candidates: list[IndexEntry]) -> list[Descriptor]:
        return list({entry.descriptor.digest: entry.descriptor for entry in candidates}.values())

    fitting = [entry for entry in entries if entry.platform and asked.matches(entry.platform)]
    found = distinct(fitting)
    if len(found) > 1:
        usual = Platform(asked.os, asked.architecture).full_variant
        found = distinct([entry for entry in fitting if entry.platform and entry.platform.full_variant == usual])
        return found or distinct(fitting)
    return found


def root_of_layout(index: Index, tag: str | None, reference: Reference) -> Descriptor:
    """Return what a layout's index has under `tag`, or the only thing in it."""
    images = [
        entry.descriptor
        for entry in index.entries
        if entry.descriptor.media_type in (*MANIFEST_TYPES, *INDEX_TYPES)
        and (not entry.artifact_type or REF_NAME in entry.descriptor.annotations)
    ]
    tags = sorted({image.annotations[REF_NAME] for image in images if REF_NAME in image.annotations})
    more = " and more" if len(tags) > 20 else ""
    hint = f"its tags are {', '.join(tags[:20])}{more}" if tags else "no image in it has a tag"
    named = [image for image in images if tag is None or image.annotations.get(REF_NAME) == tag]
    if len({image.digest for image in named}) == 1:
        return named[0]
    if not images:
        raise SourceError(f"{reference} has no image in it")
    if tag is None:
        raise SourceError(f"{reference} has {len(images)} images; say which by its tag", hint=hint)
    if not named:
        raise SourceError(f"{reference} has no image with that tag", hint=hint)
    raise SourceError(f"{reference} has {len(named)} images under that tag", hint=hint)
