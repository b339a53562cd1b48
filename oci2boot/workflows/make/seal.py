"""An image becomes a sealed one: the same layers, and one more with the UKI that promises what they hold."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Annotated, Any, Final

from oci2boot.boot.layers import ANNOTATION
from oci2boot.boot.uki_layer import kernel_layer, shipped_path, uki_layer
from oci2boot.digest import OTHER_HASH, OciDigest
from oci2boot.errors import DigestError, FormatError
from oci2boot.formats.cmdline import ComposefsArg
from oci2boot.formats.gzip import store
from oci2boot.formats.pieces import Pieces
from oci2boot.formats.tar import Entry
from oci2boot.formats.tar_writer import write_tar
from oci2boot.oci.blob import PIECE
from oci2boot.oci.destination import open_destination
from oci2boot.oci.documents import parse_object
from oci2boot.oci.image import ImageSource
from oci2boot.oci.manifest import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, Descriptor, oci_type
from oci2boot.oci.outgoing import ImageDestination, Open, checked, pack_json, to_json
from oci2boot.oci.reference import DirectoryReference
from oci2boot.oci.source import SourceOptions, open_source
from oci2boot.rootfs.composefs import Rootfs, build_rootfs
from oci2boot.store.images import OciRecord
from oci2boot.store.layers import read_layer, stage_layer
from oci2boot.store.objects import ObjectBatch, commit
from oci2boot.store.repository import Repository
from oci2boot.tree.entries import entries_of
from oci2boot.tree.merge import merge
from oci2boot.workflows.keys.signing import check_signing, sign_files
from oci2boot.workflows.lint.model import Subject
from oci2boot.workflows.lint.run import check, lints_of
from oci2boot.workflows.make.canonical import Warn, canonical_tree, karg_of, tell_size
from oci2boot.workflows.make.directory import AskedTimes
from oci2boot.workflows.make.kernel_from import KernelFrom, boot_root
from oci2boot.workflows.make.payload import build_payload, promise_of, version_of
from oci2boot.workflows.make.rules import Workbench, rules_of
from oci2boot.workflows.make.second_view import check_unpacked
from oci2boot.workflows.make.started import loader_to_sign
from oci2boot.workflows.make.unpack import Unpacked, object_reader, renamer, unpack, unpack_image
from oci2boot.workflows.options import Option
from oci2boot.workflows.progress import Report, Step, Told, Warned, once
from oci2boot.workflows.requests import BootOptions, Linting, NewHash, NewRepo, TreeOptions, UkiLayer
from oci2boot.workflows.sources import Destination, Source, tell_path

NO_ANNOTATIONS: Final[Mapping[str, str]] = MappingProxyType({})
_COMPOSEFS: Final = "composefs."


@dataclass(frozen=True, slots=True, kw_only=True)
class SealRequest:
    source: Source
    destination: Destination
    repo: NewRepo
    hash: NewHash = None
    ship_erofs: Annotated[bool, Option("--ship-erofs", "put the rootfs image into the image too, beside the UKI")] = (
        False
    )
    uki_layer: UkiLayer = None
    kernel_from: KernelFrom = field(default_factory=KernelFrom)
    dry_run: Annotated[bool, Option("--dry-run", "only say what the image would be; write nothing")] = False
    options: SourceOptions = field(default_factory=SourceOptions)
    """For source and destination."""
    tree: TreeOptions = field(default_factory=TreeOptions)
    boot: BootOptions = field(default_factory=BootOptions)
    linting: Linting = field(default_factory=Linting)


@dataclass(frozen=True, slots=True)
class NewLayer:
    """A layer that is made here, by what makes it: it is not held."""

    descriptor: Descriptor
    content: Open
    tar: Descriptor
    """What it is before compression; its digest is the diff_id."""
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedImage:
    destination: str
    manifest: OciDigest
    layer: OciDigest
    """Of the UKI."""
    rootfs: str
    karg: str
    uki: str
    """Its path in the image."""
    loader: tuple[str, ...]
    """Paths of the signed programs that start it, if any came with it."""
    written: bool

    def to_json(self) -> dict[str, Any]:
        return {
            "destination": self.destination,
            "manifest": str(self.manifest),
            "layer": str(self.layer),
            "rootfs": self.rootfs,
            "karg": self.karg,
            "uki": self.uki,
            "loader": list(self.loader),
            "written": self.written,
        }


@dataclass(frozen=True, slots=True)
class Base:
    """What is sealed: its documents as JSON, and its blobs."""

    unpacked: Unpacked
    manifest: Mapping[str, Any]
    config: Mapping[str, Any]
    blobs: tuple[tuple[Descriptor, Open], ...]


def seal(request: SealRequest, report: Report) -> SealedImage | None:
    """Write the sealed image, its name last; None where it only asked for signatures."""

    report = once(report)

    def warn(text: str) -> None:
        report(Warned(text))

    lints_of(request.linting.skip)
    if request.boot.signing:
        check_signing(request.boot.signing)
    destination = None if request.dry_run else open_destination(request.destination, request.options)
    with ExitStack() as stack:
        repository = stack.enter_context(Repository.ensure(request.repo, request.hash))
        base = _open_base(request, repository, stack, report, warn)
        assert base.unpacked.oci
        read = object_reader(repository)
        # What goes into the UKI is taken from the image as it was, or from another root.
        image, architecture = base.unpacked.tree, base.unpacked.architecture
        boot = replace(request.boot, flow="local")
        parts = boot_root(request.kernel_from, image, read, boot, architecture, repository.algorithm, report)
        subject = Subject(tree=parts.image, read=parts.read_image, architecture=architecture, boot=parts.boot)
        warnings = check(subject, str(request.source), request.linting, report)
        if boot.strip_kernel and (removed := kernel_layer(base.unpacked.system)):
            base = _with_layer(repository, base, _new_layer(removed), "the kernel is in the UKI")
        tree = canonical_tree(base.unpacked.system, request.tree, read, warn)
        rootfs = build_rootfs(tree, request.tree.erofs_version, repository.algorithm)
        report(Told(tell_size(rootfs)))
        check_unpacked(repository, base.unpacked.system_layers, tree, rootfs, request.tree, read, report)

        karg = karg_of(rootfs, boot.karg_style)
        kargs = [karg, *(_by_other_hash(karg, request, base, repository) if boot.both_hashes else [])]
        version = version_of(image, base.unpacked.oci)
        payload = build_payload(
            parts.tree, architecture, version, promise_of(kargs, parts.boot), parts.boot, parts.read, report
        )
        for warning in warnings:
            report(warning)
        loader = loader_to_sign(parts.tree, parts.read, architecture, parts.boot, report)
        files: Mapping[str, bytes] = {payload.uki_path: payload.uki, **loader}
        if request.boot.signing:
            files = sign_files(files, request.boot.signing, report)
            if request.boot.signing.request:
                return None
        placed = [(b"boot/" + path.encode(), data) for path, data in files.items()]
        if request.ship_erofs:
            placed.append((shipped_path(rootfs.digest), rootfs.image))
        layer = _new_layer(uki_layer(image, read, placed), {ANNOTATION: str(karg)})
        _check_sealed(repository, base, layer, request, rootfs)

        config = pack_json(_config(base, layer, str(karg)))
        config_descriptor = _descriptor(OCI_CONFIG, config)
        manifest = pack_json(_manifest(base, layer, config_descriptor, rootfs))
        descriptor = _descriptor(OCI_MANIFEST, manifest)
        if destination:
            stack.enter_context(destination)
            blobs = [*base.blobs, (layer.descriptor, layer.content), (config_descriptor, lambda: [config])]
            _put(destination, blobs, report)
            destination.name(descriptor, manifest)
    return SealedImage(
        destination=str(request.destination),
        manifest=descriptor.digest,
        layer=layer.descriptor.digest,
        rootfs=str(rootfs.digest),
        karg=str(karg),
        uki=f"/boot/{payload.uki_path}",
        loader=tuple(f"/boot/{path}" for path in loader),
        written=not request.dry_run,
    )


def _by_other_hash(
    karg: ComposefsArg, request: SealRequest, base: Base, repository: Repository
) -> Iterator[ComposefsArg]:
    rules = rules_of(request.tree, repository.algorithm)
    bench = Workbench(base.unpacked.system, rules, object_reader(repository), renamer(repository))
    yield ComposefsArg(bench.digest(replace(rules, hash=OTHER_HASH[rules.hash])), karg.version)


def _put(destination: ImageDestination, blobs: Iterable[tuple[Descriptor, Open]], report: Report) -> None:
    for blob, content in blobs:
        task = f"blob {blob.digest.hex[:12]}"
        there = destination.has(blob)
        if not there:
            destination.put(blob, _reporting(content, task, blob.size, report))
        note = "already there" if there else "written"
        report(Step(task, blob.size, blob.size, finished=True, note=note))


def _open_base(request: SealRequest, repository: Repository, stack: ExitStack, report: Report, warn: Warn) -> Base:
    times = AskedTimes.of(request.tree, request.source)
    if isinstance(request.source, DirectoryReference):
        return _directory_base(request, times, repository, report, warn)
    tell_path(request.source, report)
    source = stack.enter_context(open_source(request.source, request.options))
    image = source.fetch()
    unpacked = unpack_image(source, image, repository, report, warn, request.uki_layer)
    left_out = unpacked.uki_layers.left_out
    blobs = tuple(
        (_plain(layer, keep_mark=number in left_out), _opener(source, layer))
        for number, layer in enumerate(image.layers, 1)
    )
    what = str(request.source)
    return Base(unpacked, parse_object(image.manifest, what), parse_object(image.config, what), blobs)


def _directory_base(
    request: SealRequest, times: AskedTimes, repository: Repository, report: Report, warn: Warn
) -> Base:
    """Make a layer of a directory, uncompressed: what it is then depends on the files alone."""
    if request.uki_layer is not None:
        raise FormatError(
            f"--uki-layer is the number of a layer, and {request.source} is a directory", hint="leave it out"
        )
    unpacked = unpack(request.source, request.options, repository, report, warn, times=times)
    entries = list(entries_of(unpacked.tree, warn))

    def tar() -> Iterator[bytes]:
        return write_tar(entries, lambda content: [repository.read_object(content.digest)])

    descriptor = Descriptor(OCI_LAYER, *_digest(tar()), {})
    diff_id = descriptor.digest
    _, batch = stage_layer(repository, diff_id, Pieces(checked(descriptor, tar())).read)
    commit(repository, [batch])
    config = {
        "architecture": unpacked.architecture,
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [str(diff_id)]},
        "history": [{"created_by": "oci2boot seal"}],
    }
    data = pack_json(config)
    record = OciRecord(b"", OciDigest.of(b""), data, OciDigest.of(data), (diff_id,))
    return Base(replace(unpacked, oci=record), {}, config, ((descriptor, tar),))


def _plain(layer: Descriptor, *, keep_mark: bool) -> Descriptor:
    """Return a layer's descriptor in OCI's words, without what another seal said of it and is of no effect."""
    annotations = {name: text for name, text in layer.annotations.items() if keep_mark or name != ANNOTATION}
    return Descriptor(oci_type(layer.media_type), layer.digest, layer.size, annotations)


def _opener(source: ImageSource, descriptor: Descriptor) -> Open:
    def pieces() -> Iterator[bytes]:
        with source.open(descriptor) as blob:
            while piece := blob.read(PIECE):
                yield piece

    return pieces


def _reporting(content: Open, task: str, size: int, report: Report) -> Open:
    def pieces() -> Iterator[bytes]:
        done = 0
        for piece in content():
            done += len(piece)
            report(Step(task, done, size))
            yield piece

    return pieces


def _with_layer(repository: Repository, base: Base, layer: NewLayer, why: str) -> Base:
    """Return the image with one layer more, which is stored as the others are."""
    assert base.unpacked.oci
    _, batch = _stage(repository, layer)
    commit(repository, [batch])
    config = _config(base, layer, why)
    oci = replace(base.unpacked.oci, diff_ids=(*base.unpacked.oci.diff_ids, layer.tar.digest))
    unpacked = replace(base.unpacked, oci=oci)
    layers = (list(read_layer(repository, diff_id)) for diff_id in unpacked.system_layers)
    unpacked = replace(unpacked, system=merge(layers, lambda _: None))
    return Base(unpacked, base.manifest, config, (*base.blobs, (layer.descriptor, layer.content)))


def _stage(repository: Repository, layer: NewLayer) -> tuple[list[Entry], ObjectBatch]:
    tar = Pieces(checked(layer.tar, write_tar(layer.entries, lambda _: [])))
    return stage_layer(repository, layer.tar.digest, tar.read)


def _new_layer(entries: list[Entry], annotations: Mapping[str, str] = NO_ANNOTATIONS) -> NewLayer:
    def tar() -> Iterator[bytes]:
        return write_tar(entries, lambda _: [])

    descriptor = Descriptor(f"{OCI_LAYER}+gzip", *_digest(store(tar())), annotations)
    return NewLayer(descriptor, lambda: store(tar()), Descriptor(OCI_LAYER, *_digest(tar()), {}), tuple(entries))


def _digest(pieces: Iterable[bytes]) -> tuple[OciDigest, int]:
    found, size = hashlib.sha256(), 0
    for piece in pieces:
        found.update(piece)
        size += len(piece)
    return OciDigest("sha256", found.hexdigest()), size


def _descriptor(media_type: str, document: bytes) -> Descriptor:
    return Descriptor(media_type, OciDigest.of(document), len(document), {})


def _check_sealed(repository: Repository, base: Base, layer: NewLayer, request: SealRequest, rootfs: Rootfs) -> None:
    """Merge all layers once more, the UKI's last, out of the store: the digest must not have changed."""
    assert base.unpacked.oci
    stored, batch = _stage(repository, layer)
    commit(repository, [batch])
    layers = [*(list(read_layer(repository, diff_id)) for diff_id in base.unpacked.system_layers), stored]
    tree = canonical_tree(merge(layers, lambda _: None), request.tree, object_reader(repository), lambda _: None)
    found = build_rootfs(tree, rootfs.version, repository.algorithm).digest
    if found != rootfs.digest:
        raise DigestError(f"the UKI's layer changes the image's digest from {rootfs.digest} to {found}")


