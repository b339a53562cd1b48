"""What an initramfs is told by files in an archive of their own: the others do not differ with the promise.

setup-root reads them. Who signs or measures the initramfs vouches for them as well.
"""

from collections.abc import Mapping, Sequence
from typing import Final, Literal

from oci2boot.boot.glue import PLACE, Archive, keep
from oci2boot.formats import cpio

ReadMode = Literal["ahead", "on-demand"]
"""When the kernel reads the rootfs image, and so verifies it: all before it is mounted, or each block as it is used."""

DIGEST_FILE: Final = b"usr/lib/composefs/rootfs.digest"
"""setup-root takes it for the promise, which the command line then may only repeat."""
READ_FILE: Final = PLACE + b"read"
OWN: Final = (None, "oci2boot")
"""Whose glue reads these files; None is the one that is added here."""


def pack_told(files: Mapping[bytes, bytes], initrds: Sequence[bytes] = ()) -> bytes:
    """Return the archive, to be unpacked over others: the kernel makes no directory by itself, and drops the file."""
    below: dict[bytes, cpio.Found] = {}
    for initrd in initrds:
        below |= cpio.read(initrd, keep)
    archive = Archive(below)
    for path, content in files.items():
        archive.add(cpio.file(path, content))
    return archive.pack()
