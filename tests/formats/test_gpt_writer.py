"""Partition tables that we make, as sfdisk makes them and fdisk and sgdisk see them."""

import subprocess
import uuid
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from oci2boot.errors import FormatError
from oci2boot.formats.gpt import Gpt, Header, Partition, read_gpt
from oci2boot.formats.gpt_writer import Identity, pack_gpt, plan_identities
from tests.witness import program

MIB = 1 << 20
SIZE = 64 * MIB + 512
DISK = "00112233-4455-8677-8899-aabbccddeeff"
PARTITIONS = [
    Partition(
        number=1,
        type="c12a7328-f81f-11d2-ba4b-00a0c93ec93b",
        guid=str(uuid.UUID(int=1)),
        start=MIB,
        size=16 * MIB,
        attributes=0,
        name="ESP",
    ),
    Partition(
        number=2,
        type="4f68bce3-e8cd-4db1-96e7-fbcaf984b709",
        guid=str(uuid.UUID(int=2)),
        start=17 * MIB,
        size=46 * MIB,
        attributes=1 << 59,
        name="größe",
    ),
]


def disk(size: int, sector: int, partitions: Sequence[Partition] = PARTITIONS) -> bytes:
    head, tail = pack_gpt(DISK, partitions, size, sector)
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


# ---- partitions that are called otherwise

BEFORE = disk(4 * MIB, 512, [replace(one, start=one.number * MIB, size=MIB) for one in PARTITIONS])
NEW = Identity("30112233-4455-8677-8899-aabbccddeeff", "root_2", 1 << 60)


def table(data: bytes) -> Gpt:
    return read_gpt(lambda offset, size: data[offset : offset + size], len(data))


def renamed(before: bytes, writes: list[tuple[int, bytes]]) -> bytes:
    data = bytearray(before)
    for offset, piece in writes:
        data[offset : offset + len(piece)] = piece
    return bytes(data)


def planned(before: bytes, number: int = 2) -> list[tuple[int, bytes]]:
    return plan_identities(lambda offset, size: before[offset : offset + size], len(before), {number: NEW})


def test_partitions_are_called_otherwise_as_by_sfdisk(tmp_path: Path) -> None:
    """K0.14: what a slot is found by; the witness is sfdisk, and every other byte stays."""
    theirs = tmp_path / "theirs"
    theirs.write_bytes(BEFORE)
    for word, value in (("--part-uuid", NEW.guid), ("--part-label", NEW.name), ("--part-attrs", "GUID:60")):
        subprocess.run([program("sfdisk"), "--quiet", word, theirs, "2", value], check=True)
    assert renamed(BEFORE, planned(BEFORE)) == theirs.read_bytes()


def test_one_table_is_whole_at_every_moment() -> None:
    """Whatever write was the last, and however much of it was made, there is the old table or the new one."""
    writes = planned(BEFORE)
    old, new = table(BEFORE), table(renamed(BEFORE, writes))
    assert new.partitions[1].name == "root_2"
    for made in range(len(writes)):
        for part in (0, 17, 511):
            torn = renamed(BEFORE, [*writes[:made], (writes[made][0], writes[made][1][:part])])
            found = table(torn)
            assert found.partitions in (old.partitions, new.partitions)
            again = renamed(torn, planned(torn))
            assert (table(again).partitions, table(again).problems) == (new.partitions, ())


@pytest.mark.parametrize("lba", [0, 3000, 8192, 1 << 60])
def test_a_table_that_leaves_its_copy_no_room_is_not_changed(lba: int) -> None:
    raw = bytearray(BEFORE)
    header = replace(Header.unpack(bytes(raw), 512), other_lba=lba, header_crc=0)
    raw[512:604] = replace(header, header_crc=zlib.crc32(header.pack())).pack()
    with pytest.raises(FormatError, match="no room for its copy"):
        planned(bytes(raw))
    with pytest.raises(FormatError, match="no partition 200"):
        planned(BEFORE, 200)
