"""A disk is intact, or the check that finds out is named. C.2, K0.10.

The bytes that are damaged are those that fsverity(1), mtools and e2fsprogs say are there; that a damage is one, they
say too.
"""

import hashlib
import json
import shutil
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
from oci2boot.workflows.verify.disk import Verified, VerifyRequest, verify
from oci2boot.workflows.verify.inspect import measured_manifest
from tests.keys import Pair, make
from tests.tarballs import file
from tests.witness import program
from tests.workflows.disks import (
    BIG,
    SMALL,
    UKI,
    Demo,
    boot_files,
    copied,
    debugfs,
    find,
    flipped,
    installed,
    is_clean,
    layers,
)
from tests.workflows.sealable import addon, profiles, uki


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    return installed(tmp_path_factory.mktemp("demo"), layers())


def seen(target: Path, **options: object) -> Verified:
    return verify(VerifyRequest(target, **options), silent)  # type: ignore[arg-type]


def failures(verified: Verified) -> dict[str, str]:
    return {check.name: check.evidence for check in verified.checks if check.state == "failed"}


def states(verified: Verified) -> dict[str, str]:
    return {check.name: check.state for check in verified.checks}


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
    listed = subprocess.check_output([program("sfdisk"), "--json", encrypted])
    part = json.loads(listed)["partitiontable"]["partitions"][1]
    at = find(demo.disk, BIG[8192:12288]) - demo.root_start + part["start"] * 512 + LUKS_HEADER
    with flipped(encrypted, at):
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
    "object": (lambda demo, tmp: find(demo.disk, BIG[500_000:501_000]), BIG_OBJECT, "its bytes measure"),
    "object of one block": (lambda demo, tmp: find(demo.disk, SMALL), SMALL_OBJECT, "/usr/bin/small"),
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
        lambda demo, tmp: find(demo.disk, demo.stored.rootfs.image[:1152]) + 1030,
        "rootfs image",
        "its bytes measure",
    ),
    "EROFS inode": (
        lambda demo, tmp: find(demo.disk, demo.stored.rootfs.image[:4096]) + 3000,
        "rootfs image",
        "its bytes measure",
    ),
    "Merkle tree of the EROFS image": (
        lambda demo, tmp: find(demo.disk, metadata(demo.stored.rootfs.image, tmp)[0]) + 32,
        "rootfs image",
        "its Merkle tree",
    ),
    "digest in the UKI's command line": (
        lambda demo, tmp: find(demo.disk, f"quiet composefs={demo.digest}".encode()) + 20,
        f"UKI {UKI}",
        "no such root file system is here",
    ),
    "key in the UKI's command line": (
        lambda demo, tmp: find(demo.disk, f"quiet composefs={demo.digest}".encode()) + 6,
        f"UKI {UKI}",
        "no composefs argument",
    ),
    "other word in the UKI's command line": (
        lambda demo, tmp: find(demo.disk, f"quiet composefs={demo.digest}".encode()),
        f"boot file {UKI}",
        "its bytes are not those that were installed",
    ),
    "loader configuration": (
        lambda demo, tmp: find(demo.disk, b"timeout 3\n"),
        "boot file loader/loader.conf",
        "its bytes are not those that were installed",
    ),
    "partition table": (lambda demo, tmp: 1024 + 33, "partition table", "the checksum of its entries is wrong"),
}


@pytest.mark.parametrize(("place", "name", "said"), FLIPS.values(), ids=FLIPS.keys())
def test_one_flipped_byte_is_caught_by_name(demo: Demo, place: Place, name: str, said: str, tmp_path: Path) -> None:
    """K0.10; the file system itself stays clean, only the content is not what was promised."""
    at = place(demo, tmp_path)
    with flipped(demo.disk, at):
        assert is_clean(demo)
        found = {found: text for found, text in failures(seen(demo.disk)).items() if found.startswith(name)}
    assert len(found) == 1
    assert said in next(iter(found.values()))


def test_a_broken_checksum_of_the_partition_table_is_what_sgdisk_sees(demo: Demo) -> None:
    with flipped(demo.disk, 512 + 20):
        assert set(failures(seen(demo.disk))) == {"partition table"}
        judged = subprocess.run(
            [program("sgdisk"), "-v", demo.disk], check=False, capture_output=True, text=True, input=""
        )
        assert "CRC" in judged.stdout + judged.stderr
    assert seen(demo.disk).ok


