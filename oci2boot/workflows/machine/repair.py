"""Broken objects, fetched again from where the images came from; only what their digests promise gets in."""

import tempfile
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from pathlib import Path

from oci2boot.digest import VerityDigest
from oci2boot.errors import Error, SourceError
from oci2boot.oci.reference import RegistryReference
from oci2boot.oci.source import open_source
from oci2boot.store.fsck import Checked
from oci2boot.store.images import Bootable, remove_image, saved_images
from oci2boot.store.repository import Repository
from oci2boot.sysroot.deployments import read_deployments
from oci2boot.sysroot.machine import Sysroot, changing
from oci2boot.workflows.images import check_store
from oci2boot.workflows.make.again import request_again
from oci2boot.workflows.make.convert import convert
from oci2boot.workflows.progress import Report, Told, Warned
from oci2boot.workflows.requests import BootOptions, ConvertRequest

SCRATCH = "oci2boot-repair"
"""Name of an image that is only fetched for its contents."""


def repair_machine(sysroot: Sysroot, given: BootOptions, report: Report) -> Checked:
    with changing(sysroot):
        return repair_locked(sysroot, given, report)


def repair_locked(sysroot: Sysroot, given: BootOptions, report: Report) -> Checked:
    """As `repair_machine`, for who changes the machine already."""
    images = [Bootable.from_json(one.record) for one in read_deployments(sysroot) if one.record]
    return repair(sysroot.repository, given, report, images)


def repair(repo: Path, given: BootOptions, report: Report, images: Sequence[Bootable] = ()) -> Checked:
    """Check a store and fetch again what is broken in it; return how it stands then.

    Damaged objects go only when the source of an image has been reached and still has that very image.
    """
    checked = check_store(repo, report)
    if not checked.broken:
        return checked
    with Repository.open(repo) as repository:
        try:
            known = [*saved_images(repository), *images]
        except Error as error:
            report(Warned(error.message))
            known = list(images)
    for bootable in {str(image.manifest): image for image in known if image.manifest}.values():
        if not checked.broken:
            break
        try:
            with tempfile.TemporaryDirectory(prefix="oci2boot-") as scratch:
                _fetch_again(bootable, request_again(bootable, repo, Path(scratch), given), checked.broken, report)
        except Error as error:
            report(Warned(f"{bootable.name}: {error.message}"))
            continue
        checked = check_store(repo, report)
    return checked


def _fetch_again(
    bootable: Bootable, request: ConvertRequest, broken: AbstractSet[VerityDigest], report: Report
) -> None:
    source = request.source
    if isinstance(source, RegistryReference):
        source = replace(source, tag=None, digest=bootable.manifest)
    with open_source(source, request.options) as opened:
        if opened.fetch().manifest_digest != bootable.manifest:
            raise SourceError(f"{source} now leads to another image", hint="upgrade, and delete the deployment")
    report(Told(f"fetching from {source} what is broken"))
    with Repository.open(request.repo) as repository:
        _set_aside(repository, broken)
    convert(replace(request, source=source, name=SCRATCH), report)
    with Repository.open(request.repo) as repository:
        remove_image(repository, SCRATCH)


def _set_aside(repository: Repository, broken: AbstractSet[VerityDigest]) -> None:
    """Make the store lack what is broken, and the layers that it belongs to: what is lacking is fetched."""
    for digest, name in repository.names_of_streams().items():
        if not name.startswith("oci-layer-"):
            continue
        try:
            stream = None if digest in broken else repository.read_stream(name)
        except Error:
            stream = None
        if stream is None or broken & {*stream.objects, *stream.named.values()}:
            (repository.path / "streams" / name).unlink()
    for digest in broken:
        repository.object_path(digest).unlink(missing_ok=True)
