"""Disks with two slots: one is written while the machine boots from the other.

Witnesses: veritysetup, sfdisk, sgdisk, mtools, fsck.vfat, bootctl's order (by the specification's words alone).
"""

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from oci2boot.errors import DigestError, TargetError
from oci2boot.store.repository import Repository
from oci2boot.workflows.machine.model import DeployPlan
from oci2boot.workflows.machine.place import open_machine
from oci2boot.workflows.machine.rollback import rollback
from oci2boot.workflows.machine.slots import SlotPlace
from oci2boot.workflows.machine.status import read_status
from oci2boot.workflows.progress import silent
from tests.keys import make
from tests.partitions import table
from tests.status_schema import check_status
from tests.target.disks import said
from tests.witness import program
from tests.workflows.slots import MIB, Factory, Menu
from tests.workflows.verity_disks import Image

LOST = re.compile("Leaving filesystem|Reclaimed|Free cluster summary|FATs differ|Using first FAT|Auto-correcting|^ *$")


@pytest.fixture(scope="module")
def factory(tmp_path_factory: pytest.TempPathFactory) -> Factory:
    folder = tmp_path_factory.mktemp("images")
    return Factory(folder, make(folder, "db"))


@pytest.fixture(scope="module")
def one(factory: Factory) -> Image:
    return factory.make(1)


@pytest.fixture(scope="module")
def two(factory: Factory) -> Image:
    return factory.make(2)


@pytest.fixture(scope="module")
def three(factory: Factory) -> Image:
    return factory.make(3)


@pytest.fixture
def disk(one: Image, tmp_path: Path) -> Path:
    return one.install(tmp_path / "disk.raw", ab=True, esp_size=270 * MIB).target


def deploy(image: Image, disk: Path, booted: Any = None, esp: Path | None = None) -> DeployPlan:
    with (
        Repository.open(image.repo) as repository,
        open_machine(SlotPlace(disk, esp, booted), writing=True) as machine,
    ):
        plan = machine.deploy(repository, image.bootable, silent)
    assert plan
    return plan


def boots(disk: Path, folder: Path) -> Iterator[tuple[str, str]]:
    """Yield (UKI, root hash) in the order in which they would be tried, each with all that it needs verified."""
    menu = Menu(disk, folder)
    files = menu.files()
    parts = {part["uuid"].lower().replace("-", ""): part for part in table(disk)}
    for name in menu.ukis():
        (folder / "uki.efi").write_bytes(files[f"EFI/Linux/{name}"])
        said("objcopy", "-O", "binary", "--dump-section", f".cmdline={folder / 'line'}", folder / "uki.efi")
        line = (folder / "line").read_text().rstrip("\0")
        (root_hash,) = (word.removeprefix("roothash=") for word in line.split() if word.startswith("roothash="))
        halves = [parts.get(root_hash[:32]), parts.get(root_hash[-32:])]
        if not all(halves):
            yield name, "missing"
            continue
        for part, to in zip(halves, ("data", "tree"), strict=True):
            assert part
            cut(disk, part, folder / to)
        argv: list[str | Path] = [program("veritysetup"), "verify", folder / "data", folder / "tree", root_hash]
        done = subprocess.run(argv, check=False, capture_output=True, text=True)
        yield name, root_hash if done.returncode == 0 else "damaged"


def cut(disk: Path, part: dict[str, Any], into: Path) -> Path:
    with disk.open("rb") as source:
        source.seek(part["start"])
        into.write_bytes(source.read(part["size"]))
    return into


def slot_bytes(disk: Path, first: int) -> list[bytes]:
    """Return the partitions of a slot, and how the table calls them."""
    found = table(disk)[first : first + 3]
    with disk.open("rb") as file:
        data = []
        for part in found:
            file.seek(part["start"])
            data.append(file.read(part["size"]))
    return [*data, repr(found).encode()]


def bless(disk: Path, number: int) -> None:
    """Take the counter off, as systemd-bless-boot does; mren would forget the case of a short name."""
    start, folder = table(disk)[0]["start"], "::/EFI/Linux"
    drive, kept = f"{disk}@@{start}", disk.with_name("blessed")
    said("mcopy", "-n", "-i", drive, f"{folder}/demo_{number}+3-0.efi", kept)
    said("mcopy", "-i", drive, kept, f"{folder}/demo_{number}.efi")
    said("mdel", "-i", drive, f"{folder}/demo_{number}+3-0.efi")
    kept.unlink()


def sound(disk: Path, *, interrupted: bool = False) -> None:
    """Judge table and file system by other tools; a FAT may lose free space where a command was interrupted."""
    assert "No problems found" in said("sgdisk", "-v", disk)
    part = table(disk)[0]
    scratch = disk.with_name("fsck")
    cut(disk, part, scratch)
    done = subprocess.run([program("fsck.vfat"), "-n", scratch], check=False, capture_output=True, text=True)
    told = [line for line in done.stdout.splitlines()[1:-1] if not (interrupted and LOST.search(line))]
    assert (told, done.stderr) == ([], "")


