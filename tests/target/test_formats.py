"""Disk images for other hypervisors, as qemu-img reads them back."""

import json
import struct
import subprocess
from pathlib import Path

import pytest

from oci2boot.errors import FormatError, TargetError
from oci2boot.target.disk import write_disk
from oci2boot.target.entries import EspFile
from oci2boot.target.formats import DiskFormat, format_of, write_disk_as
from oci2boot.target.opened import as_raw, open_disk
from tests.target.disks import plan_of, regular, said

PLAN = plan_of([regular(b"/a", b"content" * 100_000)], [EspFile("EFI/x", b"x" * 100_000)])
DRIVERS: dict[DiskFormat, str] = {"qcow2": "qcow2", "vmdk": "vmdk", "vhd": "vpc", "vdi": "vdi"}


@pytest.mark.parametrize("disk_format", DRIVERS)
def test_each_format_holds_the_bytes_of_the_raw_image(disk_format: DiskFormat, tmp_path: Path) -> None:
    """P.8"""
    raw, target = tmp_path / "disk.raw", tmp_path / f"disk.{disk_format}"
    write_disk(PLAN, raw)
    write_disk_as(PLAN, target, disk_format)
    assert sorted(tmp_path.iterdir()) == sorted([raw, target])
    said("qemu-img", "compare", "-f", "raw", "-F", DRIVERS[disk_format], raw, target)
    known = json.loads(said("qemu-img", "info", "--output=json", "-f", DRIVERS[disk_format], target))
    assert known["virtual-size"] == PLAN.size
    assert target.stat().st_blocks * 512 < 80 << 20
    with pytest.raises(FormatError, match=f"format {DRIVERS[disk_format]}") as caught, open_disk(target):
        pass
    argv = str(caught.value.hint).split()
    subprocess.run([*argv[:-1], tmp_path / "back.raw"], check=True)
    said("cmp", raw, tmp_path / "back.raw")
    with as_raw(target) as found:
        said("cmp", raw, found)
    assert not found.exists()
    with as_raw(raw) as found:
        assert found == raw


@pytest.mark.parametrize("disk_format", ["qcow2", "vmdk"])
def test_an_image_that_names_other_files_reads_none(disk_format: DiskFormat, tmp_path: Path) -> None:
    """QEMU would open them, whatever they are: qemu-img says that each image names one."""
    secret, disk = tmp_path / "secret", tmp_path / f'a,"b".{disk_format}'
    secret.write_bytes(b"secret" * 200_000)
    backing = secret
    if disk_format == "vmdk":
        backing = tmp_path / "backing"
        said("qemu-img", "convert", "-f", "raw", "-O", "vmdk", secret, backing)
    said("qemu-img", "create", "-f", disk_format, "-F", "raw" if backing == secret else "vmdk", "-b", backing, disk)
    assert "backing file: " in said("qemu-img", "info", "-f", disk_format, disk)
    if disk_format == "qcow2":
        with pytest.raises(FormatError, match="is not whole"), as_raw(disk):
            pass
    else:
        with as_raw(disk) as raw:
            assert b"secret" not in raw.read_bytes()


def test_an_image_with_its_data_elsewhere_is_refused(tmp_path: Path) -> None:
    disk = tmp_path / "disk.qcow2"
    said("qemu-img", "create", "-f", "qcow2", "-o", f"data_file={tmp_path / 'data'}", disk, "1M")
    with pytest.raises(FormatError, match="is not whole"), as_raw(disk):
        pass
    disk.write_bytes(disk.read_bytes()[:50])
    with pytest.raises(FormatError, match="cut off"), as_raw(disk):
        pass


@pytest.mark.parametrize(
    ("name", "disk_format"),
    [
        *((f"a.{known}", known) for known in ("raw", "qcow2", "vmdk", "vhd", "vdi")),
        *(("a.VMDK", "vmdk"), ("a.vpc", "vhd"), ("a.img", "raw"), ("a", "raw")),
    ],
)
def test_the_name_tells_the_format(name: str, disk_format: DiskFormat) -> None:
    assert format_of(Path(name)) == disk_format


def test_what_is_there_stays(tmp_path: Path) -> None:
    target = tmp_path / "disk.qcow2"
    target.write_text("mine")
    with pytest.raises(TargetError, match="exists already"):
        write_disk_as(PLAN, target, "qcow2")
    assert target.read_text() == "mine"
    write_disk_as(PLAN, target, "qcow2", overwrite=True)
    assert said("qemu-img", "check", target)
    assert list(tmp_path.iterdir()) == [target]


def test_only_raw_images_have_sectors_of_4096_bytes(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="sectors of 512"):
        write_disk_as(plan_of([], sector=4096), tmp_path / "disk.qcow2", "qcow2")
    assert list(tmp_path.iterdir()) == []


def test_a_vmdk_that_names_a_file_of_this_machine_is_not_read(tmp_path: Path) -> None:
    """D.24: qemu-img, asked alone, reads it: an extent may be any file. VMware, Virtual Disk Format 5.0."""
    secret, disk = tmp_path / "secret", tmp_path / "disk.vmdk"
    secret.write_bytes(b"secret" * 1000)
    text = "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\n"
    text += f'createType="monolithicFlat"\nRW 8 FLAT "{secret}" 0\n'
    header = struct.pack("<4sIIQQQQIQQQB", b"KDMV", 1, 3, 0, 128, 1, 20, 512, 0, 0, 21, 0)
    disk.write_bytes(header.ljust(512, b"\0") + text.encode().ljust(20 * 512, b"\0") + bytes(64 * 512))
    said("qemu-img", "convert", "-f", "vmdk", "-O", "raw", disk, tmp_path / "read")
    assert (tmp_path / "read").read_bytes().startswith(b"secret")
    with pytest.raises(FormatError, match="names other files"), as_raw(disk):
        pass
    disk.write_bytes(b"KDMV")
    with pytest.raises(FormatError, match="cut off"), as_raw(disk):
        pass
