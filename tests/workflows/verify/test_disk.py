"""A disk is intact, or the check that finds out is named. C.2, K0.10.

The bytes that are damaged are those that fsverity(1), mtools and e2fsprogs say are there; that a damage is one, they
say too.
"""

import json
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from oci2boot.errors import Error, FormatError, TargetError
from oci2boot.formats.fsverity import measure
from oci2boot.store.images import find_image
from oci2boot.store.repository import Repository
from oci2boot.target.luks import Secret
from oci2boot.target.plan import LUKS_HEADER
from oci2boot.workflows.install.disk import install
from oci2boot.workflows.progress import Event, Step, silent
from oci2boot.workflows.requests import InstallRequest
from oci2boot.workflows.verify.disk import VerifyRequest, verify
from tests.flips import damaged
from tests.partitions import table
from tests.witness import program
from tests.workflows.disks import (
    BIG,
    SMALL,
    UKI,
    Demo,
    copied,
    debugfs,
    find,
    is_clean,
)
from tests.workflows.verify.looking import failures, physical_root, seen, states


def test_a_fresh_disk_is_intact(demo: Demo) -> None:
    verified = seen(demo.disk)
    assert failures(verified) == {}
    assert verified.ok
    assert states(verified) == {
        "partition table": "ok",
        "root file system": "ok",
        "repository": "ok",
        f"rootfs image {demo.digest}": "ok",
        "streams": "ok",
        "objects": "ok",
        "/etc": "not checked",
        "/var": "not checked",
        "EFI system partition": "ok",
        f"UKI {UKI}": "ok",
        "boot files": "ok",
        f"signature {UKI}": "not checked",
        "signature EFI/BOOT/BOOTX64.EFI": "not checked",
    }
    # Those of the rootfs image, the record and its stream, and the three files of the ESP.
    assert f"{43 + 2 + 3} objects" in {check.name: check.evidence for check in verified.checks}["objects"]
    assert json.loads(json.dumps(verified.to_json()))["ok"] is True


SECRET = Secret(b"sesame", pbkdf_memory=32 << 10)


