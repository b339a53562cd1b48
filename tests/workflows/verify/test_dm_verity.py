"""`verify` on disks under dm-verity: what is intact passes, and whatever is changed is told."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from oci2boot.boot.roothash import pack_partition, sign_root_hash
from oci2boot.digest import RootHash
from oci2boot.errors import FormatError
from oci2boot.rootfs.dmverity import SIGNATURE_NAME, VerityOptions
from oci2boot.workflows.progress import silent
from oci2boot.workflows.verify.disk import Verified, VerifyRequest, verify
from oci2boot.workflows.verify.explain import ExplainRequest, explain
from oci2boot.workflows.verify.inspect import measured_manifest
from tests import vm
from tests.boot import debian
from tests.flips import damaged
from tests.keys import Pair, make
from tests.partitions import table
from tests.store.stored import layer
from tests.tarballs import file, symlink
from tests.target.disks import said
from tests.workflows.sealable import kernel, profiles, uki
from tests.workflows.verity_disks import EMBEDDED, TARS, UKI, Image, converted


@pytest.fixture(autouse=True)
def erofs_utils(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put Debian 13's fsck.erofs first on PATH."""
    monkeypatch.setenv("PATH", str(debian.erofs_utils("fsck.erofs").parent), prepend=":")


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make(tmp_path_factory.mktemp("keys"), "db")


def signed_files(key: Pair, image: Image, words: str) -> Mapping[str, bytes]:
    signer = key.signer
    return {
        UKI: uki(words),
        f"{UKI}.extra.d/{SIGNATURE_NAME}": sign_root_hash(image.root_hash, signer),
        "EFI/BOOT/BOOTX64.EFI": kernel(),
    }


@pytest.fixture(scope="module")
def image(key: Pair, tmp_path_factory: pytest.TempPathFactory) -> Image:
    repo = tmp_path_factory.mktemp("store") / "repo"
    plain = converted(repo, TARS, VerityOptions(), key)
    files = signed_files(key, plain, f"quiet roothash={plain.root_hash} dm_verity.require_signatures=1")
    return converted(repo, TARS, VerityOptions(), key, esp=files)


