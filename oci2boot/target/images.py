"""Partitions whose bytes are given: a file system that is only read, the hash tree that guards it, its signature.

UAPI group, Discoverable Partitions Specification: half of the root hash is the GUID of the one, half that of the other.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from oci2boot.digest import RootHash, VerityDigest
from oci2boot.errors import TreeSizeError
from oci2boot.target.entries import Source, source_size
from oci2boot.target.nodes import BLOCK
from oci2boot.target.space import MIB, in_mib
from oci2boot.target.types import READ_ONLY, types_of


@dataclass(frozen=True, slots=True)
class Part:
    """What is copied to one place of a partition."""

    source: Source
    digest: VerityDigest | None = None
    """Of the source; content with another one is refused while it is copied."""
    offset: int = 0
    """In bytes, a multiple of 4096."""

    @property
    def end(self) -> int:
        return self.offset + source_size(self.source)


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """A partition that is only read; behind its parts there are zeros."""

    label: str
    type: str
    guid: str
    content: str
    """What blkid(8) calls it."""
    parts: Sequence[Part]
    """In order, apart from each other."""
    size: int | None = None
    """Bytes of the partition; by default what the parts need."""
    attributes: int = READ_ONLY
    unit: int = MIB
    """The partition's size is a multiple of these bytes."""

    @property
    def used(self) -> int:
        return max((part.end for part in self.parts), default=0)


@dataclass(frozen=True, slots=True)
class VerityParts:
    """What a root file system under dm-verity is made of."""

    root: Part
    root_hash: RootHash
    area: Part
    """Superblock and hash tree."""
    signature: Part | None = None


def plain_image(root: Part, architecture: str, guid: str) -> Image:
    """Return the root partition with a file system that nothing guards."""
    return Image(label="root", type=types_of(architecture).root, guid=guid, content="erofs", parts=[root])


def verity_images(
    given: VerityParts, architecture: str, signature_guid: str, *, embedded: bool, verity_size: int | None = None
) -> list[Image]:
    """Return root, hash tree and signature as partitions; an `embedded` tree lies behind the file system, in the first.

    `verity_size` is what the partition of the hash tree has to have; raises `TargetError` where that is too little.
    """
    types, root_hash = types_of(architecture), given.root_hash
    root = plain_image(given.root, architecture, str(root_hash.data_uuid))
    if embedded:
        if verity_size is not None:
            raise TreeSizeError(
                "the hash tree is in the root partition, and a size is given for a partition of its own",
                hint="leave the size out, or convert with a hash tree in a partition of its own",
            )
        images = [replace(root, parts=[given.root, replace(given.area, offset=given.root.end)])]
    else:
        needed = given.area.end
        if verity_size is not None and verity_size < needed:
            raise TreeSizeError(
                f"a partition of {verity_size} bytes is too small for the hash tree: {needed} bytes are needed",
                hint=f"give {in_mib(needed)} or more, or leave the size out",
            )
        tree = Image(
            label="root-verity",
            type=types.verity,
            guid=str(root_hash.hash_uuid),
            content="DM_verity_hash",
            parts=[given.area],
            size=verity_size,
        )
        images = [root, tree]
    if given.signature:
        # As systemd-repart makes it: no file system, so without the attribute; and small, which it is known by.
        signature = Image(
            label="root-verity-sig",
            type=types.signature,
            guid=signature_guid,
            content="verity_signature",
            parts=[given.signature],
            attributes=0,
            unit=BLOCK,
        )
        images.append(signature)
    return images
