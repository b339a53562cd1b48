"""Partition tables that sfdisk makes and sgdisk judges."""

import subprocess
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oci2boot.errors import FormatError
from oci2boot.formats.gpt import Gpt, read_gpt
from tests.flips import flipped
from tests.witness import program

MIB: Final = 1 << 20
SIZE: Final = 16 * MIB
ESP: Final = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"
ROOT: Final = "4f68bce3-e8cd-4db1-96e7-fbcaf984b709"
DISK_GUID: Final = "00112233-4455-8677-8899-aabbccddeeff"
SCRIPT: Final = f"""\
label: gpt
label-id: {DISK_GUID}
unit: sectors

start=2048, size=4096, type={ESP}, uuid=10112233-4455-8677-8899-aabbccddeeff, name="ESP"
start=8192, size=16384, type={ROOT}, uuid=20112233-4455-8677-8899-aabbccddeeff, name="größe", attrs="GUID:59"
"""


def table(data: bytes) -> Gpt:
    return read_gpt(lambda offset, size: data[offset : offset + size], len(data))


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("gpt") / "disk"
    path.touch()
    with path.open("r+b") as file:
        file.truncate(SIZE)
    subprocess.run([program("sfdisk"), "--quiet", path], input=SCRIPT.encode(), check=True)
    return path.read_bytes()


def sgdisk_is_content(data: bytes, tmp_path: Path) -> bool:
    path = tmp_path / "judged"
    path.write_bytes(data)
    done = subprocess.run([program("sgdisk"), "-v", path], check=False, capture_output=True, text=True, input="")
    return "No problems found" in done.stdout and "CRC" not in done.stdout + done.stderr


def test_a_table_of_sfdisk_is_read(disk: bytes, tmp_path: Path) -> None:
    gpt = table(disk)
    assert sgdisk_is_content(disk, tmp_path)
    assert gpt.problems == ()
    assert gpt.guid == DISK_GUID
    esp, root = gpt.partitions
    assert (esp.number, esp.type, esp.name, esp.start, esp.size) == (1, ESP, "ESP", MIB, 2 * MIB)
    assert (root.number, root.type, root.name, root.start, root.size) == (2, ROOT, "größe", 4 * MIB, 8 * MIB)
    assert root.attributes == 1 << 59
    assert root.guid == "20112233-4455-8677-8899-aabbccddeeff"


LAST: Final = SIZE - 512
DAMAGE: Final = {
    "MBR": (511, "no protective MBR"),
    "primary header": (512 + 56, "the primary table: the checksum of its header is wrong"),
    "primary signature": (512, "the primary table: its header is not there"),
    "primary entries": (1024 + 32, "the primary table: the checksum of its entries is wrong"),
    "backup header": (LAST + 56, "the backup table: the checksum of its header is wrong"),
    "backup entries": (LAST - 16384 + 40, "the backup table: the checksum of its entries is wrong"),
}


@pytest.mark.parametrize(("at", "said"), DAMAGE.values(), ids=DAMAGE.keys())
def test_one_flipped_byte_is_told_and_sgdisk_agrees(disk: bytes, at: int, said: str, tmp_path: Path) -> None:
    data = flipped(disk, at)
    gpt = table(data)
    assert any(said in problem for problem in gpt.problems)
    assert [part.type for part in gpt.partitions] == [ESP, ROOT]
    if at != 511:  # sgdisk repairs the MBR in memory and says nothing
        assert not sgdisk_is_content(data, tmp_path)


def by_sgdisk(disk: bytes, tmp_path: Path, *words: str) -> bytes:
    path = tmp_path / "changed"
    path.write_bytes(disk)
    subprocess.run([program("sgdisk"), *words, path], check=True, capture_output=True)
    return path.read_bytes()


def test_a_disk_that_grew_has_its_backup_in_the_wrong_place(disk: bytes) -> None:
    problems = table(disk + bytes(MIB)).problems
    assert problems == ("the backup table: its header is not there",)


