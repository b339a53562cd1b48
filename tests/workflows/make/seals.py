"""Images that are sealed, and what is in their last layer."""

import io
import subprocess
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from oci2boot.formats import pe
from oci2boot.oci.reference import Reference
from oci2boot.oci.source import SourceOptions
from oci2boot.store.images import Bootable
from oci2boot.tree.times import Times
from oci2boot.workflows.make.convert import convert
from oci2boot.workflows.make.seal import SealedImage, SealRequest, seal
from oci2boot.workflows.progress import Event, silent
from oci2boot.workflows.requests import BootOptions, ConvertRequest, TreeOptions
from tests.oci.layouts import documents
from tests.witness import program

LOOPBACK = SourceOptions(tls_verify=False)
BUILTIN = BootOptions(ukify="builtin")
EXACT = TreeOptions(times=Times("exact"))


def run(*argv: str | Path) -> str:
    done = subprocess.run(list(map(str, argv)), check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def sealed_to(
    repo: Path,
    source: str,
    destination: str,
    boot: BootOptions = BUILTIN,
    report: Callable[[Event], None] = silent,
    *,
    ship_erofs: bool = False,
    strip_kernel: bool = False,
) -> SealedImage:
    request = SealRequest(
        source=Reference.parse(source),
        destination=Reference.parse(destination),
        repo=repo,
        options=LOOPBACK,
        boot=replace(boot, strip_kernel=strip_kernel),
        ship_erofs=ship_erofs,
    )
    result = seal(request, report)
    assert result
    return result


def converted(repo: Path, source: str) -> Bootable:
    return convert(
        ConvertRequest(source=Reference.parse(source), repo=repo, name="x", options=LOOPBACK, boot=BUILTIN), silent
    )


def last_layer(layout: Path, tag: str) -> tarfile.TarFile:
    manifest, _ = documents(layout, tag)
    path = layout / "blobs" / manifest["layers"][-1]["digest"].replace(":", "/")
    return tarfile.open(
        fileobj=io.BytesIO(subprocess.run(["gzip", "-dc", path], check=True, capture_output=True).stdout)
    )


def cfsctl_id(layout: Path, tag: str, folder: Path) -> str:
    run(program("cfsctl"), "init", "--algorithm", "fsverity-sha256-12", "--insecure", folder)
    cfsctl = [program("cfsctl"), "--repo", str(folder), "--insecure"]
    run(*cfsctl, "oci", "pull", f"oci:{layout}:{tag}", "it")
    return run(*cfsctl, "--erofs-version=1", "oci", "compute-id", "--bootable", "it").strip()


def by_cfsctl(root: Path) -> str:
    argv: list[str | Path] = [program("cfsctl"), "--hash", "sha256", "--erofs-version", "1", "compute-id", "--bootable"]
    said = subprocess.run([*argv, root], check=True, capture_output=True, text=True)
    return said.stdout.strip().rpartition(":")[2]


def section(path: Path, name: bytes) -> bytes:
    data = path.read_bytes()
    (found,) = pe.parse(data).sections_named(name)
    return pe.contents(data, found)
