"""What is to lie on a disk: the entries of the root file system and the files of the EFI system partition."""

import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from oci2boot.digest import VerityDigest
from oci2boot.tree.model import Metadata


@dataclass(frozen=True, slots=True)
class FileSource:
    """A file of the host whose content is copied; `size` in bytes is a promise that the copying checks."""

    path: Path
    size: int

    @classmethod
    def of(cls, path: Path) -> Self:
        return cls(path, path.stat().st_size)


Source = bytes | FileSource


def source_size(source: Source) -> int:
    return len(source) if isinstance(source, bytes) else source.size


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class RootEntry:
    """One inode of the root partition, as the target machine will see it."""

    path: bytes
    """Absolute, without empty, `.` or `..` components. The root `/` and `/lost+found` may be given or left out."""
    kind: int
    """The `stat.S_IFMT` bits."""
    meta: Metadata
    source: Source = b""
    """A regular file's content; a symbolic link's target, as bytes."""
    verity: VerityDigest | None = None
    """Makes a regular file an fs-verity file; content with another digest is refused while it is copied."""
    rdev: int = 0
    """Of a device: the kernel's new_encode_dev() number, as in `tree.model.Device`."""
    links: Sequence[bytes] = ()
    """Further names of the same inode (hard links)."""

    @property
    def size(self) -> int:
        """i_size, in bytes."""
        return source_size(self.source) if self.kind in (stat.S_IFREG, stat.S_IFLNK) else 0


@dataclass(frozen=True, slots=True)
class EspFile:
    """A file of the EFI system partition; its directories come with it."""

    path: str
    """Relative, with slashes: `EFI/Linux/debian_13.efi`."""
    source: Source