def test_a_damaged_file_system_is_one_failed_check(demo: Demo) -> None:
    with flipped(demo.disk, demo.root_start + 1024 + 0x78):
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


# UKIs and the promises that they make


def on_esp(demo: Demo, tmp_path: Path, files: dict[str, bytes]) -> Path:
    """Return the root of the disk as a mounted one is seen, and an ESP beside it."""
    esp = tmp_path / "esp"
    for path, content in files.items():
        (esp / path).parent.mkdir(parents=True, exist_ok=True)
        (esp / path).write_bytes(content)
    return esp


def physical_root(demo: Demo, tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "state/deploy").mkdir(parents=True)
    shutil.copytree(demo.repo, root / "composefs", symlinks=True)
    return root


@pytest.fixture(scope="module")
def root(demo: Demo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return physical_root(demo, tmp_path_factory.mktemp("root"))


def test_a_mounted_root_with_its_esp_is_intact(demo: Demo, root: Path, tmp_path: Path) -> None:
    verified = seen(root, esp=on_esp(demo, tmp_path, boot_files(demo.digest)))
    assert verified.kind == "physical root"
    assert failures(verified) == {}
    assert states(verified)[f"UKI {UKI}"] == "ok"


GOOD = "composefs={digest}"
OTHER = "composefs=" + "ab" * 32
PROMISES: dict[str, tuple[Callable[[str], dict[str, bytes]], str | None]] = {
    "by composefs.digest=": (lambda d: {UKI: uki(f"composefs.digest=v1-sha256-12:{d}")}, None),
    "by an addon": (
        lambda d: {UKI: uki("quiet"), f"{UKI}.extra.d/a.addon.efi": addon(f"composefs={d}")},
        None,
    ),
    "by an addon of a UKI that counts its boots": (
        lambda d: {
            "EFI/Linux/demo+2-1.efi": uki("quiet"),
            "EFI/Linux/demo.efi.extra.d/a.addon.efi": addon(f"composefs={d}"),
        },
        None,
    ),
    "for the other of two hashes": (lambda d: {UKI: uki(f"composefs={d} composefs={'ab' * 64}")}, None),
    "in every profile": (lambda d: {UKI: profiles(f"composefs={d}", None, f"quiet composefs={d}")}, None),
    "another in one profile": (
        lambda d: {UKI: profiles(f"composefs={d}", None, OTHER)},
        "no such root file system is here",
    ),
    "none in one profile": (lambda d: {UKI: profiles(f"composefs={d}", "quiet")}, "has no composefs argument"),
    "optional": (lambda d: {UKI: uki(f"composefs=?{d}")}, "makes verification optional"),
    "malformed": (lambda d: {UKI: uki("composefs=zz")}, "not a composefs argument"),
    "none": (lambda d: {UKI: uki("quiet")}, "has no composefs argument"),
    "by an addon that is not loaded": (
        lambda d: {UKI: uki("quiet"), f"{UKI}.extra.d/a.efi": addon(f"composefs={d}")},
        "has no composefs argument",
    ),
    "by what is no UKI": (lambda d: {UKI: b"MZ" + bytes(100)}, "not an EFI executable"),
}


@pytest.mark.parametrize(("files", "said"), PROMISES.values(), ids=PROMISES.keys())
def test_what_a_uki_promises_is_here(
    demo: Demo, root: Path, files: Callable[[str], dict[str, bytes]], said: str | None, tmp_path: Path
) -> None:
    """C.2"""
    found = failures(seen(root, esp=on_esp(demo, tmp_path, files(demo.digest))))
    ukis = [text for name, text in found.items() if name.startswith("UKI EFI/Linux/demo")]
    if said is None:
        assert ukis == []
    else:
        assert len(ukis) == 1
        assert said in ukis[0]


def test_an_addon_that_runs_something_else_is_named(demo: Demo, root: Path, tmp_path: Path) -> None:
    """C.36: no failure, for who may sign addons may do so."""
    shell = {f"{UKI}.extra.d/shell.addon.efi": addon("quiet systemd.unit=emergency.target")}
    verified = seen(root, esp=on_esp(demo, tmp_path, {UKI: uki(f"composefs={demo.digest}"), **shell}))
    (check,) = [check for check in verified.checks if check.name == f"addon shell.addon.efi of {UKI}"]
    assert check.state == "not checked"
    assert "systemd.unit=emergency.target" in check.evidence
    assert "quiet" not in check.evidence


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("rw composefs={}", None),
        ("rw", "has no composefs argument"),
        (OTHER, "no such root file system is here"),
        ("composefs=?{}", "makes verification optional"),
    ],
)
def test_what_a_type_1_entry_promises_is_here(
    demo: Demo, root: Path, options: str, said: str | None, tmp_path: Path
) -> None:
    """C.2, D.16"""
    text = f"linux /linux\noptions {options.format(demo.digest)}\n"
    verified = seen(root, esp=on_esp(demo, tmp_path, {"loader/entries/demo.conf": text.encode()}))
    found = failures(verified)
    assert list(found) == ([] if said is None else ["entry loader/entries/demo.conf"])
    assert said is None or said in found["entry loader/entries/demo.conf"]
    assert states(verified)["command line of loader/entries/demo.conf"] == "not checked"


