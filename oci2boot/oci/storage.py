"""Images in the local storage of podman and buildah: skopeo takes one out, as an archive. containers-storage(5)."""

import tempfile
from pathlib import Path

from oci2boot.errors import SourceError, ToolError
from oci2boot.oci.docker_archive import DockerArchiveSource
from oci2boot.oci.manifest import Platform
from oci2boot.oci.reference import DockerArchiveReference, StorageReference
from oci2boot.system.run import run

SECONDS = 3600


class StorageSource(DockerArchiveSource):
    """skopeo knows each storage driver and, without root, the user namespace that the files belong to."""

    def __init__(self, reference: StorageReference, platform: Platform | None) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="oci2boot-")
        try:
            archive = Path(self._folder.name, "image.tar")
            argv = ["skopeo", "copy", "--quiet", "--insecure-policy", str(reference), f"docker-archive:{archive}"]
            try:
                run(argv, timeout=SECONDS, package="skopeo")
            except ToolError as error:
                raise SourceError(f"{reference} cannot be read: {error.message}", hint=error.hint) from error
            super().__init__(DockerArchiveReference(archive), platform)
        except BaseException:
            self._folder.cleanup()
            raise
        self.reference = reference

    def close(self) -> None:
        super().close()
        self._folder.cleanup()
