"""What an EFI program is and how old: by the names and numbers in its `.sbat`, and by systemd's own mark.

bootctl(1) goes by that mark, which stands in `.sdmagic`; shim's version is its vendor's, that of its own entry is 1.
"""

import re
from dataclasses import dataclass
from typing import Final, Self

from oci2boot.errors import FormatError
from oci2boot.formats import pe, sbat, version

_MARK: Final = re.compile(rb"#### LoaderInfo: ([a-z-]{1,32}) ([A-Za-z0-9.,:~^+_-]{1,128}) ####")


@dataclass(frozen=True, slots=True)
class Product:
    name: str
    """Empty where the program does not say."""
    generation: int = 0
    """Of its first entry: it rises when everything before has to be revoked."""
    versions: tuple[str, ...] = ()
    """What it says of itself, the most general first: `257`, `257.13-1~deb13u1`."""

    @classmethod
    def of(cls, program: bytes) -> Self:
        """Read what a program says; one that cannot be read says nothing."""
        try:
            entries = sbat.read_entries(program)
            marks = [_MARK.match(pe.contents(program, one)) for one in pe.parse(program).sections_named(b".sdmagic")]
        except FormatError:
            return cls("")
        mark = next((found for found in marks if found), None)
        if not entries and not mark:
            return cls("")
        own = [one for one in entries if one.component.split(".")[0] == entries[0].component]
        versions = (*(one.version for one in own[:2]), *([mark[2].decode()] if mark else []))
        # In systemd 252 the entries of systemd-boot and of its stub have one name, in 257 each its own.
        name = mark[1].decode() if mark else entries[0].component
        return cls(name, entries[0].generation if entries else 0, versions)

    @property
    def version(self) -> str:
        return self.versions[0] if self.versions else ""

    def compare(self, other: Self) -> tuple[int, str, str]:
        """Return a number below, above or of zero, as this is older or newer; and the versions by which they differ."""
        if order := (self.generation > other.generation) - (self.generation < other.generation):
            return order, f"{self.version} (SBAT {self.generation})", f"{other.version} (SBAT {other.generation})"
        for mine, theirs in zip(self.versions, other.versions, strict=False):
            if order := version.compare(mine, theirs):
                return order, mine, theirs
        return 0, self.version, other.version
