"""A source in the store, its layers merged: what `convert` and `seal` begin with."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from oci2boot.boot.layers import Layer, Mark, UkiLayers, boot_layers, mark_layers, needs_boot_tree, study
from oci2boot.digest import OTHER_HASH, External, OciDigest, VerityDigest
from oci2boot.errors import SourceError
from oci2boot.formats.tar import Entry
from oci2boot.oci.image import Image, ImageSource, host_platform
from oci2boot.oci.reference import DirectoryReference, DumpfileReference, Reference
from oci2boot.oci.source import SourceOptions, open_source
from oci2boot.store.fsck import measure_file
from oci2boot.store.images import OciRecord
from oci2boot.store.objects import ObjectBatch
from oci2boot.store.repository import Repository
from oci2boot.system.files import plain_errors
from oci2boot.tree.merge import merge
from oci2boot.tree.model import Directory, File
from oci2boot.workflows.make.canonical import Read, Warn, reader
from oci2boot.workflows.make.directory import USUAL, AskedTimes, read_directory
from oci2boot.workflows.make.layers import ensure_layers
from oci2boot.workflows.progress import Report
from oci2boot.workflows.sources import tell_path


@dataclass(frozen=True, slots=True)
class Unpacked:
    tree: Directory
    """As the layers make it: its /boot not emptied, nothing labelled. What boots is taken from it."""
    architecture: str
    oci: OciRecord | None
    system: Directory
    """What the digest is of: without layers that are there for a UKI. Mostly the same tree."""
    uki_layers: UkiLayers = field(default_factory=UkiLayers)

    @property
    def system_layers(self) -> tuple[OciDigest, ...]:
        """The diff_ids of the layers that `system` is made of."""
        assert self.oci
        left_out = self.uki_layers.left_out
        return tuple(diff_id for number, diff_id in enumerate(self.oci.diff_ids, 1) if number not in left_out)


def unpack(
    reference: Reference,
    options: SourceOptions,
    repository: Repository,
    report: Report,
    warn: Warn,
    uki_layer: int | None = None,
    times: AskedTimes = USUAL,
) -> Unpacked:
    tell_path(reference, report)
    match reference:
        case DirectoryReference(path):
            tree = _store_directory(path, times, repository)
            return Unpacked(tree, host_platform().architecture, None, tree)
        case DumpfileReference():
            raise SourceError("a dump file has no content to boot", hint="`oci2boot digest` takes it")
    with open_source(reference, options) as source:
        return unpack_image(source, source.fetch(), repository, report, warn, uki_layer)


def unpack_image(
    source: ImageSource,
    image: Image,
    repository: Repository,
    report: Report,
    warn: Warn,
    uki_layer: int | None = None,
) -> Unpacked:
    """Store the layers and merge them; `uki_layer` is the number of one that is there for a UKI."""
    marked = marked_layers(image, uki_layer)
    entries = ensure_layers(source, image, repository, report)
    record = OciRecord(
        manifest=image.manifest,
        manifest_digest=image.manifest_digest,
        config=image.config,
        config_digest=image.config_digest,
        diff_ids=tuple(layer.diff_id for layer in image.layers),
    )
    found, system = merge_system(entries, marked, warn)
    tree = merge(boot_layers(entries, marked), lambda _: None) if needs_boot_tree(entries, found) else system
    return Unpacked(tree, image.platform.architecture, record, system, found)


def marked_layers(image: Image, uki_layer: int | None) -> Mapping[int, Mark]:
    return mark_layers([Layer(layer.diff_id, layer.annotations) for layer in image.layers], image.labels, uki_layer)


def merge_system(
    layers: Sequence[Sequence[Entry]], marked: Mapping[int, Mark], warn: Warn
) -> tuple[UkiLayers, Directory]:
    """Merge what the root file system consists of."""
    found = study(layers, marked)
    for note in found.notes:
        warn(note)
    return found, merge((layer for number, layer in enumerate(layers, 1) if number not in found.left_out), warn)


def _store_directory(path: Path, times: AskedTimes, repository: Repository) -> Directory:
    with ObjectBatch(repository) as batch:

        def keep(pieces: Iterator[bytes]) -> VerityDigest:
            return batch.add_pieces(pieces)

        return read_directory(path, times, keep, repository.algorithm)


def object_reader(repository: Repository) -> Read:
    def read(content: External) -> bytes:
        return repository.read_object(content.digest)

    return reader(read)


def renamer(repository: Repository) -> Callable[[File], External]:
    """Return what names a file's content by the other hash."""
    known: dict[VerityDigest, External] = {}

    def rename(file: File) -> External:
        content = file.content
        assert isinstance(content, External)
        if content.digest not in known:
            path = repository.object_path(content.digest)
            with plain_errors(SourceError, f"read {path}"):
                known[content.digest] = External(measure_file(path, OTHER_HASH[content.digest.algorithm]), content.size)
        return known[content.digest]

    return rename
