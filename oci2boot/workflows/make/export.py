"""A converted image out of the store again: the tar of each layer, byte for byte, with its config and a manifest."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oci2boot.digest import OciDigest
from oci2boot.errors import StoreError
from oci2boot.oci.destination import open_destination
from oci2boot.oci.documents import MAX_DOCUMENT, parse_object
from oci2boot.oci.manifest import (
    OCI_CONFIG,
    OCI_LAYER,
    OCI_MANIFEST,
    Descriptor,
    Manifest,
    parse_config,
    parse_document,
)
from oci2boot.oci.outgoing import Open, pack_json, to_json
from oci2boot.oci.reference import Reference
from oci2boot.oci.source import SourceOptions
from oci2boot.store.images import find_image
from oci2boot.store.layers import layer_tar, stream_name
from oci2boot.store.repository import Repository
from oci2boot.workflows.progress import Report, Step


@dataclass(frozen=True, slots=True)
class Exported:
    destination: str
    manifest: OciDigest
    original: OciDigest
    """Of the manifest as it was fetched: that one names compressed layers, which the store does not keep."""
    layers: int

    def to_json(self) -> dict[str, Any]:
        return {
            "destination": self.destination,
            "manifest": str(self.manifest),
            "original_manifest": str(self.original),
            "layers": self.layers,
        }


def export(repo: Path, name: str | None, reference: Reference, options: SourceOptions, report: Report) -> Exported:
    """Write an image, its layers uncompressed; what is in it, and so its digest, stays the same."""
    destination = open_destination(reference, options)
    with Repository.open(repo) as repository:
        bootable = find_image(repository, name)
        if bootable.manifest is None:
            raise StoreError(
                f"{bootable.name} came from a directory and has no layers", hint="`oci2boot seal dir:…` makes an image"
            )
        what = f"the manifest of {bootable.name}"
        data = _stored(repository, f"oci-manifest-{bootable.manifest}")
        original = parse_document(data, None, what)
        assert isinstance(original, Manifest)
        config = _stored(repository, f"oci-config-{original.config.digest}")
        layers: list[tuple[Descriptor, Open]] = []
        for diff_id, layer in zip(parse_config(config, what).diff_ids, original.layers, strict=True):
            size = repository.read_stream(stream_name(diff_id)).size
            layers.append((Descriptor(OCI_LAYER, diff_id, size, layer.annotations), _tar(repository, diff_id)))
        config_descriptor = Descriptor(OCI_CONFIG, OciDigest.of(config), len(config), {})
        document = {
            **parse_object(data, what),
            "mediaType": OCI_MANIFEST,
            "config": to_json(config_descriptor),
            "layers": [to_json(descriptor) for descriptor, _ in layers],
        }
        manifest = pack_json(document)
        with destination:
            for blob, content in [*layers, (config_descriptor, lambda: [config])]:
                there = destination.has(blob)
                if not there:
                    destination.put(blob, content)
                note = "already there" if there else "written"
                report(Step(f"blob {blob.digest.hex[:12]}", blob.size, blob.size, finished=True, note=note))
            descriptor = Descriptor(OCI_MANIFEST, OciDigest.of(manifest), len(manifest), {})
            destination.name(descriptor, manifest)
    return Exported(str(reference), descriptor.digest, bootable.manifest, len(layers))


def _stored(repository: Repository, stream: str) -> bytes:
    return repository.read_object(repository.read_stream(stream).sole_object(), MAX_DOCUMENT)


def _tar(repository: Repository, diff_id: OciDigest) -> Open:
    def pieces() -> Iterator[bytes]:
        return layer_tar(repository, diff_id)

    return pieces
