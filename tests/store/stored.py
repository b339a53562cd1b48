"""Images in a store, made from small layers, for the tests of the store."""

import io
import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from oci2boot.digest import OciDigest
from oci2boot.formats.tar import Entry
from oci2boot.rootfs.composefs import Rootfs, build_rootfs
from oci2boot.rootfs.dmverity import VerityOptions
from oci2boot.store.images import Bootable, OciRecord, save
from oci2boot.store.layers import stage_layer
from oci2boot.store.repository import Repository
from oci2boot.store.roots import ComposefsRoot, Root
from oci2boot.tree.merge import merge
from oci2boot.tree.prepare import prepare_for_boot
from oci2boot.workflows.make.dm_image import build_verity, recorded
from tests.tarballs import END, directory, file
from tests.witness import program

SKELETON = b"".join(directory(name) for name in (b"usr/", b"usr/bin/", b"etc/", b"boot/", b"sysroot/", b"var/"))
ESP = {"EFI/Linux/demo.efi": b"not really a UKI" * 100}


def layer(*parts: bytes) -> bytes:
    return b"".join(parts) + END


def system(seed: bytes = b"one") -> list[bytes]:
    """Return two layers of which the second one differs by `seed`."""
    return [
        layer(SKELETON, file(b"usr/bin/shared", b"shared" * 1000), file(b"etc/small", b"small")),
        layer(directory(b"usr/bin/"), file(b"usr/bin/own", seed * 2000)),
    ]


def store_layer(repository: Repository, tar: bytes) -> list[Entry]:
    entries, batch = stage_layer(repository, OciDigest.of(tar), io.BytesIO(tar).read)
    with batch:
        return entries


@dataclass(frozen=True, slots=True)
class Stored:
    bootable: Bootable
    rootfs: Rootfs
    diff_ids: tuple[OciDigest, ...]


def store_image(
    repository: Repository, name: str, tars: Sequence[bytes], options: VerityOptions | None = None
) -> Stored:
    """Do what `convert` does, without a source; with `options`, in the mode `verity`."""
    diff_ids = tuple(OciDigest.of(tar) for tar in tars)
    entries = [store_layer(repository, tar) for tar in tars]
    tree = prepare_for_boot(merge(entries, print), print)
    rootfs = build_rootfs(tree, 1, repository.algorithm)
    root: Root = ComposefsRoot(rootfs.digest, rootfs.version)
    if options:
        built = build_verity(tree, options, rootfs.digest, repository, print)
        root = recorded(built, options, rootfs, None)
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": [str(one) for one in diff_ids]},
        }
    ).encode()
    layers = [
        {"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": str(diff_id), "size": len(tar)}
        for diff_id, tar in zip(diff_ids, tars, strict=True)
    ]
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": str(OciDigest.of(config)),
                "size": len(config),
            },
            "layers": layers,
        }
    ).encode()
    record = OciRecord(manifest, OciDigest.of(manifest), config, OciDigest.of(config), diff_ids)
    bootable = Bootable(
        name=name,
        source=f"oci:somewhere:{name}",
        rules="canonical-1",
        root=root,
        selinux_rules="libselinux",
        xattrs="allowlist-only",
        manifest=record.manifest_digest,
        architecture="amd64",
        title="A test",
    )
    return Stored(save(repository, bootable, rootfs.image, ESP, record), rootfs, diff_ids)


def everything(repository: Path) -> set[str]:
    """Return the name of every file and link of a store."""
    return {
        str(path.relative_to(repository)) for path in repository.rglob("*") if not path.is_dir() or path.is_symlink()
    }


def cfsctl(repository: Path, *words: str) -> str:
    done = subprocess.run(
        [program("cfsctl"), "--repo", repository, *words], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
