"""What is written for systemd-sysupdate, by Debian 13's: it finds the versions, there and on the disk."""

import hashlib
import json
import lzma
import subprocess
from pathlib import Path
from typing import Any

import pytest

from oci2boot.errors import TargetError
from oci2boot.rootfs.dmverity import VerityOptions
from oci2boot.workflows.install.sysupdate import Published, SysupdateRequest, publish
from oci2boot.workflows.progress import silent
from tests.boot import debian
from tests.keys import make
from tests.store.stored import SKELETON, layer
from tests.target.disks import said
from tests.witness import program
from tests.workflows.slots import Factory, Menu
from tests.workflows.verity_disks import Image, converted


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> tuple[Image, Image]:
    folder = tmp_path_factory.mktemp("images")
    factory = Factory(folder, make(folder, "db"))
    return factory.make(1), factory.make(2)


def published(image: Image, folder: Path, **options: Any) -> Published:
    return publish(SysupdateRequest(repo=image.repo, name="demo", output=folder, source=str(folder), **options), silent)


def listed(definitions: Path, *version: str) -> dict[str, Any]:
    words = [f"--definitions={definitions}", "--json=short", "--verify=no", "list", *version]
    done = subprocess.run([debian.systemd_sysupdate(), *words], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("suffix", ["transfer", "conf"])
def test_systemd_sysupdate_finds_every_part(suffix: str, images: tuple[Image, Image], tmp_path: Path) -> None:
    """Version 1 is on the disk, the newer 2 is available, and neither lacks a part.

    Where disk and boot directory are is what systemd knows of a running machine: here it is said.
    """
    disk = images[0].install(tmp_path / "disk.raw", ab=True, esp_size=270 << 20).target
    (tmp_path / "files").mkdir()
    Menu(disk, tmp_path).files()
    for image in images:
        published(image, tmp_path / "files", suffix=suffix)
    definitions = tmp_path / "files/sysupdate.d"
    assert len(list(definitions.iterdir())) == 6
    for path in definitions.iterdir():
        assert path.suffix == f".{suffix}"
        assert "ProtectVersion=%A\n" in path.read_text()
        text = path.read_text().replace("Path=auto", f"Path={disk}").replace("PathRelativeTo=boot\n", "")
        path.write_text(text.replace("Path=/EFI/Linux", f"Path={tmp_path / 'esp/EFI/Linux'}"))
    found = listed(definitions)
    assert (found["current"], set(found["all"])) == ("1", {"1", "2"})
    newer = listed(definitions, "2")
    assert (newer["available"], newer["installed"], newer["newest"]) == (True, False, True)
    older = listed(definitions, "1")
    assert (older["available"], older["installed"]) == (True, True)
    assert not older.get("incomplete")


def test_the_files_are_the_partitions_of_the_image(images: tuple[Image, Image], tmp_path: Path) -> None:
    """The GUIDs in the names are what the UKI's root hash asks for, and the hashes those of sha256sum."""
    one, two = images
    published(one, tmp_path)
    done = published(two, tmp_path)
    root_hash = str(two.root_hash)
    names = {name.partition(".")[2]: name for name in done.files}
    for kind, half in (("root", root_hash[:32]), ("root-verity", root_hash[-32:])):
        name = names[f"{kind}.raw.xz"]
        assert name.partition(".")[0].rpartition("_")[2].replace("-", "") == half
        (tmp_path / kind).write_bytes(lzma.decompress((tmp_path / name).read_bytes()))
    said("veritysetup", "verify", tmp_path / "root", tmp_path / "root-verity", root_hash)
    assert hashlib.sha256((tmp_path / "root").read_bytes()).digest() == hashlib.sha256(two.erofs).digest()
    checked = subprocess.check_output([program("sha256sum"), "-c", "SHA256SUMS"], cwd=tmp_path, text=True)
    assert checked.count(": OK") == 12


def test_what_has_no_version_for_systemd_sysupdate_is_refused(tmp_path: Path) -> None:
    factory = Factory(tmp_path, make(tmp_path, "db"))
    plain = converted(tmp_path / "plain", [layer(SKELETON)], VerityOptions(verity=False))
    with pytest.raises(TargetError, match="cannot be the label of a partition"):
        published(factory.make(10**25), tmp_path / "files")
    with pytest.raises(TargetError, match="has no root hash"):
        published(plain, tmp_path / "files")
    assert not (tmp_path / "files").exists()
