"""A directory as a source: its contents measured, its times those that the layers of its image will have."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from oci2boot.digest import Hash, VerityDigest
from oci2boot.errors import FormatError
from oci2boot.formats.fsverity import Hasher
from oci2boot.oci.directory import Keep, scan
from oci2boot.oci.reference import DirectoryReference, Reference
from oci2boot.tree.model import Directory
from oci2boot.tree.times import SECONDS, Times
from oci2boot.workflows.requests import TreeOptions


@dataclass(frozen=True, slots=True)
class AskedTimes:
    """What becomes of a directory's times, and what its image was built on."""

    times: Times = SECONDS
    below: Path | None = None

    @classmethod
    def of(cls, options: TreeOptions, source: Reference) -> "AskedTimes":
        """Return what the user asked for; it must be of use to the source."""
        asked = cls(options.times, options.times_below)
        if asked != cls() and not isinstance(source, DirectoryReference):
            raise FormatError(
                f"times are chosen for a directory, and {source} is none", hint="layers and dump files have their own"
            )
        if asked.below and not asked.times.of_new_layers:
            raise FormatError(
                f"{asked.below} is what the image was built on: that matters to times of new layers alone",
                hint="as in 1700000000 or clamp:1700000000",
            )
        return asked


USUAL: Final = AskedTimes()
EXACT: Final = AskedTimes(Times("exact"))


def read_directory(root: Path, asked: AskedTimes, keep: Keep, algorithm: Hash) -> Directory:
    """Return the tree, its contents kept by `keep`, which uses the hash `algorithm`."""
    tree = scan(root, keep)
    return asked.times.of(tree, scan(asked.below, measuring(algorithm)) if asked.below else None)


def measuring(algorithm: Hash) -> Keep:
    def keep(pieces: Iterator[bytes]) -> VerityDigest:
        hasher = Hasher(algorithm)
        for piece in pieces:
            hasher.update(piece)
        return hasher.digest()

    return keep