def test_a_disk_with_two_slots(one: Image, disk: Path, tmp_path: Path) -> None:
    """Partitions with room for later versions, and as many that wait; what grows is last."""
    found = table(disk)
    names = ["ESP", "demo_1", "demo_1_verity", "demo_1_verity_sig", "_empty", "_empty", "_empty", "oci2boot-state"]
    assert [part["name"] for part in found] == names
    assert [part["type"] for part in found[1:4]] == [part["type"] for part in found[4:7]]
    assert [part["size"] for part in found[1:4]] == [part["size"] for part in found[4:7]]
    assert found[1]["size"] >= one.record.data_size * 3 // 2
    assert list(boots(disk, tmp_path)) == [("demo_1.efi", str(one.root_hash))]
    sound(disk)


def test_an_upgrade_goes_to_the_other_slot(one: Image, two: Image, disk: Path, tmp_path: Path) -> None:
    """P.11: the new pair verifies, the old one is as it was to the byte, and stays the fallback."""
    before = slot_bytes(disk, 1)
    deploy(two, disk)
    assert slot_bytes(disk, 1) == before
    assert list(boots(disk, tmp_path)) == [
        ("demo_2+3-0.efi", str(two.root_hash)),
        ("demo_1.efi", str(one.root_hash)),
    ]
    found = table(disk)
    assert [part["name"] for part in found[4:7]] == ["demo_2", "demo_2_verity", "demo_2_verity_sig"]
    assert [part["attrs"] for part in found[4:7]] == [part["attrs"] for part in found[1:4]]
    root = cut(disk, found[4], tmp_path / "root").read_bytes()
    assert root[: len(two.erofs)] == two.erofs
    assert not any(root[len(two.erofs) :])
    files = Menu(disk, tmp_path).files()
    assert files["EFI/Linux/demo_2.efi.extra.d/roothash.p7s.cred"] == b"signature 2"
    sound(disk)


def test_the_third_version_replaces_the_first_once_the_second_is_good(
    one: Image, two: Image, three: Image, disk: Path, tmp_path: Path
) -> None:
    """P.11: until it is blessed, it is the second that is replaced."""
    deploy(two, disk)
    first = slot_bytes(disk, 1)
    bless(disk, 2)
    second = slot_bytes(disk, 4)
    deploy(three, disk)
    assert slot_bytes(disk, 4) == second
    assert slot_bytes(disk, 1) != first
    assert list(boots(disk, tmp_path)) == [
        ("demo_3+3-0.efi", str(three.root_hash)),
        ("demo_2.efi", str(two.root_hash)),
    ]
    deploy(one, disk)
    assert list(boots(disk, tmp_path))[-1] == ("demo_2+0-0.efi", str(two.root_hash))
    assert slot_bytes(disk, 4) == second
    sound(disk)


def test_an_unproven_version_is_replaced_before_a_good_one(
    one: Image, two: Image, three: Image, disk: Path, tmp_path: Path
) -> None:
    before = slot_bytes(disk, 1)
    deploy(two, disk)
    deploy(three, disk)
    assert slot_bytes(disk, 1) == before
    assert list(boots(disk, tmp_path)) == [
        ("demo_3+3-0.efi", str(three.root_hash)),
        ("demo_1.efi", str(one.root_hash)),
    ]


def test_the_same_version_again_writes_nothing(two: Image, disk: Path) -> None:
    deploy(two, disk)
    before = subprocess.run(["sha256sum", disk], check=True, capture_output=True).stdout
    assert deploy(two, disk).to_json()["partitions"] == []
    assert subprocess.run(["sha256sum", disk], check=True, capture_output=True).stdout == before


def test_a_rollback_and_back_again(one: Image, two: Image, disk: Path, tmp_path: Path) -> None:
    """P.11: renames alone; both slots stay."""
    deploy(two, disk)
    rollback(SlotPlace(disk), None, dry_run=True)
    assert Menu(disk, tmp_path).ukis()[0] == "demo_2+3-0.efi"
    rollback(SlotPlace(disk), None)
    assert [name for name, _ in boots(disk, tmp_path)] == ["demo_1.efi", "demo_2+0-0.efi"]
    rollback(SlotPlace(disk), str(two.root_hash)[:8])
    assert Menu(disk, tmp_path).ukis()[0].startswith("demo_2")
    assert {root_hash for _, root_hash in boots(disk, tmp_path)} == {str(one.root_hash), str(two.root_hash)}
    sound(disk)


