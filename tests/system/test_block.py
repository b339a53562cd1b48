"""Block devices of the running machine, against what lsblk says of them; and a disk as sysfs shows it."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from oci2boot.errors import FormatError, TargetError
from oci2boot.system.block import BlockDevice, kinds_on, read_block_device, zero_out
from oci2boot.target.guards import check_empty, check_unused
from tests.witness import program


def lsblk() -> list[dict[str, object]]:
    columns = "PATH,TYPE,SIZE,LOG-SEC,RO,RM,MODEL,PKNAME,MOUNTPOINTS"
    done = subprocess.run(
        [program("lsblk"), "--json", "--bytes", "--list", "--output", columns], check=True, capture_output=True
    )
    return list(json.loads(done.stdout)["blockdevices"])


def test_the_disks_of_this_machine_are_what_lsblk_says() -> None:
    """No disk that is in use is one to install to."""
    for known in lsblk():
        path = Path(str(known["path"]))
        if not os.access(path, os.R_OK):
            continue
        found = read_block_device(path)
        assert (found.size, found.sector, found.removable) == (known["size"], known["log-sec"], bool(known["rm"]))
        assert found.disk == known["pkname"]
        assert found.model == (known["model"] or "").strip() if isinstance(known["model"], str) else True
        mounts = [f"{path.name} is mounted on {one}" for one in known["mountpoints"] if one and one != "[SWAP]"]  # type: ignore[attr-defined]
        assert set(mounts) <= set(found.uses)
        if mounts:
            with pytest.raises(TargetError, match=r"in use|partition of"):
                check_unused(found)


@pytest.mark.parametrize("path", ["/dev/null", "/etc/passwd", "/"])
def test_what_is_no_block_device_is_refused(path: str) -> None:
    with pytest.raises(FormatError, match="not a block device"):
        read_block_device(Path(path))


def disk(**changed: object) -> BlockDevice:
    fields = {
        "path": Path("/dev/sdx"), "name": "sdx", "disk": None, "size": 1 << 33, "sector": 512, "model": "ATA Disk",
        "removable": False, "read_only": False, "partitions": (), "uses": (), "signatures": (),
    }  # fmt: skip
    return BlockDevice(**{**fields, **changed})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"disk": "sdx"}, "is a partition of sdx"),
        ({"read_only": True}, "read-only"),
        ({"size": 0}, "no medium"),
        ({"uses": ("sdx1 is mounted on /",)}, "in use: sdx1 is mounted on /"),
        ({"uses": ("sdx2 is in use as swap", "sdx3 is held by md0")}, "as swap; sdx3 is held by md0"),
    ],
)
def test_a_device_that_somebody_needs_is_refused(changed: dict[str, object], match: str) -> None:
    """P.8"""
    with pytest.raises(TargetError, match=match):
        check_unused(disk(**changed))


def test_a_device_with_something_on_it_takes_wipe() -> None:
    check_empty(disk())
    with pytest.raises(TargetError, match="not empty: it has gpt, ext4 on sdx1"):
        check_empty(disk(signatures=("gpt", "ext4 on sdx1")))


def test_who_uses_a_partition_is_read_from_sysfs_and_proc(tmp_path: Path) -> None:
    """A disk in the files of a kernel: a partition that is mounted at a path with a space, and one under md."""
    device = next(Path(str(known["path"])) for known in lsblk())
    number = f"{os.major(device.stat().st_rdev)}:{os.minor(device.stat().st_rdev)}"
    sys, proc = tmp_path / "sys", tmp_path / "proc"
    block = sys / "devices/sdx"
    (block / "queue").mkdir(parents=True)
    (block / "device").mkdir()
    (block / "holders").mkdir()
    for name, text in {
        "dev": number, "size": "2048", "ro": "0", "removable": "1", "queue/logical_block_size": "4096",
        "device/vendor": "ATA     ", "device/model": "Some Disk  ",
    }.items():  # fmt: skip
        (block / name).write_text(text + "\n")
    for part, holder in (("sdx1", None), ("sdx2", "md0")):
        (block / part / "holders").mkdir(parents=True)
        (block / part / "partition").write_text(part[-1])
        (block / part / "dev").write_text(f"250:{part[-1]}\n")
        (block / part / "size").write_text("8\n")
        if holder:
            (block / part / "holders" / holder).mkdir()
    (sys / "dev/block").mkdir(parents=True)
    (sys / "dev/block" / number).symlink_to(block)
    (proc / "self").mkdir(parents=True)
    (proc / "self/mountinfo").write_text("36 35 250:1 / /with\\040space rw - ext4 /dev/gone rw\n")
    (proc / "swaps").write_text("Filename\tType\tSize\tUsed\tPriority\n")
    found = read_block_device(device, sys=sys, proc=proc)
    assert found.uses == ("sdx1 is mounted on /with space", "sdx2 is held by md0")
    assert found.partitions == ("sdx1", "sdx2")
    assert (found.name, found.size, found.sector, found.model) == ("sdx", 1 << 20, 4096, "ATA Some Disk")
    assert found.removable


def test_what_is_on_a_disk_is_found_at_both_of_its_ends(tmp_path: Path) -> None:
    """The rules by which a disk counts as empty are libblkid's; what is put on it here is mke2fs' and sfdisk's."""
    path = tmp_path / "disk"
    path.write_bytes(os.urandom(1 << 20) + bytes(15 << 20))
    assert kinds_on(path) == []
    subprocess.run([program("mke2fs"), "-q", "-F", path], check=True)
    assert kinds_on(path) == ["ext2"]
    subprocess.run([program("sfdisk"), "--quiet", "--wipe=always", path], input=b"label: gpt\n", check=True)
    assert kinds_on(path) == ["gpt", "PMBR"]


def test_zeros_are_written_where_the_device_has_no_way_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 5_000_000)
    with path.open("r+b") as file:
        zero_out(file.fileno(), 4096, 3_000_000)
    assert path.read_bytes() == b"x" * 4096 + bytes(3_000_000) + b"x" * (5_000_000 - 3_004_096)