def test_an_esp_without_a_uki_boots_nothing(demo: Demo, root: Path, tmp_path: Path) -> None:
    found = failures(seen(root, esp=on_esp(demo, tmp_path, {"loader/loader.conf": b""})))
    assert found == {"UKI": "there is none that could be booted"}


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


# Signatures


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Pair, Pair]:
    folder = tmp_path_factory.mktemp("keys")
    return make(folder, "ours"), make(folder, "theirs")


def sbsigned(pair: Pair, data: bytes, tmp_path: Path) -> bytes:
    plain, signed = tmp_path / "plain.efi", tmp_path / "signed.efi"
    plain.write_bytes(data)
    words: list[str | Path] = ["--key", pair.key, "--cert", pair.path, "--output", signed, plain]
    subprocess.run([program("sbsign"), *words], check=True, capture_output=True)
    return signed.read_bytes()


def test_signatures_are_held_to_the_certificates_given(
    demo: Demo, root: Path, keys: tuple[Pair, Pair], tmp_path: Path
) -> None:
    """A signature by sbsign; C.2"""
    ours, theirs = keys
    files = {
        path: sbsigned(ours, data, tmp_path)
        for path, data in boot_files(demo.digest).items()
        if path[-3:] in ("efi", "EFI")
    }
    esp = on_esp(demo, tmp_path, files)
    assert states(seen(root, esp=esp, db=(ours.path,)))[f"signature {UKI}"] == "ok"
    assert states(seen(root, esp=esp))[f"signature {UKI}"] == "not checked"
    strangers = failures(seen(root, esp=esp, db=(theirs.path,)))
    assert strangers.keys() == {f"signature {UKI}", "signature EFI/BOOT/BOOTX64.EFI"}
    data = bytearray(files[UKI])
    data[data.index(b"quiet composefs")] ^= 1
    (esp / UKI).write_bytes(data)
    for options in ({}, {"db": (ours.path,)}):
        assert "changed after it was signed" in failures(seen(root, esp=esp, **options))[f"signature {UKI}"]
    unsigned = on_esp(demo, tmp_path / "unsigned", boot_files(demo.digest))
    assert "not signed" in failures(seen(root, esp=unsigned, db=(ours.path,)))[f"signature {UKI}"]


# The manifest


@pytest.fixture(scope="module")
def manifest(demo: Demo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("manifest") / "manifest.json"
    path.write_text(json.dumps(measured_manifest("demo", demo.repo)))
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
    assert measured_manifest("demo", demo.repo) == found


def test_a_disk_equals_the_manifest_of_what_it_was_made_from(demo: Demo, manifest: Path) -> None:
    """K0.10"""
    verified = seen(demo.disk, against=manifest)
    assert verified.ok
    assert states(verified)["manifest digest"] == "ok"


def test_a_disk_of_another_image_differs_by_path_and_field(manifest: Path, demo: Demo, tmp_path: Path) -> None:
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
    ],
)
def test_what_is_no_manifest_is_one_sentence(demo: Demo, text: str, tmp_path: Path) -> None:
    path = tmp_path / "manifest"
    path.write_text(text)
    with pytest.raises(FormatError, match="manifest"):
        seen(demo.disk, against=path)


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
    with flipped(demo.disk, place + data.draw(st.integers(0, size)), data.draw(st.integers(1, 255))), suppress(Error):
        seen(demo.disk)
