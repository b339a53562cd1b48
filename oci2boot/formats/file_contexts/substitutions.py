"""file_contexts.subs: a directory that is looked up under another's name.

Both rule sets are read as: a few paths of the tree where the name to look up changes, `places`. Everywhere else it is
the name of the directory with the entry's own name behind it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

Pair = tuple[bytes, bytes]
"""A path as it is in the tree, and the one to look up instead."""

UNNAMED = b"\0"
"""A name that no file has."""


class Substitutions(Protocol):
    @property
    def places(self) -> frozenset[bytes]: ...

    def apply(self, path: bytes) -> bytes:
        """Return what to look up for one of `places`."""

    def enter(self, path: bytes) -> tuple[bytes, bytes]:
        """Return what goes before the names in the directory that is one of `places`: in `places`, and in look-ups."""


@dataclass(frozen=True, slots=True)
class Simultaneous:
    """libselinux: `local` (.subs) and then `distribution` (.subs_dist), each once, on the whole path.

    In each list the first pair counts whose source is the path or above it; the last line of a file comes first.
    """

    local: Sequence[Pair]
    distribution: Sequence[Pair]
    places: frozenset[bytes]

    @classmethod
    def of(cls, local: Sequence[Pair], distribution: Sequence[Pair]) -> "Simultaneous":
        places = {source for source, _ in (*local, *distribution)}
        for source, destination in local:
            for chained, _ in distribution:
                rest = chained.removeprefix(b"" if destination == b"/" else destination)
                if chained.startswith(destination) and rest[:1] in (b"", b"/"):
                    places.add(source + rest)
        return cls(local[::-1], distribution[::-1], frozenset(places))

    def apply(self, path: bytes) -> bytes:
        return _substitute(self.distribution, _substitute(self.local, path))

    def enter(self, path: bytes) -> tuple[bytes, bytes]:
        return path + b"/", self.apply(path + b"/" + UNNAMED).removesuffix(UNNAMED)


def _substitute(pairs: Sequence[Pair], path: bytes) -> bytes:
    for source, destination in pairs:
        if path.startswith(source):
            rest = path[len(source) :]
            if rest[:1] in (b"", b"/"):
                return rest if destination == b"/" and rest else destination + rest
    return path


@dataclass(frozen=True, slots=True)
class Successive:
    """composefs-rs: on the way down, every name so far that is an alias is replaced, and the way goes on from there."""

    aliases: Mapping[bytes, bytes]
    places: frozenset[bytes]

    @classmethod
    def of(cls, local: Sequence[Pair], distribution: Sequence[Pair]) -> "Successive":
        aliases = dict((*local, *distribution))
        return cls(aliases, frozenset(aliases) - {b"/"})

    def apply(self, path: bytes) -> bytes:
        return self.aliases[path]

    def enter(self, path: bytes) -> tuple[bytes, bytes]:
        prefix = self.aliases[path].removesuffix(b"/") + b"/"
        return prefix, prefix
