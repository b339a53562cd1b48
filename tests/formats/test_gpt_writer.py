"""Partition tables that we make, as sfdisk makes them and fdisk and sgdisk see them."""

import subprocess
import uuid
from pathlib import Path

import pytest

from oci2boot.formats.gpt import Partition, read_gpt
from oci2boot.formats.gpt_writer import pack_gpt
from tests.witness import program

MIB = 1 << 20
SIZE = 64 * MIB + 512
DISK = "00112233-4455-8677-8899-aabbccddeeff"
PARTITIONS = [
    Partition(1, "c12a7328-f81f-11d2-ba4b-00a0c93ec93b", str(uuid.UUID(int=1)), MIB, 16 * MIB, 0, "ESP"),
    Partition(2, "4f68bce3-e8cd-4db1-96e7-fbcaf984b709", str(uuid.UUID(int=2)), 17 * MIB, 46 * MIB, 1 << 59, "größe"),
]


def disk(size: int, sector: int) -> bytes:
    head, tail = pack_gpt(DISK, PARTITIONS, size, sector)
    return head + bytes(size - len(head) - len(tail)) + tail


def test_the_bytes_are_those_of_sfdisk(tmp_path: Path) -> None:
    script = [f"label: gpt\nlabel-id: {DISK}"] + [
        f'start={one.start // 512}, size={one.size // 512}, type={one.type}, uuid={one.guid}, name="{one.name}"'
        for one in PARTITIONS
    ]
    script[2] += ', attrs="GUID:59"'
    path = tmp_path / "disk"
    path.write_bytes(bytes(SIZE))
    subprocess.run([program("sfdisk"), "--quiet", path], input="\n".join(script).encode(), check=True)
    assert disk(SIZE, 512) == path.read_bytes()


@pytest.mark.parametrize("sector", [512, 4096])
def test_fdisk_and_our_reader_find_the_partitions(tmp_path: Path, sector: int) -> None:
    size, path = 64 * MIB, tmp_path / "disk"
    data = disk(size, sector)
    path.write_bytes(data)
    said = subprocess.run(
        [program("fdisk"), "-b", str(sector), "-l", "-o", "Start,Sectors,Name", path],
        check=True,
        capture_output=True,
        text=True,
        env={"LC_ALL": "C.UTF-8"},
    )
    assert said.stderr == ""
    assert [line.split() for line in said.stdout.splitlines()[-2:]] == [
        [str(one.start // sector), str(one.size // sector), one.name] for one in PARTITIONS
    ]
    found = read_gpt(lambda offset, count: data[offset : offset + count], size)
    assert (found.sector, found.problems, found.guid) == (sector, (), DISK)
    assert list(found.partitions) == PARTITIONS


@pytest.mark.parametrize("sector", [512, 4096])
def test_one_copy_tells_the_size_of_sectors(sector: int) -> None:
    size = 64 * MIB
    data = bytearray(disk(size, sector))
    data[sector : sector + 8] = bytes(8)
    assert read_gpt(lambda offset, count: bytes(data[offset : offset + count]), size).sector == sector
