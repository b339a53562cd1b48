"""The OCI layouts of `tests/vectors`, merged, and what other implementations made of them."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from oci2boot.digest import External, Hash
from oci2boot.formats.tar import read_tar
from oci2boot.rootfs.inodes import Version
from oci2boot.tree.merge import merge
from oci2boot.tree.model import Directory, File
from tests.tarballs import MemorySource
from tests.witness import VECTORS

CASES: dict[str, Any] = json.loads((VECTORS / "oci.json").read_text())
NINE = "composefs-rs 0.9"
THREE = "composefs-rs 0.3 (format V2, every xattr kept)"
FORMS: list[tuple[Version, Hash]] = [(1, "sha256"), (1, "sha512"), (2, "sha256"), (2, "sha512")]
NO_IMAGE = {
    ("devices", 2): "V2 cannot escape a character device 0:0: composefs-rs 0.9 writes an entry that cannot be opened",
}
"""Layouts that have no image in a format version, with the reason."""


@dataclass
class Layout:
    merged: Directory
    read: Callable[[File], bytes]
    warnings: list[str]


def load(name: str, algorithm: Hash = "sha256") -> Layout:
    blobs = VECTORS / CASES[name]["layout"] / "blobs" / "sha256"
    manifest = json.loads((blobs / CASES[name]["manifest"].removeprefix("sha256:")).read_text())
    objects: dict[str, bytes] = {}
    layers = []
    for layer in manifest["layers"]:
        assert layer["mediaType"] == "application/vnd.oci.image.layer.v1.tar"
        source = MemorySource((blobs / layer["digest"].removeprefix("sha256:")).read_bytes(), algorithm)
        source.objects = objects
        layers.append(read_tar(source))

    def read(file: File) -> bytes:
        if isinstance(file.content, External):
            return objects[file.content.digest.hex]
        assert isinstance(file.content, bytes)
        return file.content

    warnings: list[str] = []
    return Layout(merge(layers, warnings.append), read, warnings)


def expected(name: str, version: int, algorithm: str) -> Any:
    return CASES[name][NINE][f"v{version}_{algorithm}"]


def is_refused(name: str) -> bool:
    return "rejected" in expected(name, 1, "sha256")
