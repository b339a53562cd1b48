"""The measurement manifest of a root file system: every path with its metadata and digest, as deterministic JSON."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from oci2boot.digest import RootHash, VerityDigest
from oci2boot.errors import FormatError
from oci2boot.store.images import Bootable
from oci2boot.store.roots import DmVerityRoot, Mode
from oci2boot.system.files import read_limited
from oci2boot.tree.diff import Difference, compare, describe, text
from oci2boot.tree.model import Directory, File, walk

FORMAT: Final = "oci2boot-manifest-1"
MANIFEST_MAX: Final = 512 << 20
"""Bytes; a Debian root has about 7 MiB."""
PLAIN_HASH: Final = "sha256"
"""The field for other tools: what sha256sum(1) says of the file."""


@dataclass(frozen=True, slots=True)
class Manifest:
    rootfs: VerityDigest
    """Of the composefs image, which lists the same files in either mode."""
    image: str | None
    """Digest of the OCI image's manifest."""
    paths: Mapping[str, Mapping[str, object]]
    rules: str | None = None
    """Id of the canonical rules; older manifests do not say."""
    root_hash: RootHash | None = None
    """Of dm-verity, in the mode `verity`."""

    @classmethod
    def of(cls, tree: Directory, bootable: Bootable, sha256: Callable[[File], str]) -> Self:
        """Describe an image; `tree` is its tree, `sha256` gives the plain hash of a file's content."""
        paths = dict(describe(tree, bootable.root.tree.algorithm))
        for raw, inode in walk(tree):
            if isinstance(inode, File):
                paths[text(raw)][PLAIN_HASH] = sha256(inode)
        image = str(bootable.manifest) if bootable.manifest else None
        root_hash = bootable.root.root_hash if isinstance(bootable.root, DmVerityRoot) else None
        return cls(bootable.root.tree, image, paths, bootable.rules, root_hash)

    def to_json(self) -> dict[str, object]:
        return {
            "format": FORMAT,
            "image": self.image,
            "rules": self.rules,
            "rootfs": {"fs-verity": str(self.rootfs), "hash": self.rootfs.algorithm},
            "dm-verity": {"root hash": str(self.root_hash), "hash": self.root_hash.algorithm}
            if self.root_hash
            else None,
            "paths": self.paths,
        }

    def digest(self, mode: Mode) -> VerityDigest | RootHash | None:
        """Return what a machine of this mode is to boot."""
        return self.rootfs if mode == "composefs" else self.root_hash

    def differences(self, tree: Directory) -> Iterator[Difference]:
        """Yield how a tree differs. Contents are compared by their fs-verity digests, which stand for every byte."""
        expected = (
            (path, {name: value for name, value in fields.items() if name != PLAIN_HASH})
            for path, fields in self.paths.items()
        )
        return compare(expected, describe(tree, self.rootfs.algorithm))


def pack(document: Mapping[str, object]) -> bytes:
    """Return the file; the same image always gives the same bytes."""
    return json.dumps(document, indent=2).encode() + b"\n"


def read_manifest(path: Path) -> Manifest:
    data = read_limited(path, MANIFEST_MAX)
    try:
        found = json.loads(data)
        if found["format"] != FORMAT:
            raise FormatError(f"{path} is a manifest of another kind: {str(found['format'])[:80]!r}")
        image, paths, rules, verity = found["image"], found["paths"], found.get("rules"), found.get("dm-verity")
        if not all(one is None or isinstance(one, str) for one in (image, rules)):
            raise TypeError
        if not all(isinstance(one, dict) for one in paths.values()):
            raise TypeError
        root_hash = RootHash.parse(verity["root hash"]) if verity is not None else None
        return Manifest(VerityDigest.parse(found["rootfs"]["fs-verity"]), image, paths, rules, root_hash)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FormatError(f"{path} is not a manifest", hint="`oci2boot inspect NAME --manifest` writes one") from error
