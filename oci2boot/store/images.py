"""What the store knows of an image: its manifest and config, its rootfs images, and what boots it.

Stream names, named references and tags are composefs-rs 0.9's, so that `cfsctl oci` sees the images; the boot
record is a stream of our own that keeps everything an installation needs.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, Literal, Self

from oci2boot.digest import OciDigest, VerityDigest
from oci2boot.errors import FormatError, ImageNameError, StoreError
from oci2boot.formats.splitstream import CONFIG, MANIFEST, SplitStreamWriter
from oci2boot.store.layers import stream_name
from oci2boot.store.objects import ObjectBatch
from oci2boot.store.repository import Repository
from oci2boot.store.roots import ComposefsRoot, DmVerityRoot, Mode, Root

BOOTABLE: Final = b"o2b_boot"
REF: Final = "oci2boot"
_NOT_FIELDS: Final = frozenset({"rootfs", "erofs_version", "verity", "mode", "deployment"})
"""Keys of a record that are parts of its root, follow from it, or are a machine's own."""
MAX_NAME: Final = 200

UNREADABLE: Final = ("a boot record of the store cannot be read", "convert the image again")

Flow = Literal["local", "sealed", "vendor", "type1", "files", "aboot"]
"""Where the UKI is from: built here, or the image's own, with the digest in it or in an addon; the others have none."""
LOOSE: Final[frozenset[Flow]] = frozenset({"files", "aboot"})
"""Their boot files go to a boot loader of the board's own."""
WITHOUT_UKI: Final[frozenset[Flow]] = frozenset({"type1", *LOOSE})