def _config(base: Base, layer: NewLayer, comment: str) -> dict[str, Any]:
    config = dict(base.config)
    rootfs = config["rootfs"]
    config["rootfs"] = {**rootfs, "diff_ids": [*rootfs["diff_ids"], str(layer.tar.digest)]}
    if isinstance(config.get("history"), list):
        entry = {"created_by": "oci2boot seal", "comment": comment}
        if isinstance(config.get("created"), str):
            # The image's own time: sealed again, it is the same image.
            entry["created"] = config["created"]
        config["history"] = [*config["history"], entry]
    return config


def _manifest(base: Base, layer: NewLayer, config: Descriptor, rootfs: Rootfs) -> dict[str, Any]:
    """Return the manifest, in OCI's media types whatever the base's are: Docker's have no annotations."""
    annotations = base.manifest.get("annotations") or {}
    kept = {name: text for name, text in annotations.items() if not name.startswith(_COMPOSEFS)}
    if rootfs.version:
        key = f"composefs.merged.bootable.erofs.v{rootfs.version}.fsverity-{rootfs.digest.algorithm}-12"
        kept[key] = str(rootfs.digest)
    return {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": to_json(config),
        "layers": [to_json(descriptor) for descriptor, _ in (*base.blobs, (layer.descriptor, None))],
        "annotations": kept,
    }
