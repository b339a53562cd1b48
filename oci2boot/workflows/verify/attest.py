"""What an attester compares a machine with: the manifest of its files, and what its TPM will hold."""

import hashlib
import shlex
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from oci2boot.boot import pcr
from oci2boot.boot.beside import predict_pcr_12
from oci2boot.boot.names import MAX_UKI, is_addon, is_program
from oci2boot.digest import VerityDigest
from oci2boot.errors import Error, FormatError, StoreError
from oci2boot.formats import pe
from oci2boot.rootfs.reader import read_rootfs
from oci2boot.store.images import Bootable
from oci2boot.store.repository import Repository
from oci2boot.system.files import plain_errors
from oci2boot.system.run import run
from oci2boot.tree.model import File, Sparse
from oci2boot.workflows.verify.manifest import Manifest, pack

PCRS_FORMAT: Final = "oci2boot-pcrs-1"
HOOK_SECONDS: Final = 600


def image_manifest(repository: Repository, bootable: Bootable) -> Manifest:
    """Measure every path of a converted image."""
    tree = read_rootfs(repository.read_object(bootable.root.tree))
    hashes: dict[VerityDigest, str] = {}

    def sha256(file: File) -> str:
        if isinstance(file.content, bytes):
            return hashlib.sha256(file.content).hexdigest()
        if isinstance(file.content, Sparse):
            raise StoreError(f"{bootable.name} has a file that is all hole")
        digest = file.content.digest
        if digest not in hashes:
            path = repository.object_path(digest)
            with plain_errors(StoreError, f"read {path}"), path.open("rb") as content:
                hashes[digest] = hashlib.file_digest(content, "sha256").hexdigest()
        return hashes[digest]

    return Manifest.of(tree, bootable, sha256)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedPcrs:
    """PCR 11 and 12 (bank sha256) as systemd-stub and systemd-pcrphase extend them."""

    path: str
    """Of the UKI."""
    secure_boot: bool
    """What was assumed: a signed UKI is booted under Secure Boot."""
    pcr_11: Mapping[str, str]
    """By the phases passed."""
    pcr_12: str
    """What lies beside the UKI."""

    def to_json(self) -> dict[str, object]:
        values = {"11": dict(self.pcr_11), "12": self.pcr_12}
        return {"path": self.path, "secure_boot": self.secure_boot, "sha256": values}


@dataclass(frozen=True, slots=True)
class UnknownPcrs:
    path: str
    problem: str
    """Why a value cannot be known."""

    def to_json(self) -> dict[str, object]:
        return {"path": self.path, "problem": self.problem}


def expected_pcrs(repository: Repository, bootable: Bootable) -> list[ExpectedPcrs | UnknownPcrs]:
    """Return what each UKI of an image gives."""
    files = {path: partial(repository.read_object, digest, MAX_UKI) for path, digest in bootable.esp.items()}
    found: list[ExpectedPcrs | UnknownPcrs] = []
    for path in sorted(files):
        if not is_program(path) or is_addon(path):
            continue
        data = files[path]()
        headers = pe.parse(data)
        if not headers.sections_named(b".linux"):
            continue
        try:
            value = pcr.uki_pcr(data)
            found.append(
                ExpectedPcrs(
                    path=path,
                    secure_boot=headers.signed,
                    pcr_11={"": value.hex(), **dict(pcr.by_phase(value))},
                    pcr_12=predict_pcr_12(files, path, secure_boot=headers.signed).hex(),
                )
            )
        except FormatError as error:
            found.append(UnknownPcrs(path, error.message))
    return found


def run_attest_hook(command: str, repository: Repository, bootable: Bootable, manifest: Manifest) -> None:
    """Run a command with two more arguments, the paths of the manifest and of the expected PCRs; it has to succeed."""
    try:
        argv = shlex.split(command)
    except ValueError as error:
        raise FormatError(f"--attest-hook is not a command: {error}") from error
    if not argv:
        raise FormatError("--attest-hook is empty")
    pcrs = {"format": PCRS_FORMAT, "ukis": [one.to_json() for one in expected_pcrs(repository, bootable)]}
    with tempfile.TemporaryDirectory(prefix="oci2boot-") as folder:
        paths = Path(folder, "manifest.json"), Path(folder, "pcrs.json")
        paths[0].write_bytes(pack(manifest.to_json()))
        paths[1].write_bytes(pack(pcrs))
        try:
            run([*argv, *paths], timeout=HOOK_SECONDS)
        except Error as error:
            raise type(error)(f"--attest-hook: {error.message}", hint=error.hint) from error
