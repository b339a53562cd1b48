"""What a root file system is made from, and whether another one equals it. K0.6, K0.10"""

import hashlib
import json
import subprocess
from pathlib import Path

import pytest

from oci2boot.errors import FormatError
from oci2boot.workflows.verify.inspect import measured_manifest
from tests.flips import damaged
from tests.tarballs import file
from tests.witness import program
from tests.workflows.disks import BIG, SMALL, Demo, find, installed, layers
from tests.workflows.verify.looking import failures, seen, states


@pytest.fixture(scope="module")
def manifest(demo: Demo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("manifest") / "manifest.json"
    path.write_text(json.dumps(measured_manifest("demo", demo.repo).to_json()))
    return path


def test_the_manifest_names_every_path_and_its_measurements(demo: Demo, manifest: Path) -> None:
    """K0.6; the digests are those of fsverity(1) and of the tar's own content."""
    found = json.loads(manifest.read_text())
    assert found["rootfs"]["fs-verity"] == demo.digest
    big = found["paths"]["/usr/lib/big"]
    path = demo.repo / "objects" / big["fs-verity"][:2] / big["fs-verity"][2:]
    said = subprocess.run(
        [program("fsverity"), "digest", "--compact", path], check=True, capture_output=True, text=True
    )
    assert said.stdout.strip() == big["fs-verity"]
    assert {name: big[name] for name in ("type", "mode", "uid", "gid", "mtime", "size", "hard link of")} == {
        "type": "file",
        "mode": "0644",
        "uid": 0,
        "gid": 0,
        "mtime": 1000,
        "size": len(BIG),
        "hard link of": "/usr/lib/again",
    }
    assert big["sha256"] == hashlib.sha256(BIG).hexdigest()
    assert found["paths"]["/etc/inline"]["sha256"] == hashlib.sha256(b"inline").hexdigest()
    assert "xattr security.capability" in found["paths"]["/usr/bin/capable"]
    assert found["paths"]["/usr/bin/link"]["target"] == "small"
    assert measured_manifest("demo", demo.repo).to_json() == found


def test_a_disk_equals_the_manifest_of_what_it_was_made_from(demo: Demo, manifest: Path) -> None:
    """K0.10"""
    verified = seen(demo.disk, against=manifest)
    assert verified.ok
    assert states(verified)["manifest digest"] == "ok"


def test_a_disk_of_another_image_differs_by_path_and_field(manifest: Path, tmp_path: Path) -> None:
    """K0.10"""
    other = installed(
        tmp_path,
        layers(
            file(b"usr/bin/small", SMALL, mode=0o4755), file(b"usr/bin/extra", b"x"), file(b"etc/inline", b"INLINE")
        ),
    )
    found = failures(seen(other.disk, against=manifest))
    assert found["manifest /usr/bin/small"] == "mode: 0755 in the manifest, 4755 here"
    assert found["manifest /usr/bin/extra"] == "path: absent in the manifest, file here"
    assert "fs-verity" in found["manifest /etc/inline"]
    assert other.digest in found["manifest digest"]
    assert len(found) == 4


def test_many_differences_are_counted(demo: Demo, manifest: Path, tmp_path: Path) -> None:
    """The forty files of the demo, each of another mode than in the manifest."""
    changed = json.loads(manifest.read_text())
    for number in range(40):
        changed["paths"][f"/usr/lib/file{number}"]["mode"] = "0600"
    (tmp_path / "manifest").write_text(json.dumps(changed))
    found = failures(seen(demo.disk, against=tmp_path / "manifest"))
    assert len(found) == 21
    assert found["manifest"] == "20 more differences"


def test_a_damaged_image_is_not_what_the_manifest_describes(demo: Demo, manifest: Path) -> None:
    """K0.10"""
    with damaged(demo.disk, find(demo.disk, demo.stored.rootfs.image[:1152]) + 1030):
        found = failures(seen(demo.disk, against=manifest))
    assert found["manifest digest"] == f"what is here is not what {demo.digest} stands for"
    assert "it is damaged" in found["manifest contents"]


GOOD = {"format": "oci2boot-manifest-1", "image": None, "rootfs": {"fs-verity": "ab" * 32}, "paths": {}}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "null",
        '{"format": "other"}',
        '{"format": "oci2boot-manifest-1", "rootfs": 1, "paths": {}}',
        "[" * 100_000,
        json.dumps({**GOOD, "image": 1}),
        json.dumps({**GOOD, "rules": 1}),
        json.dumps({**GOOD, "paths": {"/": 1}}),
    ],
)
def test_what_is_no_manifest_is_one_sentence(demo: Demo, text: str, tmp_path: Path) -> None:
    path = tmp_path / "manifest"
    path.write_text(text)
    with pytest.raises(FormatError, match="manifest"):
        seen(demo.disk, against=path)
