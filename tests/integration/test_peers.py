"""The demo image in the hands of composefs-rs: `cfsctl` computes the same digest, and our stores are one format."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Initramfs, Installed
from tests.vm import oci2boot
from tests.witness import program

pytestmark = pytest.mark.demo


@pytest.fixture(scope="module")
def layout(demo_image: Callable[[Initramfs], Path]) -> Path:
    return demo_image("dracut")


@pytest.fixture
def cfsctl() -> Callable[..., str]:
    def run(repo: Path, *words: str | Path) -> str:
        argv = [program("cfsctl"), "--repo", str(repo), "--insecure", *map(str, words)]
        done = subprocess.run(argv, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_cfsctl_gives_the_demo_image_our_digest(
    algorithm: str, layout: Path, tmp_path: Path, cfsctl: Callable[..., str]
) -> None:
    """D.16, C.4: labels, whiteouts, hard links and odd names of a real system, in the bootable form."""
    repo = tmp_path / "theirs"
    subprocess.run(
        [program("cfsctl"), "init", "--algorithm", f"fsverity-{algorithm}-12", "--insecure", repo], check=True
    )
    cfsctl(repo, "oci", "pull", f"oci:{layout}:latest", "demo")
    theirs = cfsctl(repo, "--erofs-version=1", "oci", "compute-id", "--bootable", "demo").strip()
    ours = oci2boot(
        "digest", f"oci:{layout}:latest", "--hash", algorithm, "--selinux-rules", "composefs-rs", home=tmp_path
    ).strip()
    assert ours == theirs


def test_mkcomposefs_makes_the_same_image_from_our_dump_file(layout: Path, tmp_path: Path) -> None:
    """D.3: byte for byte."""
    mkcomposefs = tmp_path / "mkcomposefs"
    mkcomposefs.symlink_to(program("cfsctl"))
    dump, image = tmp_path / "dump", tmp_path / "image"
    dump.write_bytes(oci2boot("digest", f"oci:{layout}:latest", "--dumpfile", home=tmp_path).encode("latin-1"))
    argv = [str(mkcomposefs), "--from-file", "--min-version=1", "--print-digest", str(dump), str(image)]
    theirs = subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()
    assert oci2boot("digest", f"oci:{layout}:latest", home=tmp_path).strip() == theirs
    assert oci2boot("digest", f"dumpfile:{dump}", home=tmp_path).strip() == theirs


def test_cfsctl_finds_our_store_whole(installed: Callable[[Initramfs], Installed], cfsctl: Callable[..., str]) -> None:
    repo = installed("dracut").repo
    assert "status: ok" in cfsctl(repo, "fsck")
    assert "1/1 ok" in cfsctl(repo, "oci", "fsck")
    assert "Objects: 0 removed" in cfsctl(repo, "gc", "--dry-run")


def test_a_store_that_cfsctl_filled_is_ours_to_use(layout: Path, tmp_path: Path, cfsctl: Callable[..., str]) -> None:
    repo = tmp_path / "theirs"
    subprocess.run([program("cfsctl"), "init", "--algorithm", "fsverity-sha256-12", "--insecure", repo], check=True)
    cfsctl(repo, "oci", "pull", f"oci:{layout}:latest", "theirs")
    oci2boot("fsck", "--repo", repo, home=tmp_path, demote=False)
    oci2boot(
        "convert", f"oci:{layout}:latest", "--name", "ours", "--no-boot", "--repo", repo, home=tmp_path, demote=False
    )
    assert "status: ok" in cfsctl(repo, "fsck")
    listed = json.loads(oci2boot("images", "--json", "--repo", repo, home=tmp_path, demote=False))
    assert "ours" in {image["name"] for image in listed}
    assert {"theirs", "ours"} <= set(cfsctl(repo, "oci", "images").split())
