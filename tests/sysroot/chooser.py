"""systemd-boot in a test: what it would boot, by the specification's words alone (UAPI.1, "Sorting", "Boot counting").

Nothing of oci2boot is used: what a UKI says is taken from the bytes that the test made itself.
"""

import re
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, cmp_to_key
from pathlib import Path

from tests.witness import program


@dataclass(frozen=True)
class Said:
    image: str
    version: str
    label: str
    """What the test calls these bytes."""


@dataclass(frozen=True)
class Line:
    file: Path
    said: Said
    left: int | None
    done: int


@cache
def newer(first: str, second: str) -> int:
    argv = [program("systemd-analyze"), "compare-versions", first, second]
    said = subprocess.run(argv, check=False, capture_output=True, text=True).stdout
    return {"<": -1, "==": 0, ">": 1}[said.split()[1]]


def _compare(a: Line, b: Line) -> int:
    for first, second in (
        (a.left == 0, b.left == 0),
        (a.said.image, b.said.image),
    ):
        if first != second:
            return -1 if first < second else 1  # type: ignore[operator]
    order = newer(b.said.version, a.said.version)
    return order or newer(b.file.name.lower(), a.file.name.lower())


def menu(esp: Path, known: Mapping[bytes, Said]) -> list[Line]:
    """Return the menu; bytes that are not known, such as half of a UKI, are no entry that boots."""
    lines = []
    for file in sorted(esp.glob("EFI/Linux/*.efi")):
        said = known.get(file.read_bytes())
        if said:
            counted = re.search(r"\+(\d+)(?:-(\d+))?\.efi$", file.name)
            left, done = (int(counted[1]), int(counted[2] or 0)) if counted else (None, 0)
            lines.append(Line(file, said, left, done))
    return sorted(lines, key=cmp_to_key(_compare))


def attempt(line: Line) -> Path:
    """Count a boot, before it: the loader renames the entry."""
    if line.left is None:
        return line.file
    stem = re.sub(r"\+\d+(-\d+)?\.efi$", "", line.file.name)
    return line.file.rename(line.file.with_name(f"{stem}+{max(line.left - 1, 0)}-{line.done + 1}.efi"))


def bless(file: Path) -> None:
    """systemd-bless-boot(8): the boot was good."""
    file.rename(file.with_name(re.sub(r"\+\d+(-\d+)?\.efi$", ".efi", file.name)))


def complete(esp: Path, label: str, needed: Mapping[str, Iterable[tuple[str, bytes]]]) -> bool:
    """Say whether all that an entry needs beside itself is there."""
    return all((esp / path).is_file() and (esp / path).read_bytes() == data for path, data in needed.get(label, ()))
