"""Partitions of a disk as sfdisk sees them, and copies of them."""

import json
import subprocess
from pathlib import Path
from typing import Any

from tests.witness import program


def table(disk: Path) -> list[dict[str, Any]]:
    """Return the partitions in their order, sizes in bytes."""
    found = json.loads(subprocess.check_output([program("sfdisk"), "--json", disk]))["partitiontable"]
    sector = found["sectorsize"]
    return [
        {**part, "start": part["start"] * sector, "size": part["size"] * sector, "attrs": part.get("attrs", "")}
        for part in found["partitions"]
    ]


def partition(disk: Path, name: str, into: Path) -> Path:
    """Copy one partition into a file of its own."""
    (part,) = (part for part in table(disk) if part["name"] == name)
    return extract(disk, part["start"], part["size"], into)


def extract(disk: Path, start: int, size: int, into: Path) -> Path:
    """Copy some bytes of a disk into a file of their own."""
    place = ["iflag=skip_bytes,count_bytes", f"skip={start}", f"count={size}"]
    argv = [program("dd"), f"if={disk}", f"of={into}", "bs=1M", "conv=sparse", "status=none", *place]
    subprocess.run(argv, check=True)
    return into