@pytest.fixture(scope="module")
def disk(image: Image, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image.install(tmp_path_factory.mktemp("disk") / "disk.raw").target


def looked_at(disk: Path, *db: Path) -> Verified:
    return verify(VerifyRequest(disk, db=db), silent)


def failures(disk: Path, *db: Path) -> dict[str, str]:
    return {check.name: check.evidence for check in looked_at(disk, *db).checks if check.state == "failed"}


def start(disk: Path, name: str) -> int:
    (found,) = (part["start"] for part in table(disk) if part["name"] == name)
    return int(found)


def test_a_fresh_disk_is_intact(image: Image, disk: Path) -> None:
    """K0.10: everything that can be checked is, and what cannot is named."""
    verified = looked_at(disk)
    assert [check for check in verified.checks if check.state == "failed"] == []
    found = {check.name: (check.state, check.evidence) for check in verified.checks}
    root_hash = image.root_hash
    assert found[f"UKI {UKI}"] == ("ok", f"roothash={root_hash} is a root file system that is here")
    blocks = image.record.data_blocks
    assert found[f"root file system {root_hash}"] == (
        "ok",
        f"{blocks} blocks of 4096 bytes hashed, and the whole hash tree",
    )
    assert found["partition 2"] == ("ok", f"EROFS of {image.record.data_size} bytes, and zeros")
    assert found["EROFS"][0] == "ok"
    assert found["read-only attributes"] == ("ok", "2 partitions")
    assert found["boot files"] == ("ok", "3 files are what was installed")
    signatures = [f"signature {UKI}.extra.d/{SIGNATURE_NAME}", "signature partition 4"]
    assert [found[name][0] for name in ("/etc", "/var", *signatures)] == ["not checked"] * 4


def test_the_signature_of_the_root_hash_is_held_to_db(disk: Path, key: Pair, tmp_path: Path) -> None:
    """K1.1"""
    found = {check.name: check for check in looked_at(disk, key.path).checks}
    for name in ("signature partition 4", f"signature {UKI}.extra.d/{SIGNATURE_NAME}"):
        assert found[name].state == "ok"
        assert "CN=db" in found[name].evidence
    told = failures(disk, make(tmp_path, "other").path)
    assert "who is not trusted" in told["signature partition 4"]


def test_a_uki_that_counts_its_boots_keeps_its_signature(disk: Path, tmp_path: Path) -> None:
    """systemd-stub(7), "Companion Files": they lie beside the name without the counter, which FAT takes in any case."""
    copy = vm.copy(disk, tmp_path / "copy.raw")
    esp = f"{copy}@@{start(copy, 'ESP')}"
    said("mren", "-i", esp, f"::/{UKI}", "::/EFI/Linux/DEMO_1+2-1.EFI")
    assert failures(copy) == {}
    assert f"signature {UKI}.extra.d/{SIGNATURE_NAME}" in [check.name for check in looked_at(copy).checks]


@pytest.mark.parametrize("name", ["root", "root-verity"])
def test_one_flipped_byte_is_found(name: str, image: Image, disk: Path) -> None:
    """K0.9, K0.10: in data and tree alike."""
    offset = image.record.data_size // 2 if name == "root" else 4096 + 40
    with damaged(disk, start(disk, name) + offset):
        told = failures(disk)
    what = f"root file system {image.root_hash}"
    assert set(told) - {"EROFS"} == {what}
    assert ("promised is" if name == "root" else "level 0 of the hash tree") in told[what]
    assert failures(disk) == {}


# Offsets: lib/verity/verity.c of cryptsetup, erofs_fs.h and ext4.h of Linux.
CHANGES = {
    "superblock": ("root-verity", 3, "root file system", "no dm-verity superblock"),
    "blocks of data": ("root-verity", 72 + 3, "root file system", "and there are fewer"),
    "behind": ("root", -1, "partition 2", "something behind the file system"),
    "signature": ("root-verity-sig", 20, "partition 4", ""),
    "state": ("oci2boot-state", 1024 + 56, "state", ""),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_other_places_are_looked_at_too(change: tuple[str, int, str, str], disk: Path) -> None:
    """K1.10"""
    name, offset, check, words = change
    size = next(part["size"] for part in table(disk) if part["name"] == name)
    with damaged(disk, start(disk, name) + offset % size, 0x40):
        ((told, evidence),) = failures(disk).items()
    assert told.startswith(check)
    assert words in evidence


def written(disk: Path, name: str, at: int, content: bytes, folder: Path) -> Path:
    copy = vm.copy(disk, folder / "written.raw")
    with copy.open("r+b") as file:
        file.seek(start(copy, name) + at)
        file.write(content)
    return copy


def test_a_tree_of_another_hash_is_none(disk: Path, image: Image, tmp_path: Path) -> None:
    told = failures(written(disk, "root-verity", 32, b"sha512", tmp_path))
    assert told == {f"root file system {image.root_hash}": "the hash tree is of sha512, the root hash of sha256"}


def test_what_says_that_it_is_larger_than_its_partition_is_no_file_system(disk: Path, tmp_path: Path) -> None:
    """erofs_fs.h: the number of blocks is 36 bytes into the superblock."""
    checks = looked_at(written(disk, "root", 1024 + 36, b"\0\0\0\x01", tmp_path)).checks
    assert any("no EROFS that fits" in check.evidence for check in checks if check.state == "failed")


def test_the_file_system_is_read_by_another_program_too(disk: Path, tmp_path: Path) -> None:
    """erofs_fs.h: where its root directory is, 14 bytes into the superblock. By fsck.erofs."""
    assert "EROFS" in failures(written(disk, "root", 1024 + 14, b"\xff\xff", tmp_path))


def test_without_that_program_it_is_not_checked(
    disk: Path, image: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = manifest_of(image, tmp_path / "manifest.json")
    monkeypatch.setenv("PATH", str(tmp_path))
    verified = verify(VerifyRequest(disk, against=manifest), silent)
    found = {check.name: check for check in verified.checks}
    for name in ("EROFS", "manifest contents"):
        assert found[name].state == "not checked"
        assert "there is no fsck.erofs" in found[name].evidence
    assert verified.ok


def test_two_partitions_of_one_guid_are_none(disk: Path, image: Image, tmp_path: Path) -> None:
    """Nobody knows which of them the kernel would take. By sgdisk."""
    copy = vm.copy(disk, tmp_path / "copy.raw")
    guid = image.root_hash.data_uuid
    said("sgdisk", "--typecode=5:8304", f"--partition-guid=5:{guid}", "--attributes=5:set:60", copy)
    assert f"2 root partition has the GUID {guid}" in failures(copy)[f"root file system {image.root_hash}"]


def test_what_no_uki_boots_is_named(disk: Path, tmp_path: Path) -> None:
    """sysupdate.d(5): `_empty` is the label of what waits for an update. By sgdisk."""
    copy = vm.copy(disk, tmp_path / "copy.raw")
    said("sgdisk", "--change-name=4:_empty", "--typecode=5:8304", copy)
    found = {check.name: (check.state, check.evidence) for check in looked_at(copy).checks}
    assert found["partition 4"] == ("not checked", "_empty: it waits for a signature")
    assert found["partition 5"] == ("not checked", "oci2boot-state: no UKI boots it")
    assert found["state"] == ("ok", "the machine keeps nothing that it writes")


def test_a_signature_is_of_a_root_hash_that_is_promised(disk: Path, image: Image, key: Pair, tmp_path: Path) -> None:
    """K1.1"""
    signer = key.signer
    other = RootHash.parse("ab" * 32)
    for root_hash, said_of in ((other, "which no UKI promises"), (image.root_hash, "")):
        content = pack_partition(root_hash, sign_root_hash(other, signer), key.certificate)
        told = failures(written(disk, "root-verity-sig", 0, content, tmp_path))
        assert told.keys() == {"signature partition 4"}
        assert said_of in told["signature partition 4"]


def test_the_table_is_held_to_what_it_was(image: Image, tmp_path: Path) -> None:
    disk = image.install(tmp_path / "disk.raw").target
    said("sgdisk", "--attributes=3:clear:60", disk)
    assert failures(disk) == {"partition 3": "it has no read-only attribute"}
    said("sgdisk", "--attributes=3:set:60", "--partition-guid=3:R", disk)
    told = failures(disk)
    assert f"no hash partition has the GUID {image.root_hash.hash_uuid}" in told[f"root file system {image.root_hash}"]


def test_an_embedded_tree_is_checked(tmp_path: Path) -> None:
    """K1.9"""
    image = converted(tmp_path / "repo", TARS, EMBEDDED)
    offset = image.record.data_size
    words = f"roothash={image.root_hash} systemd.verity_root_options=hash-offset={offset}"
    disk = converted(tmp_path / "repo", TARS, EMBEDDED, words=words).install(tmp_path / "disk.raw").target
    assert failures(disk) == {}
    for at in (100, offset + 4096 + 40):
        with damaged(disk, start(disk, "root") + at):
            assert f"root file system {image.root_hash}" in failures(disk)
    with damaged(disk, start(disk, "root") + offset + image.record.hash_size + 5):
        assert "behind the file system" in failures(disk)["partition 2"]


def test_each_place_of_a_tree_is_looked_at(tmp_path: Path) -> None:
    """K1.9: two profiles that differ in it alone; whichever is booted, the worse one counts."""
    image = converted(tmp_path / "repo", TARS, EMBEDDED)
    words = f"roothash={image.root_hash} systemd.verity_root_options=hash-offset="
    files = {UKI: profiles(f"{words}4096", f"{words}{image.record.data_size}")}
    disk = converted(tmp_path / "repo", TARS, EMBEDDED, esp=files).install(tmp_path / "disk.raw").target
    assert "no dm-verity superblock" in failures(disk)[f"root file system {image.root_hash}"]
    told = compared(disk, manifest_of(image, tmp_path / "manifest.json"))
    assert "is not what" in told["manifest digest"]


def test_what_is_not_guarded_is_named(tmp_path: Path) -> None:
    """K1.13, K0.5"""
    part = converted(tmp_path / "1", TARS, VerityOptions(blocks=100)).install(tmp_path / "1.raw").target
    assert failures(part) == {}
    evidence = [check.evidence for check in looked_at(part).checks if check.state == "not checked"]
    assert any("only the first 409600 of the" in one for one in evidence)
    none = converted(tmp_path / "2", TARS, VerityOptions(verity=False)).install(tmp_path / "2.raw").target
    assert "no UKI here has a root hash" in failures(none)["root file system"]


def manifest_of(image: Image, target: Path) -> Path:
    target.write_text(json.dumps(measured_manifest("demo", image.repo).to_json()))
    return target


def compared(disk: Path, manifest: Path) -> dict[str, str]:
    checks = verify(VerifyRequest(disk, against=manifest), silent).checks
    assert any(check.name.startswith("manifest") for check in checks)
    return {check.name: check.evidence for check in checks if check.state == "failed" and "manifest" in check.name}


def test_a_disk_is_what_its_manifest_describes(image: Image, disk: Path, tmp_path: Path) -> None:
    """K0.10: on a fresh disk, and on none that was changed in any way."""
    manifest = manifest_of(image, tmp_path / "manifest.json")
    assert compared(disk, manifest) == {}
    verified = verify(VerifyRequest(disk, against=manifest), silent)
    assert [check.state for check in verified.checks if check.name == "manifest contents"] == ["ok"]
    with damaged(disk, start(disk, "root") + image.erofs.index(b"inline")):
        assert {"manifest digest", "manifest /etc/inline"} <= compared(disk, manifest).keys()


def test_another_disk_differs_file_by_file(disk: Path, tmp_path: Path) -> None:
    """K0.10"""
    parts = [file(b"usr/bin/tool", b"other"), file(b"usr/bin/more", b""), symlink(b"etc/link", b"inline")]
    other = converted(tmp_path / "repo", [*TARS, layer(*parts)], VerityOptions())
    told = compared(disk, manifest_of(other, tmp_path / "manifest.json"))
    assert f"the manifest is of {other.root_hash}" in told.pop("manifest digest")
    assert set(told) == {"manifest /usr/bin/tool", "manifest /usr/bin/more", "manifest /etc/link"}
    assert told["manifest /etc/link"] == "path: symlink in the manifest, absent here"


def test_a_manifest_without_a_root_hash_is_of_no_such_disk(disk: Path, tmp_path: Path) -> None:
    """K0.6"""
    other = converted(tmp_path / "repo", TARS, VerityOptions(verity=False))
    told = compared(disk, manifest_of(other, tmp_path / "manifest.json"))
    assert "names no root hash" in told["manifest digest"]


def test_explain_says_what_it_is(disk: Path, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="EROFS that fills a partition"):
        explain(ExplainRequest(str(disk), str(disk), tmp_path), silent)