def test_a_running_machine_keeps_the_slot_that_it_runs_from(
    one: Image, two: Image, three: Image, disk: Path, tmp_path: Path
) -> None:
    """P.11: whatever is first in the menu; its boot directory is mounted, and changed there."""
    Menu(disk, tmp_path).files()
    esp = (tmp_path / "esp").rename(tmp_path / "mounted")
    before = table(disk)[0], slot_bytes(disk, 1)
    start, size = before[0]["start"], before[0]["size"]
    with disk.open("rb") as file:
        file.seek(start)
        partition = file.read(size)
    deploy(two, disk, one.root_hash, esp)
    deploy(three, disk, one.root_hash, esp)
    assert slot_bytes(disk, 1) == before[1]
    assert sorted(path.name for path in esp.glob("EFI/Linux/*.efi")) == ["demo_1.efi", "demo_3+3-0.efi"]
    second = slot_bytes(disk, 4)
    # It runs the new one, which nothing has blessed yet.
    deploy(two, disk, three.root_hash, esp)
    assert slot_bytes(disk, 4) == second
    assert sorted(path.name[:6] for path in esp.glob("EFI/Linux/*.efi")) == ["demo_2", "demo_3"]
    found = check_status(read_status(SlotPlace(disk, esp, three.root_hash)).to_json())
    assert {one["title"]: one["states"] for one in found["deployments"]} == {
        "Demo 2": ["staged"],
        "Demo 3": ["booted"],
    }
    with disk.open("rb") as file:
        file.seek(start)
        assert file.read(size) == partition
    with pytest.raises(TargetError, match="no boot entry of ours starts what runs"):
        deploy(one, disk, one.root_hash, esp)


def test_a_partition_too_small_is_said_before_the_first_byte(factory: Factory, disk: Path) -> None:
    """The sizes that are needed and there are named."""
    large = factory.make(9, 20_000_000)
    before = subprocess.run(["sha256sum", disk], check=True, capture_output=True).stdout
    with pytest.raises(
        TargetError, match=f"{large.record.data_size} bytes are needed, it has {table(disk)[4]['size']}"
    ):
        deploy(large, disk)
    assert subprocess.run(["sha256sum", disk], check=True, capture_output=True).stdout == before


def test_a_disk_without_a_second_slot_is_told(one: Image, two: Image, tmp_path: Path) -> None:
    disk = one.install(tmp_path / "disk.raw").target
    with pytest.raises(TargetError, match="no boot entry of ours starts what runs"):
        deploy(two, disk, booted=one.root_hash)


def test_a_damaged_object_never_gets_a_name(factory: Factory, disk: Path, tmp_path: Path, one: Image) -> None:
    """What does not measure what it should stays `_empty`, and no menu entry starts it."""
    bad = factory.make(8)
    with Repository.open(bad.repo) as repository:
        victim = repository.object_path(bad.bootable.root.image)
    victim.chmod(0o644)
    victim.write_bytes(victim.read_bytes()[:-1] + b"!")
    with pytest.raises(DigestError):
        deploy(bad, disk)
    assert [part["name"] for part in table(disk)[4:7]] == ["_empty"] * 3
    assert list(boots(disk, tmp_path)) == [("demo_1.efi", str(one.root_hash))]


class CutError(Exception):
    """The power goes."""


@contextmanager
def power(monkeypatch: pytest.MonkeyPatch, writes: int) -> Iterator[Callable[[], int]]:
    """Let so many writes to the disk happen, and no other; half of the last one."""
    real, count = os.pwrite, 0

    def pwrite(fd: int, data: bytes, offset: int) -> int:
        nonlocal count
        count += 1
        if count > writes:
            real(fd, bytes(data)[: len(data) // 2 // 512 * 512], offset)
            raise CutError
        return real(fd, data, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", pwrite)
        patch.setattr(os, "fsync", lambda _: None)
        yield lambda: count


@pytest.mark.parametrize("blessed", [False, True])
def test_the_power_may_go_at_any_write(
    blessed: bool, two: Image, three: Image, disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P.11: what is kept boots whatever the last write was, it is first until the new one is complete, and the command
    made again completes.
    """
    deploy(two, disk)
    if blessed:
        bless(disk, 2)
    whole = tmp_path / "whole.raw"
    said("cp", "--sparse=always", disk, whole)
    with power(monkeypatch, 1 << 40) as count:
        deploy(three, whole)
    total = count()
    kept = next(name for name, _ in reversed(list(boots(whole, tmp_path))))
    assert kept == ("demo_2.efi" if blessed else "demo_1.efi")
    cut_disk = tmp_path / "cut.raw"
    for writes in range(6 * blessed, total, 12):
        said("cp", "--sparse=always", disk, cut_disk)
        with power(monkeypatch, writes), pytest.raises(CutError):
            deploy(three, cut_disk)
        found = dict(boots(cut_disk, tmp_path))
        assert len(found.get(kept, "")) == 64, (writes, total, found)
        first = next(iter(found))
        assert len(found[first]) == 64, (writes, total, found)
        deploy(three, cut_disk)
        again = list(boots(cut_disk, tmp_path))
        assert [name for name, _ in again] == ["demo_3+3-0.efi", kept], (writes, total)
        assert all(len(root_hash) == 64 for _, root_hash in again)
        sound(cut_disk, interrupted=True)
