"""SBAT: what an EFI program says of itself, so that it can be revoked. shim, SBAT.md."""

from dataclasses import dataclass
from typing import Final

from oci2boot.errors import FormatError
from oci2boot.formats import pe

MAX_GENERATION_DIGITS: Final = 9


@dataclass(frozen=True, slots=True)
class Entry:
    """A component of a program, and how often everything older of it was revoked."""

    component: str
    generation: int
    version: str
    """Of its package, as its vendor writes it; empty in a level of revocation."""

    def __str__(self) -> str:
        return f"{self.component} {self.version} (SBAT {self.generation})"


def read_sbat(program: bytes) -> list[str]:
    """Return the entries, a line each, without the one about SBAT itself; none for a program without `.sbat`."""
    lines: list[str] = []
    for section in pe.parse(program).sections_named(b".sbat"):
        try:
            text = pe.contents(program, section).rstrip(b"\0").decode().splitlines()
        except UnicodeDecodeError as error:
            raise FormatError("an SBAT section that is not text") from error
        if text and text[0].startswith("sbat,"):
            lines += text[1:]
    return lines


def read_entries(program: bytes) -> list[Entry]:
    """Return the entries of a program that shim would read."""
    return [entry for line in read_sbat(program) if (entry := _entry(line))]


def parse_level(data: bytes) -> list[Entry]:
    """Return what is revoked: of each component, the generations below this one. shim, SbatLevel_Variable.txt."""
    try:
        header, *lines = data.rstrip(b"\0").decode("ascii").splitlines()
    except (UnicodeDecodeError, ValueError) as error:
        raise FormatError("a level of SBAT that is not text") from error
    found = [_entry(line) for line in lines if line]
    if not header.startswith("sbat,") or None in found:
        raise FormatError("a level of SBAT that cannot be read")
    return [entry for entry in found if entry]


def _entry(line: str) -> Entry | None:
    words = line.split(",")
    if len(words) < 2 or not words[0] or not words[0].isprintable():
        return None
    number = words[1]
    if not number.isascii() or not number.isdecimal() or len(number) > MAX_GENERATION_DIGITS:
        return None
    return Entry(words[0], int(number), words[4] if len(words) > 4 and words[4].isprintable() else "")
