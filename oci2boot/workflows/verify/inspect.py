"""What an image is, without its layers being fetched."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from oci2boot.errors import SourceError
from oci2boot.oci.image import Image
from oci2boot.oci.reference import DirectoryReference, DumpfileReference
from oci2boot.oci.source import SourceOptions, open_source
from oci2boot.rootfs.reader import read_rootfs
from oci2boot.store.images import Bootable, find_image
from oci2boot.store.repository import Repository
from oci2boot.store.roots import DmVerityRoot
from oci2boot.tree.model import Directory, File, walk
from oci2boot.workflows.images import list_images
from oci2boot.workflows.make.canonical import compressed_size
from oci2boot.workflows.make.unpack import marked_layers
from oci2boot.workflows.sources import parse_source
from oci2boot.workflows.verify.attest import image_manifest, run_attest_hook
from oci2boot.workflows.verify.manifest import Manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectedImage:
    """A converted image."""

    bootable: Bootable
    rootfs_image_size: int
    rootfs_image_compressed_size: int
    inodes: int
    directories: int
    content_size: int
    esp_sizes: Mapping[str, int]

    def to_json(self) -> dict[str, object]:
        root = self.bootable.root
        own = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "bootable"}
        ratio = {"ratio": round(root.ratio, 4)} if isinstance(root, DmVerityRoot) else {}
        return {"kind": "converted image", **self.bootable.to_json(), **ratio, **own}


@dataclass(frozen=True, slots=True)
class InspectedSource:
    """An image where it comes from."""

    image: Image

    def to_json(self) -> dict[str, object]:
        image = self.image
        return {
            "kind": "image in its source",
            "source": str(image.reference),
            "manifest": str(image.manifest_digest),
            "config": str(image.config_digest),
            "platform": str(image.platform),
            "created": json.loads(image.config).get("created"),
            "layers": [
                {
                    "digest": str(layer.digest),
                    "diff_id": str(layer.diff_id),
                    "size": layer.size,
                    "media_type": layer.media_type,
                    "annotations": dict(layer.annotations),
                }
                for layer in image.layers
            ],
            "uki_layers": {str(number): mark for number, mark in marked_layers(image, None).items()},
            "size": image.size,
            "labels": dict(image.labels),
            "annotations": dict(image.annotations),
        }


def inspect(text: str, repo: Path, options: SourceOptions) -> InspectedImage | InspectedSource:
    """Describe a converted image by its name, else what a source has."""
    for bootable in list_images(repo):
        if bootable.name == text:
            with Repository.open(repo) as repository:
                return _converted(repository, bootable)
    reference = parse_source(text)
    if isinstance(reference, DirectoryReference | DumpfileReference):
        raise SourceError(f"{reference} is a tree, not an image", hint="`oci2boot digest` measures it")
    with open_source(reference, options) as source:
        return InspectedSource(source.fetch())


def measured_manifest(name: str, repo: Path, attest_hook: str | None = None) -> Manifest:
    """Return the measurement manifest of a converted image; the same image always gives the same.

    `attest_hook` is a command that is run with it, as `run_attest_hook` does.
    """
    with Repository.open(repo) as repository:
        bootable = find_image(repository, name)
        manifest = image_manifest(repository, bootable)
        if attest_hook is not None:
            run_attest_hook(attest_hook, repository, bootable, manifest)
        return manifest


def _converted(repository: Repository, bootable: Bootable) -> InspectedImage:
    image = repository.read_object(bootable.root.tree)
    tree = read_rootfs(image)
    inodes = list({id(inode): inode for _, inode in walk(tree)}.values())
    return InspectedImage(
        bootable=bootable,
        rootfs_image_size=len(image),
        rootfs_image_compressed_size=compressed_size(image),
        inodes=len(inodes),
        directories=sum(isinstance(inode, Directory) for inode in inodes),
        content_size=sum(inode.size for inode in inodes if isinstance(inode, File)),
        esp_sizes={path: repository.object_path(digest).stat().st_size for path, digest in bootable.esp.items()},
    )
