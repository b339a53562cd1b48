"""Images in the tar that `docker save`, `podman save` and skopeo's docker-archive: write. moby, image/spec/v1.2.md.

Such an archive has no manifest of its own kind: one is made here of what it holds, the same each time.
"""

import hashlib
import json
from typing import Any, Final

from oci2boot.digest import OciDigest
from oci2boot.errors import FormatError, SourceError
from oci2boot.oci.blob import Blob, RawStream, read_document
from oci2boot.oci.documents import MAX_DOCUMENT
from oci2boot.oci.image import ImageSource
from oci2boot.oci.manifest import MAX_LAYERS, OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, Descriptor, Platform, parse_config
from oci2boot.oci.members import Members
from oci2boot.oci.reference import DockerArchiveReference
from oci2boot.system.files import read_all

MANIFEST: Final = "manifest.json"


class DockerArchiveSource(ImageSource):
    """A tar, read where it lies; its layers are plain tars, whose digests the config promises."""

    def __init__(self, reference: DockerArchiveReference, platform: Platform | None) -> None:
        super().__init__(reference, platform)
        self._docker = reference
        self._members = Members(reference.path, str(reference))
        self._names: dict[OciDigest, str] = {}

    def _root(self) -> tuple[Descriptor, bytes]:
        entry = self._choose(self._documents())
        config_name, layer_names = _text(entry, "Config"), _texts(entry, "Layers")
        config = self._small_file(config_name)
        config_digest = OciDigest.of(config)
        self._names[config_digest] = config_name
        diff_ids = parse_config(config, f"the config of {self.reference}").diff_ids
        if len(diff_ids) != len(layer_names):
            raise FormatError(
                f"{self.reference} has {len(layer_names)} layers and {len(diff_ids)} diff_ids in its config"
            )
        layers = []
        for diff_id, name in zip(diff_ids, layer_names, strict=True):
            stream, size = self._open_member(name)
            with_magic = stream.read(2)
            stream.close()
            if with_magic in (b"\x1f\x8b", b"\x28\xb5"):
                raise SourceError(
                    f"{self.reference} has a compressed layer", hint="skopeo copy it to oci:DIR:latest, and give that"
                )
            self._names[diff_id] = name
            layers.append({"mediaType": OCI_LAYER, "digest": str(diff_id), "size": size})
        manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": OCI_MANIFEST,
                "config": {"mediaType": OCI_CONFIG, "digest": str(config_digest), "size": len(config)},
                "layers": layers,
            },
            separators=(",", ":"),
        ).encode()
        digest = OciDigest("sha256", hashlib.sha256(manifest).hexdigest())
        return Descriptor(OCI_MANIFEST, digest, len(manifest), {}), manifest

    def _documents(self) -> list[dict[str, Any]]:
        what = f"{MANIFEST} of {self.reference}"
        try:
            documents = json.loads(self._small_file(MANIFEST))
        except (ValueError, RecursionError) as error:
            raise FormatError(f"{what} is not valid JSON: {error}") from error
        if not isinstance(documents, list) or not all(isinstance(entry, dict) for entry in documents):
            raise FormatError(f"{what} is not a list of images")
        return documents

    def _choose(self, entries: list[dict[str, Any]]) -> dict[str, Any]:
        tag = self._docker.tag
        tags = {name: entry for entry in entries for name in _texts(entry, "RepoTags")}
        hint = f"it has {', '.join(sorted(tags)[:20])}" if tags else "no image in it has a name"
        if tag is None:
            if len(entries) == 1:
                return entries[0]
            raise SourceError(f"{self.reference} has {len(entries)} images; say which by its name", hint=hint)
        for name in (tag, f"docker.io/library/{tag}", f"docker.io/{tag}"):
            for full in (name, f"{name}:latest"):
                if full in tags:
                    return tags[full]
        raise SourceError(f"{self.reference} has no image of that name", hint=hint)

    def _open_member(self, name: str) -> tuple[RawStream, int]:
        member = self._members.open(name.encode(errors="surrogateescape"))
        if member is None:
            raise SourceError(
                f"{self.reference} is not a docker archive: it has no {name[:200]}",
                hint="write oci-archive: for an OCI layout in a tar",
            )
        return member

    def _small_file(self, name: str) -> bytes:
        stream, size = self._open_member(name)
        try:
            return read_all(stream, MAX_DOCUMENT, f"{name[:200]} of {self.reference}", size=size)
        finally:
            stream.close()

    def _document(self, descriptor: Descriptor, _what: str) -> bytes:
        return read_document(self.open(descriptor))

    def open(self, descriptor: Descriptor) -> Blob:
        stream, _ = self._open_member(self._names[descriptor.digest])
        return Blob(stream, descriptor, f"the blob {descriptor.digest}")

    def close(self) -> None:
        self._members.close()


def _text(entry: dict[str, Any], key: str) -> str:
    value = entry.get(key)
    if not isinstance(value, str) or not value:
        raise FormatError(f"{MANIFEST} of a docker archive has no proper {key!r}")
    return value


def _texts(entry: dict[str, Any], key: str) -> list[str]:
    value = entry.get(key) or []
    if not isinstance(value, list) or len(value) > MAX_LAYERS or not all(isinstance(item, str) for item in value):
        raise FormatError(f"{MANIFEST} of a docker archive has no proper {key!r}")
    return value
