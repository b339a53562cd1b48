"""A tar of a root file system as an image of one layer. What is not in a tar, manifest and config, is made here."""

import hashlib
import os
from io import BytesIO
from typing import Final

from oci2boot.digest import OciDigest
from oci2boot.errors import SourceError
from oci2boot.oci.blob import Blob
from oci2boot.oci.image import ImageSource, host_platform
from oci2boot.oci.inflate import inflate
from oci2boot.oci.local import GZIP, ZSTD, open_regular
from oci2boot.oci.manifest import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, Compression, Descriptor, Platform
from oci2boot.oci.members import Span
from oci2boot.oci.outgoing import pack_json, to_json
from oci2boot.oci.reference import TarReference

_TYPES: Final[dict[Compression, str]] = {
    "none": OCI_LAYER,
    "gzip": f"{OCI_LAYER}+gzip",
    "zstd": f"{OCI_LAYER}+zstd",
}


class TarSource(ImageSource):
    """A tar, plain or compressed, read where it lies; it must not change meanwhile."""

    def __init__(self, reference: TarReference, platform: Platform | None) -> None:
        super().__init__(reference, platform)
        self._fd = open_regular(reference.path, str(reference))
        self._config = b""

    def _root(self) -> tuple[Descriptor, bytes]:
        digest, size = self._hash("none")
        compression = self._compression()
        diff_id = digest if compression == "none" else self._hash(compression)[0]
        platform = self._platform or host_platform()
        self._config = pack_json(
            {
                "architecture": platform.architecture,
                **({"variant": platform.variant} if platform.variant else {}),
                "os": platform.os,
                "config": {},
                "rootfs": {"type": "layers", "diff_ids": [str(diff_id)]},
            }
        )
        config = Descriptor(OCI_CONFIG, OciDigest.of(self._config), len(self._config), {})
        manifest = pack_json(
            {
                "schemaVersion": 2,
                "mediaType": OCI_MANIFEST,
                "config": to_json(config),
                "layers": [to_json(Descriptor(_TYPES[compression], digest, size, {}))],
            }
        )
        return Descriptor(OCI_MANIFEST, OciDigest.of(manifest), len(manifest), {}), manifest

    def _compression(self) -> Compression:
        head = os.pread(self._fd, 6, 0)
        if head == b"\xfd7zXZ\0":
            raise SourceError(f"{self.reference} is compressed by xz", hint="unpack it with unxz first")
        return "gzip" if head.startswith(GZIP) else "zstd" if head.startswith(ZSTD) else "none"

    def _hash(self, compression: Compression) -> tuple[OciDigest, int]:
        hasher, size = hashlib.sha256(), 0
        stream = self._span()
        try:
            for piece in inflate(stream.read, compression):
                hasher.update(piece)
                size += len(piece)
        finally:
            stream.close()
        return OciDigest("sha256", hasher.hexdigest()), size

    def _span(self) -> Span:
        return Span(os.dup(self._fd), 0, os.fstat(self._fd).st_size)

    def _document(self, descriptor: Descriptor, what: str) -> bytes:
        raise SourceError(f"{self.reference} has no {what}: {descriptor.digest}")

    def open(self, descriptor: Descriptor) -> Blob:
        if descriptor.media_type == OCI_CONFIG:
            return Blob(BytesIO(self._config), descriptor, "the config")
        return Blob(self._span(), descriptor, f"the layer {descriptor.digest}")

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
