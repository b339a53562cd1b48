"""A tree becomes an EROFS image and the hash tree that guards it, both objects of the store."""

import hashlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from uuid import UUID

from oci2boot.digest import External, VerityDigest
from oci2boot.errors import DigestError, FormatError, SourceError
from oci2boot.formats import dmverity
from oci2boot.formats.dmverity import Parameters
from oci2boot.formats.erofs.structs import BLOCK
from oci2boot.formats.fsverity import Hasher
from oci2boot.formats.tar_writer import write_tar
from oci2boot.rootfs.composefs import Rootfs
from oci2boot.rootfs.dmverity import VerityOptions, VerityRootfs
from oci2boot.rootfs.mkfs import PROGRAM, check_mkfs, mkfs_argv
from oci2boot.rootfs.plain import plan_plain
from oci2boot.store.objects import ObjectBatch
from oci2boot.store.repository import STAGING, Repository
from oci2boot.store.roots import DmVerityRoot
from oci2boot.system.files import plain_errors
from oci2boot.system.run import feed, said_by
from oci2boot.target.plan import derive_uuid
from oci2boot.tree.entries import entries_of
from oci2boot.tree.model import Directory, File, walk
from oci2boot.workflows.progress import Report, Told, Warned

PIECE: Final = 1 << 20
LABEL: Final = "root"


def build_verity(
    tree: Directory, options: VerityOptions, identity: VerityDigest, repository: Repository, report: Report
) -> VerityRootfs:
    """Store the image of `tree` and its hash area; the same tree, options and `identity` give the same bytes.

    `identity` is a digest of the tree: UUIDs and salt follow from it.
    """
    seed = hashlib.sha256(b"dm-verity\0" + identity.raw).digest()
    uuid = UUID(derive_uuid(seed, "root file system"))
    with (
        ObjectBatch(repository) as batch,
        tempfile.TemporaryDirectory(prefix=STAGING, dir=repository.path) as folder,
    ):
        leaves: list[bytes] = []
        parameters = Parameters(
            options.hash,
            hashlib.sha256(b"salt\0" + seed).digest() if options.salt is None else options.salt,
            uuid=UUID(derive_uuid(seed, "hash tree")),
        )
        size = 0

        def passing(pieces: Iterator[bytes]) -> Iterator[bytes]:
            nonlocal size
            rest = b""
            for piece in pieces:
                size += len(piece)
                data = rest + piece if rest else piece
                whole = len(data) - len(data) % BLOCK
                if options.verity:
                    leaves.append(dmverity.hash_blocks(memoryview(data)[:whole], parameters, BLOCK))
                rest = data[whole:]
                yield piece
            if rest:
                raise FormatError(f"the EROFS image has {size} bytes, which are no whole blocks")

        image_digest = batch.add_pieces(passing(_image(tree, options, uuid, repository, Path(folder), report)))
        image = External(image_digest, size)
        raw_size = sum({id(inode): inode.size for _, inode in walk(tree) if isinstance(inode, File)}.values())
        ratio = size / max(raw_size, 1)
        report(Told(f"EROFS {_mib(size)} MiB of {_mib(raw_size)} MiB, {ratio:.0%} ({options.compression})"))
        if not options.verity:
            return VerityRootfs(image=image, raw_size=raw_size, uuid=uuid)
        blocks = size // BLOCK if options.blocks is None else options.blocks
        if blocks * BLOCK > size:
            raise FormatError(
                f"--verity-blocks {blocks}: the image has {size // BLOCK}", hint="write a smaller number, or all"
            )
        area = dmverity.plan_area(blocks * BLOCK, parameters)
        root_hash, levels = dmverity.hash_tree(b"".join(leaves)[: blocks * parameters.slot], area)
        content = b"".join([area.superblock(), *levels])
        return VerityRootfs(
            image=image,
            raw_size=raw_size,
            uuid=uuid,
            area=area,
            root_hash=root_hash,
            tree=External(batch.add(content), len(content)),
        )


def recorded(
    root: VerityRootfs, options: VerityOptions, listed: Rootfs, signature: VerityDigest | None
) -> DmVerityRoot:
    """Return what the store keeps of it; `signature` is the object with the content of a `-verity-sig` partition."""
    parameters = root.area.parameters if root.area else Parameters()
    return DmVerityRoot(
        image=root.image.digest,
        erofs_version=listed.version,
        tree=listed.digest,
        data_size=root.image.size,
        raw_size=root.raw_size,
        compression=options.compression,
        overlays=options.overlays,
        root_hash=root.root_hash,
        algorithm=parameters.algorithm,
        salt=parameters.salt,
        data_blocks=root.area.data_blocks if root.area else 0,
        hash_object=root.tree.digest if root.tree else None,
        hash_size=root.tree.size if root.tree else 0,
        place=options.place,
        signature_object=signature,
    )


def _image(
    tree: Directory, options: VerityOptions, uuid: UUID, repository: Repository, folder: Path, report: Report
) -> Iterator[bytes]:
    def content(external: External) -> Iterator[bytes]:
        return object_pieces(repository, external)

    if not options.compression.algorithms:
        yield from plan_plain(tree, uuid, LABEL).pieces(content)
        return
    if said := said_by([PROGRAM, "--version"]):
        check_mkfs(said, options.compression)
    image = folder / "image"
    entries = entries_of(tree, lambda text: report(Warned(text)))
    feed(mkfs_argv(image, options.compression, uuid, LABEL), write_tar(entries, content), package="erofs-utils")
    with plain_errors(SourceError, "read what mkfs.erofs wrote"), image.open("rb") as file:
        while piece := file.read(PIECE):
            yield piece


def object_pieces(repository: Repository, external: External) -> Iterator[bytes]:
    """Yield an object's content; `DigestError` at its end if it is not what its name says."""
    hasher = Hasher(external.digest.algorithm)
    path = repository.object_path(external.digest)
    with plain_errors(SourceError, f"read object {external.digest}"), path.open("rb") as file:
        while piece := file.read(PIECE):
            hasher.update(piece)
            yield piece
    if hasher.digest() != external.digest:
        raise DigestError(f"object {external.digest} is damaged", hint="run `oci2boot fsck`")


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f}"