def test_two_partitions_with_one_guid_are_told(disk: bytes, tmp_path: Path) -> None:
    changed = by_sgdisk(disk, tmp_path, "--partition-guid=1:20112233-4455-8677-8899-aabbccddeeff")
    assert "two partitions have the same GUID" in table(changed).problems


def test_neighbours_do_not_overlap(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(SIZE))
    script = b"label: gpt\nstart=2048, size=8192\nstart=10240, size=4096\n"
    subprocess.run([program("sfdisk"), "--quiet", path], input=script, check=True)
    assert table(path.read_bytes()).problems == ()


def resealed(disk: bytes | bytearray, change: Callable[[bytearray], None]) -> bytes:
    """Change the entries (16 KiB at byte 1024) and make every checksum right again, in both copies."""
    data = bytearray(disk)
    change(data)
    data[LAST - 16384 : LAST] = data[1024 : 1024 + 16384]
    for header in (512, LAST):
        data[header + 88 : header + 92] = zlib.crc32(data[1024 : 1024 + 16384]).to_bytes(4, "little")
        data[header + 16 : header + 20] = bytes(4)
        data[header + 16 : header + 20] = zlib.crc32(data[header : header + 92]).to_bytes(4, "little")
    return bytes(data)


@pytest.mark.parametrize(
    ("first", "last", "said"),
    [
        (4096, 9000, "partitions 1 and 2 overlap"),
        (1, 50, "partition 1 lies outside of the room for partitions"),
        (3000, 2048, "partition 1 lies outside of the disk"),
        (2048, 1 << 40, "partition 1 lies outside of the disk"),
        ((1 << 64) - 2, (1 << 64) - 1, "partition 1 lies outside of the disk"),
    ],
)
def test_partitions_that_cannot_be_are_told(disk: bytes, first: int, last: int, said: str) -> None:
    def change(data: bytearray) -> None:
        data[1024 + 32 : 1024 + 48] = first.to_bytes(8, "little") + last.to_bytes(8, "little")

    assert said in table(resealed(disk, change)).problems


def with_checksum(data: bytearray, header: int) -> bytes:
    data[header + 16 : header + 20] = bytes(4)
    data[header + 16 : header + 20] = zlib.crc32(data[header : header + 92]).to_bytes(4, "little")
    return bytes(data)


def test_a_header_that_was_moved_is_told(disk: bytes) -> None:
    data = bytearray(disk)
    data[512 + 24 : 512 + 32] = (7).to_bytes(8, "little")
    problems = table(with_checksum(data, 512)).problems
    assert problems == ("the primary table: its header says that it lies in sector 7, it lies in 1",)


def test_two_good_tables_that_differ_are_told(disk: bytes, tmp_path: Path) -> None:
    """One of sfdisk's, one of another disk with another name for a partition."""
    changed = by_sgdisk(disk, tmp_path, "--change-name=1:other")
    mixed = disk[: SIZE - 33 * 512] + changed[SIZE - 33 * 512 :]
    problems = table(mixed).problems
    assert "the two tables have different entries" in problems
    assert not sgdisk_is_content(mixed, tmp_path)


def test_what_is_no_disk_is_one_sentence() -> None:
    for data in (b"", bytes(SIZE), b"x" * 1000):
        with pytest.raises(FormatError, match="no GUID partition table"):
            table(data)


class Held:
    """Bytes that no message of a failed test spells out."""

    def __init__(self, data: bytes) -> None:
        self.data = data


@pytest.fixture(scope="module")
def held(disk: bytes) -> Held:
    return Held(disk)


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_damage_raises_only_our_errors(held: Held, data: st.DataObject) -> None:
    changed = bytearray(held.data)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.sampled_from((*range(446, 1024 + 300), *range(LAST, LAST + 92))))
        changed[at] = data.draw(st.integers(0, 255))
    for damaged in (bytes(changed), resealed(changed, lambda _: None)):
        with suppress(FormatError):
            table(damaged)
