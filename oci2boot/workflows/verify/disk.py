"""Is it intact? A disk, a mounted root or a store, read from the partition table down to each Merkle tree.

Nothing is mounted, started or written. What is found wrong is a check that failed; only a target that cannot be read
at all is an error.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from oci2boot.target.luks import Secret
from oci2boot.target.opened import OpenedDisk, as_raw, open_disk
from oci2boot.workflows.keys.signing import read_trusted
from oci2boot.workflows.progress import Report
from oci2boot.workflows.verify.checks import Check, Checks
from oci2boot.workflows.verify.composefs import read_composefs_disk, read_directory
from oci2boot.workflows.verify.contents import Contents
from oci2boot.workflows.verify.dm_verity import read_verity_disk
from oci2boot.workflows.verify.esp import EspFiles, esp_of_fat
from oci2boot.workflows.verify.intact import check_contents
from oci2boot.workflows.verify.iso import check_iso
from oci2boot.workflows.verify.manifest import read_manifest


@dataclass(frozen=True, slots=True)
class VerifyRequest:
    target: Path
    """A disk image or block device; the physical root of a machine as a directory; a repository."""
    esp: Path | None = None
    """The directory with the files of the EFI system partition, where the target has none of its own."""
    against: Path | None = None
    """A manifest that the root file system has to equal."""
    db: tuple[Path, ...] = ()
    """Certificates that the firmware trusts."""
    secret: Secret | None = None
    """Opens the root partition, where it is encrypted."""


@dataclass(frozen=True, slots=True)
class Verified:
    target: Path
    kind: str
    checks: tuple[Check, ...]
    complete: bool = True
    """The root file system was read."""

    @property
    def ok(self) -> bool:
        return self.complete and all(check.state != "failed" for check in self.checks)

    def to_json(self) -> dict[str, object]:
        return {
            "target": str(self.target),
            "kind": self.kind,
            "ok": self.ok,
            "complete": self.complete,
            "checks": [check.to_json() for check in self.checks],
        }


def verify(request: VerifyRequest, report: Report) -> Verified:
    """Check everything that can be checked, and say of each thing how it stands."""
    trusted = read_trusted(list(request.db))
    manifest = read_manifest(request.against) if request.against else None
    checks = Checks()
    with _opened(request, checks, report) as contents:
        check_contents(contents, trusted, manifest, checks)
    return Verified(request.target, contents.kind, tuple(checks.made), complete=contents.roots is not None)


@contextmanager
def _opened(request: VerifyRequest, checks: Checks, report: Report) -> Iterator[Contents]:
    if request.target.is_dir():
        yield read_directory(request.target, request.esp, checks, report)
        return
    with as_raw(request.target) as raw, open_disk(raw, secret=request.secret) as disk:
        _check_table(disk, checks)
        esp = _read_esp(disk, checks)
        kind = "live ISO" if check_iso(disk, checks) else "disk"
        read = read_verity_disk if disk.has_erofs else read_composefs_disk
        yield read(disk, kind, esp, checks, report)


def _check_table(disk: OpenedDisk, checks: Checks) -> None:
    table = disk.gpt
    checks.verdict(
        "partition table", table.problems, f"GPT {table.guid}, {len(table.partitions)} partitions, both copies"
    )


def _read_esp(disk: OpenedDisk, checks: Checks) -> EspFiles | None:
    esp = None
    with checks.attempt("EFI system partition"):
        fat = disk.esp()
        esp = esp_of_fat(fat)
        problems = [] if fat.copies_agree else ["its two allocation tables differ"]
        checks.verdict("EFI system partition", problems, f"FAT, {len(esp)} files")
    return esp
