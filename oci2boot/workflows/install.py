"""A converted image onto a disk: plan everything, then write it."""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Final

from oci2boot.digest import VerityDigest
from oci2boot.errors import FormatError, StoreError
from oci2boot.store.images import Bootable, find_image
from oci2boot.store.repository import Repository
from oci2boot.target.disk import write_disk
from oci2boot.target.entries import EspFile, FileSource
from oci2boot.target.plan import DiskOptions, DiskPlan, plan_disk
from oci2boot.workflows.events import Report, Step
from oci2boot.workflows.physical import root_entries
from oci2boot.workflows.requests import InstallRequest

LABEL: Final = "oci2boot"
"""Of the root file system; the initramfs finds it by this name where systemd does not by its type."""


@dataclass(frozen=True, slots=True)
class Installed:
    bootable: Bootable
    target: Path
    plan: DiskPlan
    written: bool

    def to_json(self) -> dict[str, Any]:
        return {
            "image": self.bootable.to_json(),
            "target": str(self.target),
            "plan": self.plan.as_json(),
            "written": self.written,
        }


def install(request: InstallRequest, report: Report, *, dry_run: bool = False) -> Installed:
    """Write the disk, or with `dry_run` only plan it."""
    with Repository.open(request.repo) as repository:
        bootable = find_image(repository, request.name)
        if not bootable.esp:
            raise StoreError(f"{bootable.name} was converted without boot files", hint="convert it without --no-boot")
        plan = plan_disk(
            list(root_entries(repository, bootable)),
            [EspFile(path, _object(repository, digest)) for path, digest in bootable.esp.items()],
            DiskOptions(
                seed=hashlib.sha256(json.dumps(bootable.to_json(), sort_keys=True).encode()).digest(),
                epoch=source_date_epoch(),
                architecture=bootable.architecture,
                size=request.size,
                esp_size=request.esp_size,
                root_label=LABEL,
            ),
        )
        if not dry_run:
            _write(request, plan, report)
    return Installed(bootable, request.target, plan, written=not dry_run)


def _write(request: InstallRequest, plan: DiskPlan, report: Report) -> None:
    task, lock, done = f"disk {request.target.name}", Lock(), 0

    def progress(count: int) -> None:
        nonlocal done
        with lock:
            done += count
            report(Step(task, done, plan.content_size))

    write_disk(plan, request.target, overwrite=request.wipe, progress=progress)
    report(Step(task, plan.content_size, plan.content_size, finished=True, note="written and synced"))


def source_date_epoch() -> int:
    """Return the time that goes into what is written. reproducible-builds.org, SOURCE_DATE_EPOCH."""
    text = os.environ.get("SOURCE_DATE_EPOCH", "0")
    if not text.isdecimal() or len(text) > 12:
        raise FormatError(f"SOURCE_DATE_EPOCH is not a time in seconds: {text!r}")
    return int(text)


def _object(repository: Repository, digest: VerityDigest) -> FileSource:
    path = repository.object_path(digest)
    if not path.is_file():
        raise StoreError(f"object {digest} is missing from {repository.path}", hint="run `oci2boot fsck`")
    return FileSource.of(path)
