"""Disks with a root file system under dm-verity.

Witnesses: veritysetup, systemd-repart, sfdisk, sgdisk, e2fsck, debugfs, mtools.
"""

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from oci2boot.errors import DigestError, StoreError, TargetError
from oci2boot.rootfs.dmverity import Overlay, VerityOptions
from oci2boot.store.repository import Repository
from oci2boot.sysroot.first_boot import FirstBoot
from oci2boot.target.device import write_device
from oci2boot.target.luks import Secret
from tests.boot import debian
from tests.flips import flip
from tests.keys import Pair, make
from tests.partitions import partition, table
from tests.target.disks import said
from tests.witness import program
from tests.workflows.verity_disks import EMBEDDED, TARS, UKI, Image, converted

MIB = 1 << 20


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make(tmp_path_factory.mktemp("keys"), "db")


@pytest.fixture(scope="module")
def image(key: Pair, tmp_path_factory: pytest.TempPathFactory) -> Image:
    return converted(tmp_path_factory.mktemp("store") / "repo", TARS, VerityOptions(), key)


@pytest.fixture(scope="module")
def disk(image: Image, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image.install(tmp_path_factory.mktemp("disk") / "disk.raw").target


def verified(folder: Path, disk: Path, root_hash: object, *words: str, hashes: str = "root-verity") -> str:
    data = partition(disk, "root", folder / "data")
    tree = partition(disk, hashes, folder / "tree")
    return said("veritysetup", "verify", *words, data, tree, str(root_hash))


def test_veritysetup_verifies_the_partitions_by_the_word_of_the_uki(disk: Path, tmp_path: Path) -> None:
    """K0.1, K1.8: the root hash is that of the command line, and by halves that of the partitions' names."""
    start = table(disk)[0]["start"]
    said("mcopy", "-n", "-i", f"{disk}@@{start}", f"::/{UKI}", tmp_path / "uki.efi")
    line = said("objcopy", "-O", "binary", "--dump-section", f".cmdline={tmp_path / 'line'}", tmp_path / "uki.efi")
    line = (tmp_path / "line").read_text().rstrip("\0")
    (root_hash,) = (word.removeprefix("roothash=") for word in line.split() if word.startswith("roothash="))
    verified(tmp_path, disk, root_hash)
    _, root, tree, signature, _ = table(disk)
    assert (root["uuid"] + tree["uuid"]).replace("-", "").lower() == root_hash
    content = json.loads(partition(disk, "root-verity-sig", tmp_path / "sig").read_bytes().rstrip(b"\0"))
    assert content["rootHash"] == root_hash
    assert signature["size"] == 16384


def test_the_root_partition_is_the_file_system_and_zeros(image: Image, disk: Path, tmp_path: Path) -> None:
    """K1.10"""
    data = partition(disk, "root", tmp_path / "data").read_bytes()
    size = image.record.data_size
    assert hashlib.sha256(data[:size]).digest() == hashlib.sha256(image.erofs).digest()
    assert not any(data[size:])
    assert len(data) % MIB == 0
    assert len(data) - size < MIB


def test_the_table_is_one_for_other_tools(disk: Path) -> None:
    """K1.8: types and read-only attributes as systemd has them."""
    assert "No problems found" in said("sgdisk", "-v", disk)
    types = {
        line.split()[0]: line.split()[1].lower() for line in said("systemd-id128", "show").splitlines() if line.strip()
    }
    names = ["esp", "root-x86-64", "root-x86-64-verity", "root-x86-64-verity-sig", "linux-generic"]
    found = table(disk)
    assert [part["type"].lower().replace("-", "") for part in found] == [types[name] for name in names]
    assert [part["attrs"] for part in found] == ["", "GUID:60", "GUID:60", "", ""]
    assert [part["name"] for part in found] == ["ESP", "root", "root-verity", "root-verity-sig", "oci2boot-state"]
    assert all(part["start"] % MIB == 0 for part in found)


REPART = {
    "10-root.conf": "Type=root\nLabel=root\nVerity=data\nCopyBlocks={erofs}\n",
    "20-tree.conf": "Type=root-verity\nLabel=root-verity\nVerity=hash\nMinimize=best\n",
    "30-signature.conf": "Type=root-verity-sig\nLabel=root-verity-sig\nVerity=signature\n",
}


def test_systemd_repart_makes_the_same_partitions(image: Image, key: Pair, tmp_path: Path) -> None:
    """K1.8: of the same file system; the salt, which it draws by itself, is taken from what it wrote."""
    erofs, definitions, theirs = tmp_path / "erofs", tmp_path / "definitions", tmp_path / "theirs.raw"
    erofs.write_bytes(image.erofs)
    definitions.mkdir()
    for name, text in REPART.items():
        (definitions / name).write_text(f"[Partition]\nVerityMatchKey=root\n{text.format(erofs=erofs)}")
    words = [f"--definitions={definitions}", f"--private-key={key.key}", f"--certificate={key.path}"]
    words += ["--empty=create", "--size=auto", "--offline=yes", "--dry-run=no", "--architecture=x86-64"]
    said(debian.systemd_repart(), *words, theirs)
    dumped = said("veritysetup", "dump", partition(theirs, "root-verity", tmp_path / "tree"))
    (salt,) = (line.split()[1] for line in dumped.splitlines() if line.startswith("Salt:"))
    own = converted(tmp_path / "repo", TARS, VerityOptions(salt=bytes.fromhex(salt)), key)
    ours = own.install(tmp_path / "ours.raw").target

    def told(part: dict[str, Any]) -> tuple[str, ...]:
        return part["name"], part["type"], part["attrs"], "" if "sig" in part["name"] else part["uuid"]

    assert list(map(told, table(ours)[1:4])) == list(map(told, table(theirs)))
    for name in REPART:
        label = {"1": "root", "2": "root-verity", "3": "root-verity-sig"}[name[0]]
        data = [partition(one, label, tmp_path / "part").read_bytes().rstrip(b"\0") for one in (theirs, ours)]
        # The UUID of a hash area, in bytes 16 to 32, is random.
        cut = (16, 32) if label == "root-verity" else (0, 0)
        assert len({one[: cut[0]] + one[cut[1] :] for one in data}) == 1, label


def test_an_embedded_tree_lies_behind_the_file_system(key: Pair, tmp_path: Path) -> None:
    """K1.9"""
    image = converted(tmp_path / "repo", TARS, EMBEDDED, key)
    disk = image.install(tmp_path / "disk.raw").target
    assert [part["name"] for part in table(disk)] == ["ESP", "root", "root-verity-sig", "oci2boot-state"]
    offset = image.record.data_size
    verified(tmp_path, disk, image.root_hash, f"--hash-offset={offset}", hashes="root")
    assert (tmp_path / "data").read_bytes()[:offset] == image.erofs


@pytest.mark.parametrize("options", [VerityOptions(blocks=100), VerityOptions(hash="sha512", salt=b"")])
def test_veritysetup_verifies_other_kinds(options: VerityOptions, tmp_path: Path) -> None:
    """K0.5, K1.13"""
    image = converted(tmp_path / "repo", TARS, options)
    disk = image.install(tmp_path / "disk.raw").target
    assert [part["name"] for part in table(disk)] == ["ESP", "root", "root-verity", "oci2boot-state"]
    verified(tmp_path, disk, image.root_hash)


def test_without_verity_there_is_a_root_partition_alone(tmp_path: Path) -> None:
    """K0.5, K0.4: and nothing to write to, where nothing is kept."""
    image = converted(tmp_path / "repo", TARS, VerityOptions(verity=False, overlays=(Overlay("/etc", "tmpfs"),)))
    disk = image.install(tmp_path / "disk.raw", size=400 << 20, esp_size=300 << 20).target
    assert [part["name"] for part in table(disk)] == ["ESP", "root"]
    assert "No problems found" in said("sgdisk", "-v", disk)
    assert disk.stat().st_size == 400 << 20
    assert partition(disk, "root", tmp_path / "data").read_bytes().startswith(image.erofs)
    with pytest.raises(StoreError, match="without dm-verity, and a size is given"):
        image.install(tmp_path / "other.raw", verity_size=MIB)


# ---- what the machine writes


def debugfs(state: Path, command: str) -> str:
    done = subprocess.run([program("debugfs"), "-R", command, state], check=True, capture_output=True, text=True)
    return done.stdout + done.stderr.partition("\n")[2]


def test_upper_directories_begin_as_the_image_has_the_place(disk: Path, image: Image, tmp_path: Path) -> None:
    """K0.3, K0.4: they stand for it, with owner and mode."""
    state = partition(disk, "oci2boot-state", tmp_path / "state")
    said("e2fsck", "-fn", state)
    assert "oci2boot-state" in said("dumpe2fs", "-h", state)
    etc = debugfs(state, "stat /state/overlays/etc/upper")
    assert "Mode:  0751" in etc
    assert "User:     3   Group:     4" in etc
    for path in ("/state/overlays/etc/work", "/state/overlays/var/upper", "/state/overlays/var/work"):
        assert "Type: directory" in debugfs(state, f"stat {path}")
        assert {line.split()[-1] for line in debugfs(state, f"ls -l {path}").splitlines() if line.split()} == {
            ".",
            "..",
        }
    record = json.loads(debugfs(state, f"cat /state/deploy/{image.bootable.root.image.hex}/oci2boot.json"))
    assert record["verity"]["root_hash"] == str(image.root_hash)


def test_a_new_machine_is_told_its_name(image: Image, disk: Path, tmp_path: Path) -> None:
    """P.8: in the upper directory; what is verified stays the same."""
    named = image.install(tmp_path / "named.raw", first_boot=FirstBoot("box", credentials={"token": b"secret"}))
    state = partition(named.target, "oci2boot-state", tmp_path / "state")
    said("e2fsck", "-fn", state)
    assert debugfs(state, "cat /state/overlays/etc/upper/hostname") == "box\n"
    assert "Mode:  0600" in debugfs(state, "stat /state/overlays/etc/upper/credstore/token")
    assert "Mode:  0751" in debugfs(state, "stat /state/overlays/etc/upper")
    assert "not found" in debugfs(state, "stat /state/overlays/etc/upper/inline")
    before, after = (partition(one, "root", tmp_path / "root").read_bytes() for one in (disk, named.target))
    assert before == after


@pytest.mark.parametrize("overlays", [(), (Overlay("/var"),), (Overlay("/etc", "tmpfs"),)])
def test_a_name_that_nothing_would_keep_is_refused(overlays: tuple[Overlay, ...], tmp_path: Path) -> None:
    image = converted(tmp_path / "repo", TARS, VerityOptions(overlays=overlays))
    with pytest.raises(TargetError, match="go into /etc, where the machine keeps nothing"):
        image.install(tmp_path / "disk.raw", first_boot=FirstBoot("box"))
    assert [path.name for path in tmp_path.iterdir()] == ["repo"]


def test_a_place_that_the_image_lacks_is_refused(tmp_path: Path) -> None:
    image = converted(tmp_path / "repo", TARS, VerityOptions(overlays=(Overlay("/home"),)))
    with pytest.raises(TargetError, match="/home is not a directory of the image"):
        image.install(tmp_path / "disk.raw")


# ---- sizes and other disks


def test_the_size_of_the_hash_partition_is_held_to_what_it_needs(image: Image, tmp_path: Path) -> None:
    """K1.11"""
    needed = image.record.hash_size
    with pytest.raises(TargetError, match=f"too small for the hash tree: {needed} bytes are needed"):
        image.install(tmp_path / "disk.raw", verity_size=needed - 1)
    for size, made in ((needed, MIB), (5 * MIB, 5 * MIB)):
        disk = image.install(tmp_path / "disk.raw", verity_size=size, wipe=True).target
        assert table(disk)[2]["size"] == made
        verified(tmp_path, disk, image.root_hash)


def test_both_places_at_once_are_refused(tmp_path: Path) -> None:
    """K1.9"""
    image = converted(tmp_path / "repo", TARS, EMBEDDED)
    with pytest.raises(TargetError, match="in the root partition, and a size is given"):
        image.install(tmp_path / "disk.raw", verity_size=100 * MIB)


def test_an_esp_too_small_for_the_uki_is_refused(tmp_path: Path) -> None:
    """K1.12"""
    files = {UKI: bytes(300 * MIB)}
    image = converted(tmp_path / "repo", TARS, VerityOptions(), esp=files)
    with pytest.raises(TargetError, match="EFI system partition of 104857600 bytes is too small") as caught:
        image.install(tmp_path / "disk.raw", esp_size=100 * MIB)
    needed = int(caught.value.message.split(": ")[1].split()[0])
    assert image.install(tmp_path / "disk.raw", esp_size=needed).plan.esp.size == needed


def test_a_disk_too_small_is_refused_with_the_size_it_needs(image: Image, tmp_path: Path) -> None:
    sizes = {"esp_size": 300 * MIB}
    with pytest.raises(TargetError, match="bytes are needed") as caught:
        image.install(tmp_path / "disk.raw", size=310 * MIB, **sizes)
    needed = int(caught.value.message.split(": ")[1].split()[0])
    disk = image.install(tmp_path / "disk.raw", size=needed, **sizes).target
    assert disk.stat().st_size == needed
    said("e2fsck", "-fn", partition(disk, "oci2boot-state", tmp_path / "state"))


def test_the_rest_of_a_larger_disk_is_for_what_is_written(image: Image, tmp_path: Path) -> None:
    """K0.14"""
    installed = image.install(tmp_path / "disk.raw", size=3 << 30)
    assert installed.plan.ext4
    assert installed.plan.ext4.size > 2 << 30
    assert installed.plan.root.size < 2 * MIB + image.record.data_size


def test_sectors_of_4096_bytes(image: Image, tmp_path: Path) -> None:
    installed = image.install(tmp_path / "disk.raw", sector=4096)
    said("fdisk", "-b", "4096", "-l", installed.target)
    for planned in installed.plan.images:
        part = planned.partition
        with installed.target.open("rb") as file:
            file.seek(part.start)
            (tmp_path / part.label).write_bytes(file.read(part.size))
    said("veritysetup", "verify", tmp_path / "root", tmp_path / "root-verity", str(image.root_hash))


def test_a_device_with_something_old_on_it_gets_the_same(image: Image, disk: Path, tmp_path: Path) -> None:
    """P.8: zeros are zeros there too."""
    plan = image.install(tmp_path / "planned.raw", esp_size=280 * MIB).plan
    device = tmp_path / "device"
    with device.open("wb") as file:
        for _ in range(plan.size // (4 * MIB)):
            file.write(b"\xa5" * (4 * MIB))
        file.truncate(plan.size)
    write_device(plan, device)
    assert "No problems found" in said("sgdisk", "-v", device)
    for name in ("root", "root-verity", "root-verity-sig"):
        found = partition(device, name, tmp_path / "found").read_bytes()
        assert found == partition(disk, name, tmp_path / "wanted").read_bytes()
    said("e2fsck", "-fn", partition(device, "oci2boot-state", tmp_path / "state"))


def test_installing_twice_gives_the_same_bytes(image: Image, disk: Path, tmp_path: Path) -> None:
    """B.1"""
    again = image.install(tmp_path / "again.raw").target
    assert subprocess.run([program("cmp"), disk, again], check=False).returncode == 0


def test_encryption_is_refused(image: Image, tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="cannot be encrypted yet"):
        image.install(tmp_path / "disk.raw", secret=Secret(b"sesame"))


@pytest.mark.parametrize("what", ["rootfs", "hash_object", "signature_object"])
def test_a_damaged_object_never_gets_onto_a_disk(what: str, key: Pair, tmp_path: Path) -> None:
    image = converted(tmp_path / "repo", TARS, VerityOptions(), key)
    digest = image.bootable.root.image if what == "rootfs" else getattr(image.record, what)
    with Repository.open(image.repo) as repository:
        victim = repository.object_path(digest)
    victim.chmod(0o644)
    flip(victim, 0)
    with pytest.raises(DigestError, match="should measure"):
        image.install(tmp_path / "disk.raw")
    assert [path.name for path in tmp_path.iterdir()] == ["repo"]
