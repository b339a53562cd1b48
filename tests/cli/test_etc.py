"""etc-diff, on a physical root made by hand."""

import json
import os
from pathlib import Path

import pytest

from oci2boot.store.repository import Repository
from tests.cli.conftest import Run
from tests.store.stored import SKELETON, layer, store_image
from tests.tarballs import directory, file

LONG = b"a line of a configuration file\n" * 10


@pytest.fixture
def sysroot(tmp_path: Path) -> Path:
    """Return a machine whose /etc was changed in every way."""
    assert os.geteuid() == 0, "only root can write what overlayfs reads: run these tests as root"
    root = tmp_path / "sysroot"
    root.mkdir()
    with Repository.ensure(root / "composefs") as repository:
        etc = [
            file(b"etc/long", LONG),
            file(b"etc/short", b"x"),
            file(b"etc/gone", b""),
            directory(b"etc/d/"),
            file(b"etc/d/a"),
        ]
        digest = store_image(repository, "demo", [layer(SKELETON, *etc)]).rootfs.digest
    upper = root / "state/deploy" / digest.hex / "etc/upper"
    upper.mkdir(parents=True)
    upper.chmod(0o755)
    (upper / "long").write_bytes(LONG)
    (upper / "short").write_bytes(b"y")
    (upper / "new [one]").write_bytes(LONG)
    os.mknod(upper / "gone", 0o020000, os.makedev(0, 0))
    (upper / "d").mkdir(mode=0o700)
    return root


EXPECTED = [("metadata", "/etc/d"), ("removed", "/etc/gone"), ("added", "/etc/new [one]"), ("changed", "/etc/short")]


def test_differences_are_a_table_and_json(run: Run, sysroot: Path) -> None:
    """P.10: a file that was written again as it was is no difference."""
    status, output, _ = run("etc-diff", "--sysroot", sysroot)
    assert status == 0
    assert [tuple(line.strip().split(maxsplit=1)) for line in output.splitlines()[1:]] == EXPECTED
    status, output, _ = run("etc-diff", "--sysroot", sysroot, "--json")
    found = json.loads(output)
    assert [(one["change"], one["path"]) for one in found["changes"]] == EXPECTED
    deployment = next((sysroot / "state/deploy").iterdir()).name
    assert run("etc-diff", "--sysroot", sysroot, "--deployment", deployment[:8])[0] == 0
    assert found["deployment"] == deployment


def test_what_cannot_be_compared_is_one_sentence(run: Run, sysroot: Path) -> None:
    for words, said in (
        (("--deployment", "ffff"), "no deployments that start with ffff"),
        (("--sysroot", sysroot / "nowhere"), "holds no composefs repository"),
    ):
        status, _, errors = run("etc-diff", "--sysroot", sysroot, *words)
        assert status == 1
        assert said in errors
    (deployment,) = (sysroot / "state/deploy").iterdir()
    image = sysroot / "composefs/objects" / deployment.name[:2] / deployment.name[2:]
    content = image.read_bytes()
    image.unlink()
    image.write_bytes(content[:-1] + b"\1")
    status, _, errors = run("etc-diff", "--sysroot", sysroot)
    assert (status, "is damaged" in errors) == (1, True)