@pytest.fixture(scope="module")
def encrypted(demo: Demo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    disk = tmp_path_factory.mktemp("encrypted") / "disk.raw"
    install(InstallRequest(repo=demo.repo, target=disk, name="demo", secret=SECRET), silent)
    return disk


def test_an_encrypted_disk_is_read_by_its_passphrase(demo: Demo, encrypted: Path) -> None:
    """D.24, P.8: the same checks, with the same results."""
    verified = seen(encrypted, secret=SECRET)
    assert verified.ok
    assert states(verified) == states(seen(demo.disk))
    wrong = seen(encrypted, secret=Secret(b"open"))
    assert not wrong.ok
    assert "passphrase does not open" in failures(wrong)["root file system"]


def test_an_encrypted_disk_is_not_called_intact_unread(demo: Demo, encrypted: Path) -> None:
    """D.24: what could be seen is told, and what could not."""
    verified = seen(encrypted)
    assert failures(verified) == {}
    assert (verified.ok, verified.to_json()["ok"], verified.to_json()["complete"]) == (False, False, False)
    found = states(verified)
    assert (found["partition table"], found["EFI system partition"]) == ("ok", "ok")
    assert {found["root file system"], found[f"UKI {UKI}"], found["boot files"]} == {"not checked"}
    assert demo.digest in {check.name: check.evidence for check in verified.checks}[f"UKI {UKI}"]


def test_a_flipped_bit_under_encryption_is_found(demo: Demo, encrypted: Path) -> None:
    """D.24: encryption is no integrity; fs-verity finds what became noise. Both disks have the same layout inside."""
    at = find(demo.disk, BIG[8192:12288]) - demo.root_start + table(encrypted)[1]["start"] + LUKS_HEADER
    with damaged(encrypted, at):
        found = failures(seen(encrypted, secret=SECRET))
    assert list(found) == [f"object {measure(BIG)}"]
    assert seen(encrypted, secret=SECRET).ok


def test_progress_counts_up_to_all_bytes(demo: Demo) -> None:
    events: list[Event] = []
    verify(VerifyRequest(demo.disk), events.append)
    steps = [event for event in events if isinstance(event, Step)]
    assert steps[-1].finished
    assert steps[-1].done == steps[-1].total


def metadata(content: bytes, tmp_path: Path) -> tuple[bytes, bytes]:
    """Return the Merkle tree and the descriptor that fsverity(1) makes."""
    path, tree, descriptor = tmp_path / "content", tmp_path / "tree", tmp_path / "descriptor"
    path.write_bytes(content)
    words = [f"--out-merkle-tree={tree}", f"--out-descriptor={descriptor}"]
    subprocess.run([program("fsverity"), "digest", path, *words], check=True, capture_output=True)
    return tree.read_bytes(), descriptor.read_bytes()


Place = Callable[[Demo, Path], int]
BIG_OBJECT = f"object {measure(BIG)}"
SMALL_OBJECT = f"object {measure(SMALL)}"
FLIPS: dict[str, tuple[Place, str, str]] = {
    "object": (lambda demo, _: find(demo.disk, BIG[500_000:501_000]), BIG_OBJECT, "its bytes measure"),
    "object of one block": (lambda demo, _: find(demo.disk, SMALL), SMALL_OBJECT, "/usr/bin/small"),
    "leaf of a Merkle tree": (
        lambda demo, tmp: find(demo.disk, metadata(BIG, tmp)[0]) + 4096 + 100,
        BIG_OBJECT,
        "its Merkle tree is not that of its bytes, from byte 4196",
    ),
    "root of a Merkle tree": (
        lambda demo, tmp: find(demo.disk, metadata(BIG, tmp)[0]),
        BIG_OBJECT,
        "its Merkle tree is not that of its bytes, from byte 0",
    ),
    "padding of a Merkle tree": (
        lambda demo, tmp: find(demo.disk, metadata(BIG, tmp)[0]) + 4095,
        BIG_OBJECT,
        "its Merkle tree is not that of its bytes, from byte 4095",
    ),
    "descriptor": (
        lambda demo, tmp: find(demo.disk, metadata(SMALL, tmp)[1]) + 20,
        SMALL_OBJECT,
        "its fs-verity descriptor is not that of the object",
    ),
    "EROFS superblock": (
        lambda demo, _: find(demo.disk, demo.stored.rootfs.image[:1152]) + 1030,
        "rootfs image",
        "its bytes measure",
    ),
    "EROFS inode": (
        lambda demo, _: find(demo.disk, demo.stored.rootfs.image[:4096]) + 3000,
        "rootfs image",
        "its bytes measure",
    ),
    "Merkle tree of the EROFS image": (
        lambda demo, tmp: find(demo.disk, metadata(demo.stored.rootfs.image, tmp)[0]) + 32,
        "rootfs image",
        "its Merkle tree",
    ),
    "digest in the UKI's command line": (
        lambda demo, _: find(demo.disk, f"quiet composefs={demo.digest}".encode()) + 20,
        f"UKI {UKI}",
        "no such root file system is here",
    ),
    "key in the UKI's command line": (
        lambda demo, _: find(demo.disk, f"quiet composefs={demo.digest}".encode()) + 6,
        f"UKI {UKI}",
        "no composefs argument",
    ),
    "other word in the UKI's command line": (
        lambda demo, _: find(demo.disk, f"quiet composefs={demo.digest}".encode()),
        f"boot file {UKI}",
        "its bytes are not those that were installed",
    ),
    "loader configuration": (
        lambda demo, _: find(demo.disk, b"timeout 3\n"),
        "boot file loader/loader.conf",
        "its bytes are not those that were installed",
    ),
    "partition table": (lambda *_: 1024 + 33, "partition table", "the checksum of its entries is wrong"),
}


@pytest.mark.parametrize(("place", "name", "said"), FLIPS.values(), ids=FLIPS.keys())
def test_one_flipped_byte_is_caught_by_name(demo: Demo, place: Place, name: str, said: str, tmp_path: Path) -> None:
    """K0.10; the file system itself stays clean, only the content is not what was promised."""
    at = place(demo, tmp_path)
    with damaged(demo.disk, at):
        assert is_clean(demo)
        found = {found: text for found, text in failures(seen(demo.disk)).items() if found.startswith(name)}
    assert len(found) == 1
    assert said in next(iter(found.values()))


def test_a_broken_checksum_of_the_partition_table_is_what_sgdisk_sees(demo: Demo) -> None:
    with damaged(demo.disk, 512 + 20):
        assert set(failures(seen(demo.disk))) == {"partition table"}
        judged = subprocess.run(
            [program("sgdisk"), "-v", demo.disk], check=False, capture_output=True, text=True, input=""
        )
        assert "CRC" in judged.stdout + judged.stderr
    assert seen(demo.disk).ok


def test_a_damaged_file_system_is_one_failed_check(demo: Demo) -> None:
    with damaged(demo.disk, demo.root_start + 1024 + 0x78):
        assert not is_clean(demo)
        found = failures(seen(demo.disk))
    assert "wrong checksum" in found["root file system"]


def test_an_object_without_its_flag_is_caught(demo: Demo, tmp_path: Path) -> None:
    """The bytes are right, and the kernel would not hold to them."""
    copy = copied(demo, tmp_path)
    debugfs(copy, f"sif /composefs/objects/{measure(SMALL).path} flags 0x80000")
    assert failures(seen(copy.disk)) == {
        SMALL_OBJECT: "it has no fs-verity: the flag of the inode is not set; it is the content of /usr/bin/small"
    }


def test_a_missing_object_is_caught(demo: Demo, tmp_path: Path) -> None:
    copy = copied(demo, tmp_path)
    debugfs(copy, f"rm /composefs/objects/{measure(BIG).path}")
    assert failures(seen(copy.disk)) == {BIG_OBJECT: "it is missing; it is the content of /usr/lib/again"}


def test_a_missing_rootfs_image_is_caught(demo: Demo, tmp_path: Path) -> None:
    copy = copied(demo, tmp_path)
    debugfs(copy, f"rm /composefs/objects/{demo.stored.rootfs.digest.path}")
    found = failures(seen(copy.disk))
    (record,) = (name for name in found if name.startswith("stream oci2boot-"))
    assert found.keys() == {f"rootfs image {demo.digest}", f"UKI {UKI}", record}


def test_an_object_of_another_size_than_the_image_says_is_caught(demo: Demo, tmp_path: Path) -> None:
    copy = copied(demo, tmp_path)
    debugfs(copy, f"sif /composefs/objects/{measure(SMALL).path} size 999")
    assert "it has 999 bytes, the rootfs image says 1000" in "".join(failures(seen(copy.disk)).values())


def test_many_damaged_objects_are_counted(demo: Demo, tmp_path: Path) -> None:
    copy = copied(demo, tmp_path)
    lines = "\n".join(
        f"sif /composefs/objects/{measure(b'%d' % number * 1000).path} flags 0x80000" for number in range(30)
    )
    subprocess.run(
        [program("debugfs"), "-w", "-f", "/dev/stdin", copy.root],
        input=lines,
        check=True,
        capture_output=True,
        text=True,
    )
    found = failures(seen(copy.disk))
    assert len(found) == 21
    assert found["objects"] == "10 more failed"


def test_a_damaged_object_of_a_mounted_root_is_caught(demo: Demo, tmp_path: Path) -> None:
    copy = physical_root(demo, tmp_path)
    (copy / "composefs/objects" / measure(BIG).path).write_bytes(BIG[:-1] + b"x")
    assert f"object {measure(BIG)} is damaged" in failures(seen(copy))["repository"]


def test_a_record_is_not_read_in_part(demo: Demo, tmp_path: Path) -> None:
    """One that is valid up to the limit is none."""
    copy = physical_root(demo, tmp_path)
    state = copy / "state/deploy" / demo.digest
    state.mkdir()
    with Repository.open(demo.repo) as repository:
        record = json.dumps(find_image(repository, None).to_json()).encode()
    (state / "oci2boot.json").write_bytes(record.ljust(1 << 20))
    assert failures(seen(copy)) == {}
    (state / "oci2boot.json").write_bytes(record.ljust((1 << 20) + 1))
    assert f"has {(1 << 20) + 1} bytes, at most" in failures(seen(copy))[f"record {demo.digest}"]


def test_a_repository_is_verified_too(demo: Demo) -> None:
    verified = seen(demo.repo)
    assert verified.kind == "repository"
    assert verified.ok


# Hostile input


def test_targets_that_are_none_are_one_sentence(demo: Demo, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    for target, error in (
        (tmp_path / "nowhere", TargetError),
        (tmp_path, TargetError),
        (tmp_path / "empty", FormatError),
        (demo.repo / "meta.json", FormatError),
    ):
        with pytest.raises(error):
            seen(target)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damage_anywhere_ends_in_checks_or_one_sentence(demo: Demo, data: st.DataObject) -> None:
    place = data.draw(st.sampled_from((0, 512, 1024, 1 << 20, demo.root_start + 1024, demo.root_start + 4096)))
    size = 90 if place < 1 << 20 else 3000
    with damaged(demo.disk, place + data.draw(st.integers(0, size)), data.draw(st.integers(1, 255))), suppress(Error):
        seen(demo.disk)
