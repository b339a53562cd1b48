"""`export`: skopeo checks every digest of what comes out, and the layers are the tars that went in."""

import json
import subprocess
from pathlib import Path

import pytest

from oci2boot.errors import StoreError
from oci2boot.oci.reference import Reference
from oci2boot.oci.source import SourceOptions
from oci2boot.workflows.make.convert import convert
from oci2boot.workflows.make.export import export
from oci2boot.workflows.progress import silent
from oci2boot.workflows.requests import ConvertRequest
from tests.oci.layouts import Layout, digest, tar
from tests.oci.registries import docker_registry
from tests.witness import program

LAYERS = [tar({"etc/motd": b"hello\n" * 100, "etc/small": b"x"}), tar({"usr/bin/tool": bytes(100_000)}) + bytes(512)]
LOOPBACK = SourceOptions(tls_verify=False)


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    layout = Layout(tmp_path / "layout")
    image = layout.image(
        [layout.layer(LAYERS[0], "gzip"), layout.layer(LAYERS[1], "zstd")], annotations={"org.example": "kept"}
    )
    layout.tag(image)
    repo = tmp_path / "repo"
    convert(ConvertRequest(source=Reference.parse(f"oci:{layout.path}:v"), repo=repo, name="demo", boot=None), silent)
    return repo


def test_the_layers_come_out_byte_for_byte(repo: Path, tmp_path: Path) -> None:
    """P.2"""
    exported = export(repo, "demo", Reference.parse(f"oci:{tmp_path}/out:v"), SourceOptions(), silent)
    blobs = tmp_path / "out/blobs/sha256"
    assert [(blobs / digest(layer).removeprefix("sha256:")).read_bytes() for layer in LAYERS] == LAYERS
    manifest = json.loads((blobs / exported.manifest.hex).read_bytes())
    assert [layer["digest"] for layer in manifest["layers"]] == [digest(layer) for layer in LAYERS]
    assert manifest["annotations"] == {"org.example": "kept"}
    argv = [program("skopeo"), "copy", "--insecure-policy", f"oci:{tmp_path}/out:v", f"dir:{tmp_path}/checked"]
    subprocess.run(argv, check=True, capture_output=True)


def test_a_registry_takes_it(repo: Path, tmp_path: Path) -> None:
    with docker_registry(tmp_path / "registry") as address:
        name = f"docker://{address}/os/demo:v"
        exported = export(repo, "demo", Reference.parse(name), LOOPBACK, silent)
        argv = [program("skopeo"), "inspect", "--tls-verify=false", "--raw", name]
        raw = subprocess.run(argv, check=True, capture_output=True).stdout
    assert digest(raw) == str(exported.manifest)


def test_a_directory_has_no_layers_to_export(tmp_path: Path) -> None:
    (tmp_path / "root/usr").mkdir(parents=True)
    convert(ConvertRequest(source=Reference.parse(f"dir:{tmp_path}/root"), repo=tmp_path / "repo", boot=None), silent)
    with pytest.raises(StoreError, match="has no layers"):
        export(tmp_path / "repo", None, Reference.parse(f"oci:{tmp_path}/out:v"), SourceOptions(), silent)
