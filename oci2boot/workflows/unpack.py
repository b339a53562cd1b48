"""A source in the store, its layers merged: what `convert` and `seal` begin with."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from oci2boot.digest import External, VerityDigest
from oci2boot.errors import SourceError
from oci2boot.oci.directory import scan
from oci2boot.oci.image import Image, ImageSource, host_platform
from oci2boot.oci.reference import DirectoryReference, DumpfileReference, Reference
from oci2boot.oci.source import SourceOptions, open_source
from oci2boot.store.images import OciRecord
from oci2boot.store.objects import ObjectBatch
from oci2boot.store.repository import Repository
from oci2boot.tree.merge import merge
from oci2boot.tree.model import Directory
from oci2boot.workflows.events import Report
from oci2boot.workflows.layers import ensure_layers
from oci2boot.workflows.root import Read, Warn, reader


@dataclass(frozen=True, slots=True)
class Unpacked:
    tree: Directory
    """As the layers make it: its /boot not emptied, nothing labelled."""
    architecture: str
    oci: OciRecord | None


def unpack(
    reference: Reference, options: SourceOptions, repository: Repository, report: Report, warn: Warn
) -> Unpacked:
    match reference:
        case DirectoryReference(path):
            return Unpacked(_store_directory(path, repository), host_platform().architecture, None)
        case DumpfileReference():
            raise SourceError("a dump file has no content to boot", hint="`oci2boot digest` takes it")
    with open_source(reference, options) as source:
        return unpack_image(source, source.fetch(), repository, report, warn)


def unpack_image(source: ImageSource, image: Image, repository: Repository, report: Report, warn: Warn) -> Unpacked:
    entries = ensure_layers(source, image, repository, report)
    record = OciRecord(
        manifest=image.manifest,
        manifest_digest=image.manifest_digest,
        config=image.config,
        config_digest=image.config_digest,
        diff_ids=tuple(layer.diff_id for layer in image.layers),
    )
    return Unpacked(merge(entries, warn), image.platform.architecture, record)


def _store_directory(path: Path, repository: Repository) -> Directory:
    with ObjectBatch(repository) as batch:

        def keep(pieces: Iterator[bytes]) -> VerityDigest:
            return batch.add_pieces(pieces)

        return scan(path, keep)


def object_reader(repository: Repository) -> Read:
    def read(content: External) -> bytes:
        return repository.read_object(content.digest)

    return reader(read)
