"""OCI layouts for tests, written from the image specification alone; any member can be made wrong."""

import gzip
import hashlib
import io
import json
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import zstandard

OCI = "application/vnd.oci.image"
MANIFEST = f"{OCI}.manifest.v1+json"
INDEX = f"{OCI}.index.v1+json"
CONFIG = f"{OCI}.config.v1+json"
LAYER = f"{OCI}.layer.v1.tar"
DOCKER = "application/vnd.docker"
REF_NAME = "org.opencontainers.image.ref.name"

Json = dict[str, Any]


def digest(data: bytes, algorithm: str = "sha256") -> str:
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


def tar(files: Mapping[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def compressed(data: bytes, compression: str) -> bytes:
    match compression:
        case "gzip":
            return gzip.compress(data, mtime=0)
        case "zstd":
            return zstandard.compress(data)
    return data


class Layout:
    """A layout that is being made, or made anew over blobs that are there; documents are written as asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifests: list[Json] = []
        (path / "blobs/sha256").mkdir(parents=True, exist_ok=True)
        (path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')

    def blob(self, data: bytes, media_type: str, **more: Any) -> Json:
        name = digest(data)
        self.blob_path(name).write_bytes(data)
        return {"mediaType": media_type, "digest": name, "size": len(data), **more}

    def blob_path(self, name: str) -> Path:
        return self.path / "blobs" / name.replace(":", "/")

    def document(self, document: Json, media_type: str, **more: Any) -> Json:
        return self.blob(json.dumps(document).encode(), media_type, **more)

    def layer(self, data: bytes, compression: str = "gzip") -> tuple[Json, str]:
        """Add a layer and return its descriptor and its diff_id."""
        suffix = "" if compression == "none" else f"+{compression}"
        return self.blob(compressed(data, compression), LAYER + suffix), digest(data)

    def config(self, diff_ids: Sequence[str], architecture: str = "amd64", **more: Any) -> Json:
        document = {"architecture": architecture, "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}}
        return self.document({**document, **more}, CONFIG)

    def image(self, layers: Sequence[tuple[Json, str]], *, architecture: str = "amd64", **changes: Any) -> Json:
        """Add an image and return its manifest's descriptor; `changes` are to the manifest."""
        config = self.config([diff_id for _, diff_id in layers], architecture)
        document = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": config,
            "layers": [descriptor for descriptor, _ in layers],
        }
        return self.document({**document, **changes}, MANIFEST)

    def index(self, entries: Sequence[Json], **changes: Any) -> Json:
        return self.document({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries, **changes}, INDEX)

    def tag(self, descriptor: Json, name: str | None = "v") -> None:
        annotations = {"annotations": {REF_NAME: name}} if name else {}
        self.manifests.append({**descriptor, **annotations})
        self.write_index(json.dumps({"schemaVersion": 2, "manifests": self.manifests}).encode())

    def write_index(self, data: bytes) -> None:
        (self.path / "index.json").write_bytes(data)


def platform(architecture: str, variant: str = "", os: str = "linux") -> Json:
    return {"platform": {"architecture": architecture, "os": os, **({"variant": variant} if variant else {})}}


def simple_layout(path: Path, files: Mapping[str, bytes] | None = None, compression: str = "gzip") -> Layout:
    """Make a layout of one image of two layers, tagged `v`."""
    layout = Layout(path)
    first = layout.layer(tar(files or {"etc/motd": b"hello\n" * 100}), compression)
    second = layout.layer(tar({"etc/issue": b"Debian\n" * 100}), compression)
    layout.tag(layout.image([first, second]))
    return layout


def documents(layout: Path, tag: str | None = None) -> tuple[Json, Json]:
    """Return the manifest and the config that a layout has under a tag, or those of its one image."""
    index = json.loads((layout / "index.json").read_text())
    (descriptor,) = (one for one in index["manifests"] if tag in (None, one["annotations"][REF_NAME]))

    def read(digest: str) -> Json:
        document: Json = json.loads((layout / "blobs" / digest.replace(":", "/")).read_text())
        return document

    manifest = read(descriptor["digest"])
    return manifest, read(manifest["config"]["digest"])


def add_layer(layout: Path, target: Path, data: bytes, *, tag: str = "latest") -> Path:
    """Copy the layout of one image to `target`, and lay a layer on top; what is below stays byte for byte."""
    target.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["cp", "-r", "--reflink=auto", layout, target], check=True)
    manifest, config = documents(target)
    made = Layout(target)
    descriptor, diff_id = made.layer(data)
    config["rootfs"]["diff_ids"].append(diff_id)
    config.get("history", []).append({"created": config.get("created"), "created_by": "a layer more"})
    manifest["layers"].append(descriptor)
    manifest["config"] = made.document(config, manifest["config"]["mediaType"])
    made.tag(made.document(manifest, manifest.get("mediaType", MANIFEST)), tag)
    return target
