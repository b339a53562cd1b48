"""dm-verity, held against veritysetup: root hash and hash area, byte for byte."""

import subprocess
import uuid
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oci2boot.digest import Hash, RootHash
from oci2boot.errors import Error, FormatError
from oci2boot.formats.dmverity import Area, Parameters, check_tree, hash_blocks, hash_tree, plan_area, read_superblock
from tests.flips import flipped
from tests.witness import program

UUID = uuid.UUID("01234567-89ab-cdef-0123-456789abcdef")
SIZES = [1, 2, 127, 128, 129, 5000, 128 * 128 + 1]
"""Data blocks: one has no tree, 128 fill a block of sha256 hashes, the last needs three levels."""


def data_of(size: int) -> bytes:
    return Random(size).randbytes(size)


def area_bytes(area: Area, levels: list[bytes]) -> bytes:
    return b"".join([area.superblock(), *levels])


def built(data: bytes, parameters: Parameters) -> tuple[RootHash, bytes]:
    area = plan_area(len(data), parameters)
    root_hash, levels = hash_tree(hash_blocks(data, parameters, parameters.data_block), area)
    written = area_bytes(area, levels)
    assert len(written) == area.size
    return root_hash, written


def veritysetup(data: bytes, parameters: Parameters, folder: Path) -> tuple[str, bytes]:
    (folder / "data").write_bytes(data)
    argv: list[str | Path] = [
        program("veritysetup"), "format", folder / "data", folder / "hash", f"--uuid={parameters.uuid}",
        f"--hash={parameters.algorithm}", f"--salt={parameters.salt.hex() or '-'}",
        f"--data-block-size={parameters.data_block}", f"--hash-block-size={parameters.hash_block}",
    ]  # fmt: skip
    said = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    (root_hash,) = (line.split()[-1] for line in said.splitlines() if line.startswith("Root hash:"))
    return root_hash, (folder / "hash").read_bytes()


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
@pytest.mark.parametrize("salt", [b"", b"salt", bytes(range(256))])
@pytest.mark.parametrize("blocks", SIZES)
def test_the_area_is_that_of_veritysetup(algorithm: Hash, salt: bytes, blocks: int, tmp_path: Path) -> None:
    """K0.5, B.9"""
    parameters = Parameters(algorithm, salt, uuid=UUID)
    data = data_of(blocks * 4096)
    root_hash, area = built(data, parameters)
    assert (str(root_hash), area) == veritysetup(data, parameters, tmp_path)


@pytest.mark.parametrize(("data_block", "hash_block"), [(512, 512), (512, 4096), (1024, 2048), (4096, 1024)])
def test_any_block_sizes_agree_with_veritysetup(data_block: int, hash_block: int, tmp_path: Path) -> None:
    parameters = Parameters("sha256", b"\0" * 32, data_block, hash_block, UUID)
    data = data_of(300 * 4096)
    root_hash, area = built(data, parameters)
    assert (str(root_hash), area) == veritysetup(data, parameters, tmp_path)


def test_the_partitions_are_found_by_the_root_hash() -> None:
    """K1.8: first and last 128 bits, in the order in which a GUID is written."""
    root_hash = RootHash.parse("000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f")
    assert root_hash.data_uuid == "00010203-0405-0607-0809-0a0b0c0d0e0f"
    assert root_hash.hash_uuid == "10111213-1415-1617-1819-1a1b1c1d1e1f"


def test_what_is_written_can_be_read() -> None:
    area = plan_area(5000 * 4096, Parameters("sha512", b"salt", uuid=UUID))
    assert read_superblock(area.superblock()) == area


@pytest.mark.parametrize(
    ("size", "parameters", "words"),
    [
        (0, {}, "whole blocks"),
        (4097, {}, "whole blocks"),
        (1 << 60, {}, "at most"),
        (4096, {"salt": bytes(257)}, "salt of 257"),
        (4096, {"data_block": 3000}, "block size"),
        (4096, {"hash_block": 65536}, "block size"),
    ],
)
def test_what_dm_verity_cannot_hold_is_refused(size: int, parameters: dict[str, int], words: str) -> None:
    with pytest.raises(Error, match=words):
        plan_area(size, Parameters(**parameters))  # type: ignore[arg-type]


@given(st.integers(0, 511), st.integers(0, 255))
def test_a_damaged_superblock_is_refused_or_read(at: int, value: int) -> None:
    block = bytearray(plan_area(5 * 4096, Parameters(salt=b"salt", uuid=UUID)).superblock())
    block[at] = value
    with suppress(Error):
        assert read_superblock(bytes(block)).superblock() == bytes(block)


def test_bytes_that_are_none_are_refused() -> None:
    with pytest.raises(FormatError, match="no dm-verity superblock"):
        read_superblock(bytes(512))
    with pytest.raises(FormatError, match="cut short"):
        read_superblock(b"verity\0\0")


@pytest.mark.parametrize("where", ["data", "root level", "leaf level"])
def test_one_flipped_byte_is_named(where: str) -> None:
    """K0.9"""
    parameters = Parameters(salt=b"salt", uuid=UUID)
    data = data_of(200 * 4096)
    root_hash, written = built(data, parameters)
    found = read_superblock(written)
    damage = {
        "data": (flipped(data, 4096 * 77), written),
        "root level": (data, flipped(written, 4096 + 10)),
        "leaf level": (data, flipped(written, 2 * 4096 + 10)),
    }

    def problems_of(data: bytes, area: bytes) -> list[str]:
        leaves = hash_blocks(data, parameters, 4096)
        return list(check_tree(found, leaves, lambda at, size: area[at : at + size], root_hash))

    expected = {
        "data": "the data has the root hash",
        "root level": "level 0 of the hash tree is not that of the data, from byte 4106",
        "leaf level": "level 1 of the hash tree is not that of the data, from byte 8202",
    }[where]
    assert problems_of(*damage[where])[0].startswith(expected)
    assert problems_of(data, written) == []
