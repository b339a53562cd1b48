"""The door to all places that images come from."""

from dataclasses import dataclass
from pathlib import Path

from oci2boot.errors import SourceError
from oci2boot.oci.docker_archive import DockerArchiveSource
from oci2boot.oci.image import ImageSource
from oci2boot.oci.layout import ArchiveSource, LayoutSource
from oci2boot.oci.local import recognize, standard_input
from oci2boot.oci.manifest import Platform
from oci2boot.oci.reference import (
    ArchiveReference,
    DockerArchiveReference,
    InputReference,
    LayoutReference,
    Reference,
    RegistryReference,
    StorageReference,
    TarReference,
)
from oci2boot.oci.storage import StorageSource
from oci2boot.oci.tarball import TarSource


@dataclass(frozen=True, slots=True)
class SourceOptions:
    platform: Platform | None = None
    """None takes an image for this machine out of an index, and any image that stands alone."""
    tls_verify: bool = True
    """False accepts any certificate, and plain HTTP, from registries."""
    authfile: Path | None = None
    """The only file with credentials to look at; None means the usual ones."""


def open_source(reference: Reference, options: SourceOptions = SourceOptions()) -> ImageSource:
    """Return the source of a reference to an image; directories and dump files are read elsewhere."""
    match reference:
        case RegistryReference():
            from oci2boot.oci.registry import RegistrySource

            return RegistrySource(reference, options.platform, tls_verify=options.tls_verify, authfile=options.authfile)
        case LayoutReference():
            return LayoutSource(reference, options.platform)
        case ArchiveReference():
            return ArchiveSource(reference, options.platform)
        case TarReference():
            return TarSource(reference, options.platform)
        case InputReference():
            # The source holds the file from here on.
            with standard_input() as path:
                source = open_source(recognize(path, "standard input"), options)
                source.reference = reference
                return source
        case DockerArchiveReference():
            return DockerArchiveSource(reference, options.platform)
        case StorageReference():
            return StorageSource(reference, options.platform)
    raise SourceError(f"{reference} is a tree, not an image", hint="give an image: docker://, oci: or oci-archive:")