@dataclass(frozen=True, slots=True)
class OciRecord:
    """The parts of an OCI image that the store keeps besides its layers."""

    manifest: bytes
    manifest_digest: OciDigest
    config: bytes
    config_digest: OciDigest
    diff_ids: tuple[OciDigest, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bootable:
    """A converted image: its root file system, and the files that boot it. The store keeps it as JSON."""

    name: str
    source: str
    rules: str
    """The id of the canonical rules that the digest follows."""
    root: Root
    selinux_rules: str
    xattrs: str
    manifest: OciDigest | None
    architecture: str
    title: str
    """For people: PRETTY_NAME of the image's os-release."""
    kernel: str | None = None
    """Version of the kernel in the UKI; None where no boot files were made."""
    cmdline: str | None = None
    """Kernel command line of the UKI, with the argument that carries the digest."""
    flow: Flow = "local"
    esp: Mapping[str, VerityDigest] = field(default_factory=dict)
    """The files of the EFI system partition, by path."""
    sizes: Mapping[str, int] = field(default_factory=dict)
    """Bytes that the boot loader loads, by what they are."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What else was asked for at the conversion: an upgrade does the same."""

    @property
    def mode(self) -> Mode:
        return self.root.mode

    @property
    def composefs(self) -> ComposefsRoot:
        """The root, for deploying files one by one; `StoreError` for an image that fills a partition instead."""
        match self.root:
            case ComposefsRoot():
                return self.root
        raise StoreError(
            f"{self.name} was converted for a partition under dm-verity, and not for a store of files",
            hint="install it onto a disk, or convert it in the mode composefs",
        )

    def to_json(self) -> dict[str, Any]:
        return {
            **{name: value for name, value in asdict(self).items() if name != "root"},
            "mode": self.mode,
            "verity": self.root.to_json() if isinstance(self.root, DmVerityRoot) else None,
            "rootfs": str(self.root.image),
            "erofs_version": self.root.erofs_version,
            "manifest": str(self.manifest) if self.manifest else None,
            "esp": {path: str(digest) for path, digest in sorted(self.esp.items())},
        }

    @classmethod
    def parse(cls, data: bytes) -> Self:
        try:
            facts = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise FormatError(*UNREADABLE) from error
        return cls.from_json(facts)

    @classmethod
    def from_json(cls, found: Any) -> Self:
        """Return what `to_json` gave; what a machine adds to the copy beside the state is not the image's."""
        try:
            manifest, verity = found["manifest"], found.get("verity")
            image, version = VerityDigest.parse(found["rootfs"]), found["erofs_version"]
            root = ComposefsRoot(image, version) if verity is None else DmVerityRoot.from_json(image, version, verity)
            bootable = cls(
                **{
                    **{key: value for key, value in found.items() if key not in _NOT_FIELDS},
                    "root": root,
                    "manifest": OciDigest.parse(manifest) if manifest else None,
                    "esp": {path: VerityDigest.parse(digest) for path, digest in found["esp"].items()},
                }
            )
            if found.get("mode", bootable.mode) != bootable.mode:
                raise FormatError(*UNREADABLE)
            return bootable
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise FormatError(*UNREADABLE) from error


def check_name(name: str) -> str:
    """Return `name` if an image may be called so."""
    if not name or len(name.encode()) > MAX_NAME or name[0] in "@." or not name.isprintable() or "/../" in f"/{name}/":
        raise ImageNameError(f"not a name for an image: {name[:80]!r}")
    return name


def escaped(name: str) -> str:
    """Return a name as one component of a path, as composefs-rs writes tags."""
    return name.replace("%", "%25").replace("/", "%2F")


def _version_key(key: str, version: int) -> str:
    return key if version == 2 else f"{key}.v{version}"


def record_oci(
    repository: Repository, batch: ObjectBatch, image: OciRecord, rootfs: VerityDigest | None = None, key: str = ""
) -> dict[str, VerityDigest]:
    """Add an image's config and manifest, tied to its layers and by `key` to its rootfs; return {stream name: object}.

    An image that was only pulled has no rootfs yet.
    """
    layers = {str(diff_id): _layer_digest(repository, diff_id) for diff_id in image.diff_ids}
    config = SplitStreamWriter(CONFIG, repository.algorithm)
    config.external(batch.add(image.config), len(image.config))
    for name, digest in layers.items():
        config.name(name, digest)
    if rootfs is not None:
        config.name(key, rootfs)
    config_stream = batch.add(config.finish())

    manifest = SplitStreamWriter(MANIFEST, repository.algorithm)
    manifest.external(batch.add(image.manifest), len(image.manifest))
    manifest.name(f"config:{image.config_digest}", config_stream)
    for name, digest in layers.items():
        manifest.name(name, digest)
    return {
        f"oci-config-{image.config_digest}": config_stream,
        f"oci-manifest-{image.manifest_digest}": batch.add(manifest.finish()),
    }


def _layer_digest(repository: Repository, diff_id: OciDigest) -> VerityDigest:
    digest = repository.stream_digest(stream_name(diff_id))
    if digest is None:
        raise StoreError(f"layer {diff_id} is not in the store")
    return digest


def save(
    repository: Repository, bootable: Bootable, composefs_image: bytes, esp: Mapping[str, bytes], oci: OciRecord | None
) -> Bootable:
    """Store a converted image under its name: objects first, then streams, the names last.

    `esp` is the content of the EFI system partition; the record that is returned names it by digest. What is in the
    partitions of the mode `verity` is in the store already.
    """
    check_name(bootable.name)
    with ObjectBatch(repository) as batch:
        if batch.add(composefs_image) != bootable.root.tree:
            raise StoreError("the rootfs image is not what its digest says")
        files = {path: batch.add(data) for path, data in esp.items()}
        bootable = replace(bootable, esp=files)
        kind = "composefs.image" if bootable.options.get("plain") else "composefs.image.boot"
        key = _version_key(kind, bootable.root.erofs_version)
        # The tree of the mode `verity` has mount points of its own: it is not the one that composefs-rs would compute.
        tied = bootable.root.tree if isinstance(bootable.root, ComposefsRoot) else None
        streams = record_oci(repository, batch, oci, tied, key) if oci else {}

        record = json.dumps(bootable.to_json(), indent=2, sort_keys=True).encode()
        stream = SplitStreamWriter(BOOTABLE, repository.algorithm)
        stream.external(batch.add(record), len(record))
        # A collector follows named references only: everything that the record names is tied to it.
        for path, digest in files.items():
            stream.name(f"esp:{path}", digest)
        for key, digest in bootable.root.objects.items():
            stream.name(key, digest)
        for name, digest in streams.items():
            stream.name(name, digest)
        boot_name = f"oci2boot-{OciDigest.of(record)}"
        batch.link_stream(boot_name, batch.add(stream.finish()))
        # Never the EROFS image of the mode `verity`: readers of images/ take it for a composefs image.
        batch.link_image(bootable.root.tree)
        for name, digest in streams.items():
            batch.link_stream(name, digest)
    ref = escaped(bootable.name)
    if oci:
        repository.set_ref("streams", f"oci/{ref}", f"oci-manifest-{oci.manifest_digest}")
    repository.set_ref("images", f"{REF}/{ref}", bootable.root.tree.hex)
    repository.set_ref("streams", f"{REF}/{ref}", boot_name)
    return bootable


def save_pulled(repository: Repository, name: str, oci: OciRecord) -> None:
    """Keep an image's layers and documents under a name, as `cfsctl oci pull` does; nothing says yet what it boots."""
    with ObjectBatch(repository) as batch:
        for stream, digest in record_oci(repository, batch, oci).items():
            batch.link_stream(stream, digest)
    repository.set_ref("streams", f"oci/{escaped(check_name(name))}", f"oci-manifest-{oci.manifest_digest}")


def saved_images(repository: Repository) -> Iterator[Bootable]:
    """Yield every converted image, the one converted last first."""
    records = [(link.lstat().st_mtime_ns, name, target) for name, link, target in repository.refs("streams", REF)]
    for _, _, target in sorted(records, key=lambda item: (-item[0], item[1])):
        yield Bootable.parse(repository.read_object(repository.read_stream(target).sole_object()))


def find_image(repository: Repository, name: str | None) -> Bootable:
    """Return a converted image by name, or the one converted last."""
    names = []
    for bootable in saved_images(repository):
        if name in (None, bootable.name):
            return bootable
        names.append(bootable.name)
    if name is None:
        raise StoreError(f"{repository.path} holds no converted image", hint="run `oci2boot convert` first")
    raise StoreError(
        f"no image is called {name!r}", hint=f"there is {', '.join(names)}" if names else "run `oci2boot convert` first"
    )


def remove_image(repository: Repository, name: str) -> None:
    """Forget a name, also of an image that was only pulled; a collector frees what only it kept."""
    ref = escaped(name)
    if not (repository.path / "streams/refs/oci" / ref).is_symlink():
        find_image(repository, name)
    for area, folder in (("streams", REF), ("images", REF), ("streams", "oci")):
        (repository.path / area / "refs" / folder / ref).unlink(missing_ok=True)
