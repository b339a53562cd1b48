"""An image's layers into the store, and nothing more: contents become objects, no rootfs image is made."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oci2boot.digest import Hash, OciDigest
from oci2boot.errors import SourceError
from oci2boot.oci.reference import DirectoryReference, DumpfileReference, Reference
from oci2boot.oci.source import SourceOptions, open_source
from oci2boot.store.images import check_name, save_pulled
from oci2boot.store.repository import Repository
from oci2boot.workflows.make.unpack import unpack_image
from oci2boot.workflows.progress import Report, Warned
from oci2boot.workflows.sources import tell_path


@dataclass(frozen=True, slots=True)
class Pulled:
    name: str
    source: str
    manifest: OciDigest
    layers: tuple[OciDigest, ...]
    """Their diff_ids, lowest first."""

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "source": self.source,
            "manifest": str(self.manifest),
            "layers": [str(layer) for layer in self.layers],
        }


def pull(
    reference: Reference,
    repo: Path,
    report: Report,
    *,
    name: str | None,
    algorithm: Hash | None,
    options: SourceOptions,
) -> Pulled:
    """Fetch, check and unpack the layers that the store lacks, and keep them under a name, for `convert` to find."""
    name = check_name(name or reference.name)
    if isinstance(reference, DirectoryReference | DumpfileReference):
        raise SourceError(f"{reference} has no layers to pull", hint="`oci2boot convert` takes a directory")
    tell_path(reference, report)
    with Repository.ensure(repo, algorithm) as repository, open_source(reference, options) as source:
        oci = unpack_image(source, source.fetch(), repository, report, lambda text: report(Warned(text))).oci
        assert oci
        save_pulled(repository, name, oci)
    return Pulled(name, str(reference), oci.manifest_digest, oci.diff_ids)
