"""A layer more on an image in an OCI layout, by the image specification alone; everything below stays byte for byte."""

import gzip
import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"


def _read(layout: Path, descriptor: dict[str, Any]) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((layout / "blobs" / descriptor["digest"].replace(":", "/")).read_bytes())
    return document


def _write(layout: Path, data: bytes, media_type: str) -> dict[str, Any]:
    name = hashlib.sha256(data).hexdigest()
    path = layout / "blobs/sha256" / name
    path.unlink(missing_ok=True)
    path.write_bytes(data)
    return {"mediaType": media_type, "digest": f"sha256:{name}", "size": len(data)}


def package() -> dict[str, bytes | Path]:
    """Return what a machine of `scripts/machine-image` lacks: this package, by its path in the image."""
    files = sorted(path for path in (ROOT / "oci2boot").rglob("*") if path.is_file() and path.suffix != ".pyc")
    return {f"usr/lib/oci2boot/{path.relative_to(ROOT)}": path.read_bytes() for path in files}


def add_layer(layout: Path, target: Path, tar: bytes, *, tag: str = "latest") -> Path:
    """Copy the layout of one image to `target`, and lay `tar` on top of that image."""
    target.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["cp", "-r", "--reflink=auto", layout, target], check=True)
    index = json.loads((target / "index.json").read_bytes())
    (entry,) = index["manifests"]
    manifest = _read(target, entry)
    config = _read(target, manifest["config"])
    config["rootfs"]["diff_ids"].append(f"sha256:{hashlib.sha256(tar).hexdigest()}")
    config.get("history", []).append({"created": config.get("created"), "created_by": "a layer more"})
    manifest["layers"].append(_write(target, gzip.compress(tar, 1, mtime=0), LAYER))
    manifest["config"] = _write(target, json.dumps(config).encode(), manifest["config"]["mediaType"])
    changed = _write(target, json.dumps(manifest).encode(), entry["mediaType"])
    changed["annotations"] = {"org.opencontainers.image.ref.name": tag}
    index["manifests"] = [changed]
    (target / "index.json").write_text(json.dumps(index))
    return target
