"""What a boot record says of a root file system: files one by one under fs-verity, or a partition under dm-verity.

Either lists its files in a composefs image, and is made of objects of the store, which the record's named references
keep.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Final, Literal, Self

from oci2boot.digest import External, Hash, RootHash, VerityDigest
from oci2boot.errors import FormatError
from oci2boot.formats import dmverity
from oci2boot.formats.cmdline import ComposefsArg
from oci2boot.rootfs.dmverity import ROOT_HASH, Overlay, Place
from oci2boot.rootfs.mkfs import Compression

_SHARED: Final = ("image", "erofs_version")


Mode = Literal["composefs", "verity"]
"""What guards the files: fs-verity each of them, or dm-verity the partition that they are in."""


@dataclass(frozen=True, slots=True)
class ComposefsRoot:
    """Files that are objects, and the composefs image that lists them: the kernel holds the machine to its digest."""

    mode: ClassVar[Mode] = "composefs"

    image: VerityDigest
    """The composefs image."""
    erofs_version: int
    """Its format."""

    @property
    def tree(self) -> VerityDigest:
        return self.image

    @property
    def karg(self) -> str:
        """The kernel argument, in the form that every glue reads."""
        return str(ComposefsArg(self.image))

    @property
    def objects(self) -> Mapping[str, VerityDigest]:
        """What a disk is made of besides the files, by named references."""
        return {"rootfs": self.image}


@dataclass(frozen=True, slots=True, kw_only=True)
class DmVerityRoot:
    """An EROFS image that fills a partition, and the hash tree that guards it."""

    mode: ClassVar[Mode] = "verity"

    image: VerityDigest
    """The EROFS image that fills the root partition."""
    erofs_version: int
    """The format of the composefs image."""
    tree: VerityDigest
    """The composefs image of the same tree: the digest that salt and UUIDs follow from, and the list of its files."""
    data_size: int
    """Bytes of the EROFS image, whole blocks."""
    raw_size: int
    """Bytes of the files' content, as they are read."""
    compression: Compression
    overlays: tuple[Overlay, ...]
    root_hash: RootHash | None = None
    """None where nothing guards the file system; then there is no hash area either."""
    algorithm: Hash = "sha256"
    """Of the hash tree."""
    salt: bytes = b""
    data_blocks: int = 0
    """Blocks of 4096 bytes that the hash tree covers, from the first."""
    hash_object: VerityDigest | None = None
    """The hash area, superblock and all."""
    hash_size: int = 0
    """Bytes of the hash area."""
    place: Place = "partition"
    """`embedded`: the hash area is in the root partition, at `data_size`."""
    signature_object: VerityDigest | None = None
    """The whole content of the `-verity-sig` partition, 16 KiB."""

    @property
    def karg(self) -> str | None:
        """The kernel argument by which a boot entry is known to start this root; None where nothing guards it."""
        return f"{ROOT_HASH}={self.root_hash}" if self.root_hash else None

    @property
    def objects(self) -> Mapping[str, VerityDigest]:
        """What a disk is made of, by named references."""
        named = {"rootfs": self.image, "verity:hash": self.hash_object, "verity:signature": self.signature_object}
        return {name: digest for name, digest in named.items() if digest}

    @property
    def hash_area(self) -> External | None:
        return External(self.hash_object, self.hash_size) if self.hash_object else None

    @property
    def ratio(self) -> float:
        """How much of the content's size the file system takes."""
        return self.data_size / max(self.raw_size, 1)

    def to_json(self) -> dict[str, Any]:
        """Return the record's part about dm-verity; the fields that both modes have stand beside it."""
        own = {name: value for name, value in asdict(self).items() if name not in _SHARED}
        return {
            **own,
            "tree": str(self.tree),
            "compression": str(self.compression),
            "overlays": [str(overlay) for overlay in self.overlays],
            "root_hash": str(self.root_hash) if self.root_hash else None,
            "salt": self.salt.hex(),
            "hash_object": str(self.hash_object) if self.hash_object else None,
            "signature_object": str(self.signature_object) if self.signature_object else None,
        }

    @classmethod
    def from_json(cls, image: VerityDigest, erofs_version: int, found: Mapping[str, Any]) -> Self:
        """Raise `FormatError`, or an error of Python's about types, keys or values, for what `to_json` never gave."""
        root_hash, tree, signature = found["root_hash"], found["hash_object"], found["signature_object"]
        record = cls(
            **{
                **found,
                "image": image,
                "erofs_version": erofs_version,
                "tree": VerityDigest.parse(found["tree"]),
                "compression": Compression.parse(found["compression"]),
                "overlays": tuple(map(Overlay.parse, found["overlays"])),
                "root_hash": RootHash.parse(root_hash) if root_hash is not None else None,
                "salt": bytes.fromhex(found["salt"]),
                "hash_object": VerityDigest.parse(tree) if tree is not None else None,
                "signature_object": VerityDigest.parse(signature) if signature is not None else None,
            }
        )
        record._check()
        return record

    def _check(self) -> None:
        sizes = (self.data_size, self.raw_size, self.data_blocks, self.hash_size)
        if not all(type(size) is int and 0 <= size < 1 << 60 for size in sizes):
            raise FormatError("a size is no size")
        guarded = self.root_hash is not None
        if guarded is not (self.hash_object is not None) or (self.signature_object and not guarded):
            raise FormatError("root hash and hash tree go together")
        if self.root_hash and self.algorithm != self.root_hash.algorithm:
            raise FormatError("a root hash of another algorithm")
        if self.place not in ("partition", "embedded") or len(self.salt) > dmverity.SALT_MAX:
            raise FormatError("a hash tree that is not known here")
        block = dmverity.Parameters().data_block
        if self.data_size % block or self.data_blocks * block > self.data_size or guarded is not (self.data_blocks > 0):
            raise FormatError("the hash tree covers what is not there")


Root = ComposefsRoot | DmVerityRoot
