"""What mkfs.erofs is asked for, if the image is compressed: it reads the tree as a tar, so no root is needed.

erofs-utils, mkfs.erofs(1). From 1.8 on it reads archives and keeps their times; its algorithms, it tells.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self
from uuid import UUID

from oci2boot.errors import FormatError, ToolError

PROGRAM: Final = "mkfs.erofs"
OLDEST: Final = (1, 8)
NONE: Final = "none"

_LEVELS: Final[Mapping[str, Sequence[range]]] = {
    "lz4": (),
    "lz4hc": (range(13),),
    "lzma": (range(10), range(100, 110)),
    "deflate": (range(10),),
    "zstd": (range(23),),
}
_DICTIONARIES: Final[Mapping[str, int]] = {"lzma": 8 << 20, "deflate": 32 << 10, "zstd": 1 << 20}
"""Bytes, at most."""
CONFIG: Final[Mapping[str, str]] = {
    "lz4": "EROFS_FS_ZIP",
    "lz4hc": "EROFS_FS_ZIP",
    "lzma": "EROFS_FS_ZIP_LZMA",
    "deflate": "EROFS_FS_ZIP_DEFLATE",
    "zstd": "EROFS_FS_ZIP_ZSTD",
}
"""The kernel's option that reads an image of the algorithm."""

_VERSION: Final = re.compile(r"\b(\d{1,3})\.(\d{1,3})")
_COMPRESSORS: Final = re.compile(r"(?i:available compressors(?: are)?): *(.*)")


@dataclass(frozen=True, slots=True)
class Algorithm:
    name: str
    level: int | None = None
    dictionary: int | None = None
    """In bytes."""

    def __str__(self) -> str:
        level = "" if self.level is None else f",level={self.level}"
        return self.name + level + ("" if self.dictionary is None else f",dictsize={self.dictionary}")


@dataclass(frozen=True, slots=True)
class Compression:
    """`zstd,level=12`, or several algorithms with colons between them; `none` is an empty one."""

    algorithms: tuple[Algorithm, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        if text == NONE:
            return cls()
        return cls(tuple(_algorithm(part, text) for part in text.split(":")))

    @property
    def names(self) -> frozenset[str]:
        return frozenset(algorithm.name for algorithm in self.algorithms)

    def __str__(self) -> str:
        return ":".join(map(str, self.algorithms)) or NONE


def _algorithm(part: str, whole: str) -> Algorithm:
    name, *words = part.split(",")
    if name not in _LEVELS:
        known = ", ".join([*_LEVELS, NONE])
        raise FormatError(f"not a compression that EROFS has: {whole[:80]!r}", hint=f"known are {known}")
    values: dict[str, int] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if key not in ("level", "dictsize") or not equals or not re.fullmatch(r"[0-9]{1,9}", value) or key in values:
            raise FormatError(f"not a setting of a compression: {word[:80]!r}", hint=f"write {name},level=N")
        values[key] = int(value)
    level, dictionary = values.get("level"), values.get("dictsize")
    if level is not None and not any(level in levels for levels in _LEVELS[name]):
        allowed = " and ".join(f"{levels[0]} to {levels[-1]}" for levels in _LEVELS[name]) or "none"
        raise FormatError(f"{name} has no level {level}", hint=f"its levels: {allowed}")
    if dictionary is not None and not 0 < dictionary <= _DICTIONARIES.get(name, 0):
        raise FormatError(f"{name} takes no dictionary of {dictionary} bytes")
    return Algorithm(name, level, dictionary)


def check_mkfs(said: str, compression: Compression) -> None:
    """Refuse a mkfs.erofs that cannot do it; `said` is what it prints about its version, standard error included."""
    version = _VERSION.search(said)
    if version is None or (int(version[1]), int(version[2])) < OLDEST:
        found = version[0] if version else "an unknown version"
        raise ToolError(
            f"{PROGRAM} is {found}: it cannot read an archive, or loses its times",
            hint="erofs-utils 1.8 or newer is needed, or no compression",
        )
    listed = _COMPRESSORS.search(said)
    known = set(re.findall(r"\w+", listed[1])) if listed else set(_LEVELS)
    if missing := sorted(compression.names - known):
        raise ToolError(f"{PROGRAM} is built without {', '.join(missing)}", hint=f"it has {', '.join(sorted(known))}")


def mkfs_argv(image: Path, compression: Compression, uuid: UUID, label: str) -> list[str | Path]:
    """Return the call that makes `image` of an archive on standard input; the same archive gives the same bytes."""
    return [
        PROGRAM, "--quiet",
        *([f"-z{compression}", "-C65536"] if compression.algorithms else []),
        "-T0", "--mkfs-time", "--preserve-mtime",
        "-U", str(uuid),
        "-L", label,
        "--tar=f",
        image,
    ]  # fmt: skip
