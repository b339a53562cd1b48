"""Disks with a root file system under dm-verity, that boot nothing, yet have all that a bootable one has."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from oci2boot.boot.roothash import pack_partition, sign_root_hash
from oci2boot.digest import RootHash
from oci2boot.rootfs.dmverity import VerityOptions
from oci2boot.store.images import Bootable, save
from oci2boot.store.objects import ObjectBatch
from oci2boot.store.repository import Repository
from oci2boot.store.roots import DmVerityRoot
from oci2boot.workflows.install.disk import Installed, install
from oci2boot.workflows.progress import silent
from oci2boot.workflows.requests import DiskRequest, InstallRequest
from tests.keys import Pair
from tests.store.stored import SKELETON, Stored, layer, store_image
from tests.tarballs import directory, file
from tests.workflows.sealable import kernel, uki

UKI = "EFI/Linux/demo_1.efi"
TARS = [
    layer(
        SKELETON,
        file(b"usr/bin/tool", b"tool" * 3000),
        file(b"usr/lib/big", b"".join(number.to_bytes(4, "big") * 250 for number in range(3000))),
        directory(b"etc/", mode=0o751, uid=3, gid=4),
        file(b"etc/inline", b"inline"),
        directory(b"var/lib/"),
        file(b"var/lib/state", b"state" * 1000),
    )
]
EMBEDDED = VerityOptions(place="embedded", form="systemd")


@dataclass(frozen=True, slots=True)
class Image:
    repo: Path
    stored: Stored
    bootable: Bootable

    @property
    def record(self) -> DmVerityRoot:
        assert isinstance(self.bootable.root, DmVerityRoot)
        return self.bootable.root

    @property
    def root_hash(self) -> RootHash:
        assert self.record.root_hash
        return self.record.root_hash

    @property
    def erofs(self) -> bytes:
        return self.object(self.bootable.root.image)

    def object(self, digest: Any) -> bytes:
        with Repository.open(self.repo) as repository:
            return repository.object_path(digest).read_bytes()

    def install(self, disk: Path, **options: Any) -> Installed:
        """`options` are of the request, or of the disk in it."""
        wishes = {field.name: options.pop(field.name) for field in fields(DiskRequest) if field.name in options}
        request = InstallRequest(repo=self.repo, target=disk, name="demo", disk=DiskRequest(**wishes), **options)
        return install(request, silent)


def converted(
    repo: Path,
    tars: Sequence[bytes],
    options: VerityOptions,
    key: Pair | None = None,
    words: str | None = None,
    esp: Mapping[str, bytes] | None = None,
) -> Image:
    """Do what `convert --mode verity` does, without a source; `words` are the UKI's command line."""
    with Repository.ensure(repo) as repository:
        stored = store_image(repository, "demo", tars, options)
        record = stored.bootable.root
        assert isinstance(record, DmVerityRoot)
        if key:
            assert record.root_hash
            document = pack_partition(record.root_hash, sign_root_hash(record.root_hash, key.signer), key.certificate)
            with ObjectBatch(repository) as batch:
                record = replace(record, signature_object=batch.add(document))
        line = words if words is not None else f"quiet roothash={record.root_hash}" if record.root_hash else "quiet"
        files = esp or {UKI: uki(line), "EFI/BOOT/BOOTX64.EFI": kernel()}
        fields = {name: getattr(stored.bootable, name) for name in Bootable.__dataclass_fields__}
        bootable = save(repository, Bootable(**(fields | {"root": record})), stored.rootfs.image, files, None)
    return Image(repo, stored, bootable)
