"""What an image is, without its layers being fetched."""

import hashlib
import json
from pathlib import Path
from typing import Any

from oci2boot.digest import VerityDigest
from oci2boot.errors import SourceError, StoreError
from oci2boot.oci.image import Image
from oci2boot.oci.reference import DirectoryReference, DumpfileReference
from oci2boot.oci.source import SourceOptions, open_source
from oci2boot.rootfs.reader import read_rootfs
from oci2boot.store.images import Bootable, find_image
from oci2boot.store.repository import Repository
from oci2boot.system.files import plain_errors
from oci2boot.tree.model import Directory, File, Sparse, walk
from oci2boot.workflows.manage import list_images
from oci2boot.workflows.manifest import Manifest
from oci2boot.workflows.requests import parse_source
from oci2boot.workflows.root import compressed_size
from oci2boot.workflows.unpack import marked_layers


def inspect(text: str, repo: Path, options: SourceOptions) -> dict[str, Any]:
    """Describe a converted image by its name, else what a source has."""
    for bootable in list_images(repo):
        if bootable.name == text:
            with Repository.open(repo) as repository:
                return _converted(repository, bootable)
    reference = parse_source(text)
    if isinstance(reference, DirectoryReference | DumpfileReference):
        raise SourceError(f"{reference} is a tree, not an image", hint="`oci2boot digest` measures it")
    with open_source(reference, options) as source:
        return _source(source.fetch())


def measured_manifest(name: str, repo: Path) -> dict[str, Any]:
    """Return the measurement manifest of a converted image; the same image always gives the same."""
    with Repository.open(repo) as repository:
        bootable = find_image(repository, name)
        tree = read_rootfs(repository.read_object(bootable.tree))
        hashes: dict[VerityDigest, str] = {}

        def sha256(file: File) -> str:
            if isinstance(file.content, bytes):
                return hashlib.sha256(file.content).hexdigest()
            if isinstance(file.content, Sparse):
                raise StoreError(f"{name} has a file that is all hole")
            digest = file.content.digest
            if digest not in hashes:
                path = repository.object_path(digest)
                with plain_errors(StoreError, f"read {path}"), path.open("rb") as content:
                    hashes[digest] = hashlib.file_digest(content, "sha256").hexdigest()
            return hashes[digest]

        image = str(bootable.manifest) if bootable.manifest else None
        return Manifest.of(tree, bootable.rootfs, image, sha256).to_json()


def _converted(repository: Repository, bootable: Bootable) -> dict[str, Any]:
    image = repository.read_object(bootable.tree)
    tree = read_rootfs(image)
    inodes = {id(inode): inode for _, inode in walk(tree)}.values()
    return {
        "kind": "converted image",
        **bootable.to_json(),
        "rootfs_image_size": len(image),
        "rootfs_image_compressed_size": compressed_size(image),
        "inodes": len(inodes),
        "directories": sum(isinstance(inode, Directory) for inode in inodes),
        "content_size": sum(inode.size for inode in inodes if isinstance(inode, File)),
        "esp_sizes": {path: repository.object_path(digest).stat().st_size for path, digest in bootable.esp.items()},
    }


def _source(image: Image) -> dict[str, Any]:
    config = json.loads(image.config)
    return {
        "kind": "image in its source",
        "source": str(image.reference),
        "manifest": str(image.manifest_digest),
        "config": str(image.config_digest),
        "platform": str(image.platform),
        "created": config.get("created"),
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
