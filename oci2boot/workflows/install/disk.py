"""A converted image onto a disk: plan everything, then write it."""

import hashlib
import json
import re
import secrets
import stat
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any, Final

from oci2boot.digest import VerityDigest
from oci2boot.errors import Error, StoreError, TargetError
from oci2boot.rootfs.reader import read_rootfs
from oci2boot.store.images import Bootable, find_image
from oci2boot.store.repository import Repository
from oci2boot.store.roots import ComposefsRoot, DmVerityRoot
from oci2boot.system import nvram
from oci2boot.system.block import BlockDevice, read_block_device, with_signatures
from oci2boot.system.epoch import source_date_epoch
from oci2boot.target.copy import Progress
from oci2boot.target.device import write_device
from oci2boot.target.entries import EspFile, FileSource, RootEntry
from oci2boot.target.formats import DiskFormat, format_of, write_disk_as
from oci2boot.target.guards import check_empty, check_unused
from oci2boot.target.images import Image
from oci2boot.target.iso import plan_iso
from oci2boot.target.plan import DiskOptions, DiskPlan, plan_disk
from oci2boot.target.types import STATE_LABEL
from oci2boot.tree.lookup import look_up
from oci2boot.tree.model import Directory
from oci2boot.workflows.install.live import check_live, warnings_of
from oci2boot.workflows.install.physical import root_entries
from oci2boot.workflows.install.slots import slot_partitions, slot_record
from oci2boot.workflows.install.verity_disk import image_partitions, state_entries
from oci2boot.workflows.lint.stored import check_stored
from oci2boot.workflows.progress import Report, Step, Warned
from oci2boot.workflows.requests import InstallRequest

LABEL: Final = "oci2boot"
"""Of the root file system; the initramfs finds it by this name where systemd does not by its type."""
_LOADERS: Final = (r"EFI/systemd/.*\.efi", r"EFI/[^/]+/shim.*\.efi", r"EFI/BOOT/BOOT.*\.efi")
"""What the firmware is to start, the first that there is."""
_FOR_LUKS: Final = {
    b"/usr/lib/systemd/systemd-cryptsetup": "it may not be able to open an encrypted root partition",
    b"/usr/sbin/cryptsetup": "its encrypted root partition will not grow to the disk",
}
"""What an encrypted root partition that systemd finds by its type needs. systemd-gpt-auto-generator(8)"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    bootable: Bootable
    target: Path
    plan: DiskPlan
    format: DiskFormat
    written: bool = False
    device: BlockDevice | None = None
    """As it was before."""
    nvram: str | None = None
    """Label of the entry in the firmware's boot menu."""

    def to_json(self) -> dict[str, Any]:
        return {
            "image": self.bootable.to_json(),
            "target": str(self.target),
            "format": self.format,
            "device": self.device.to_json() if self.device else None,
            "plan": self.plan.to_json(),
            "nvram": self.nvram,
            "written": self.written,
        }


def install(request: InstallRequest, report: Report, *, dry_run: bool = False) -> Installed:
    """Write the disk, or with `dry_run` only plan it. The caller has had it confirmed."""
    if request.first_boot.tpm2_pcrs and not request.secret:
        raise TargetError(
            "a TPM opens only what is encrypted, and a passphrase has to open it when the TPM cannot",
            hint="--luks-passphrase-file FILE",
        )
    device = _device(request)
    with Repository.open(request.repo) as repository:
        bootable = find_image(repository, request.name)
        if not bootable.esp:
            raise StoreError(f"{bootable.name} was converted without boot files", hint="convert it without --no-boot")
        check_stored(repository, bootable, request.linting, report)
        seed = _seed(request, bootable, device)
        disk_format = request.disk.format or ("raw" if device else format_of(request.target))
        if disk_format == "iso":
            check_live(request, bootable)
        label, ext4, images = _content(repository, bootable, request, seed)
        esp = [EspFile(path, _object(repository, digest)) for path, digest in bootable.esp.items()]
        if request.disk.ab and isinstance(bootable.root, DmVerityRoot):
            esp.append(slot_record(bootable))
        options = DiskOptions(
            seed=seed,
            epoch=source_date_epoch(0),
            architecture=bootable.architecture,
            size=device.size if device else request.disk.size,
            esp_size=request.disk.esp_size,
            sector=device.sector if device else request.disk.sector or 512,
            encrypted=request.secret is not None,
            ext4_label=label,
        )
        plan = plan_iso(esp, images, options) if disk_format == "iso" else plan_disk(ext4, esp, options, images)
        planned = Installed(
            bootable=bootable,
            target=request.target,
            plan=plan,
            format=disk_format,
            device=device,
            nvram=bootable.title if device and request.nvram and nvram.EFI.is_dir() else None,
        )
        if request.secret:
            _warn_of_missing(bootable, read_rootfs(repository.read_object(bootable.root.tree)), report)
        if disk_format == "iso":
            for text in warnings_of(bootable, read_rootfs(repository.read_object(bootable.root.tree))):
                report(Warned(text))
        if dry_run:
            return planned
        progress, finish = _progress(request.target, plan, report)
        if device:
            if not write_device(plan, request.target, secret=request.secret, progress=progress):
                report(
                    Warned(f"the kernel still knows the old partitions of {request.target}: restart, or run partprobe")
                )
        else:
            write_disk_as(
                plan,
                request.target,
                disk_format,
                name=bootable.name,
                overwrite=request.wipe,
                secret=request.secret,
                progress=progress,
            )
        finish()
    return replace(planned, written=True, nvram=_boot_entry(planned, report))


def _content(
    repository: Repository, bootable: Bootable, request: InstallRequest, seed: bytes
) -> tuple[str, list[RootEntry] | None, list[Image]]:
    """Return name and inodes of the ext4 file system, if there is one, and the partitions besides it."""
    match bootable.root:
        case ComposefsRoot():
            if request.disk.verity_size is not None:
                raise TargetError(
                    f"{bootable.name} has no hash tree: its files are verified one by one",
                    hint="leave out --verity-partition-size, or convert with --mode verity",
                )
            if request.disk.ab:
                raise TargetError(
                    f"{bootable.name} needs no second slot: new versions lie beside it",
                    hint="leave out --ab, or convert with --mode verity",
                )
            return LABEL, list(root_entries(repository, bootable, request.first_boot)), []
        case DmVerityRoot() as root:
            if request.secret:
                raise TargetError(
                    "a disk with its root file system under dm-verity cannot be encrypted yet",
                    hint="leave out --luks-passphrase-file, or convert with --mode composefs",
                )
            entries = state_entries(repository, bootable, root, request.first_boot)
            images = image_partitions(repository, bootable, root, seed, request.disk.verity_size)
            if request.disk.ab:
                images = slot_partitions(bootable, root, images, seed, request.disk.root_size)
            return STATE_LABEL, entries, images


def _warn_of_missing(bootable: Bootable, tree: Directory, report: Report) -> None:
    for path, lack in _FOR_LUKS.items():
        if not look_up(tree, path):
            report(Warned(f"{bootable.name} has no {path.decode().rpartition('/')[2]}: {lack}"))


def _device(request: InstallRequest) -> BlockDevice | None:
    """Return what is known of the target where it is a block device that may be written to."""
    target = request.target
    mode = target.stat().st_mode if target.exists() else 0
    if not stat.S_ISBLK(mode):
        if stat.S_ISDIR(mode):
            raise TargetError(f"{target} is a directory", hint="name its boot directory too: --esp DIR")
        if mode and not stat.S_ISREG(mode):
            raise TargetError(f"{target} is neither a disk nor a disk image")
        if not mode and target.absolute().parent == Path("/dev"):
            raise TargetError(f"there is no block device {target}", hint="lsblk lists the disks")
        return None
    for given, option in (
        (request.disk.size, "--size"),
        (request.disk.sector, "--sector-size"),
        (request.disk.format, "--format"),
    ):
        if given is not None:
            raise TargetError(f"{target} is a block device: {option} is for disk images")
    device = read_block_device(target)
    check_unused(device)
    device = with_signatures(device)
    if not request.wipe:
        check_empty(device)
    return device


def _seed(request: InstallRequest, bootable: Bootable, device: BlockDevice | None) -> bytes:
    """Return what all identifiers come from: the image, so that the same one gives the same disk image.

    But two disks of one machine may not have the same, and what is encrypted is never the same anyway.
    """
    if device or request.secret:
        return secrets.token_bytes(32)
    return hashlib.sha256(json.dumps(bootable.to_json(), sort_keys=True).encode()).digest()


def _progress(target: Path, plan: DiskPlan, report: Report) -> tuple[Progress, Callable[[], None]]:
    task, lock, done = f"disk {target.name}", Lock(), 0

    def progress(count: int) -> None:
        nonlocal done
        with lock:
            done += count
            report(Step(task, done, plan.content_size))

    def finish() -> None:
        report(Step(task, plan.content_size, plan.content_size, finished=True, note="written and synced"))

    return progress, finish


def _boot_entry(planned: Installed, report: Report) -> str | None:
    """Have the firmware start the disk; it will find it without that too, so that a failure is a warning."""
    loader = loader_of(planned.bootable)
    if planned.nvram is None or loader is None:
        return None
    try:
        nvram.set_entry(planned.target, planned.plan.esp.number, planned.nvram, loader)
    except Error as error:
        report(Warned(f"no entry in the firmware's boot menu: {error.message}; choose the disk there by hand"))
        return None
    return planned.nvram


def loader_of(bootable: Bootable) -> str | None:
    """Return what the firmware is to start, by its path on the ESP."""
    return next((path for kind in _LOADERS for path in bootable.esp if re.fullmatch(kind, path, re.IGNORECASE)), None)


def _object(repository: Repository, digest: VerityDigest) -> FileSource:
    path = repository.object_path(digest)
    if not path.is_file():
        raise StoreError(f"object {digest} is missing from {repository.path}", hint="run `oci2boot fsck`")
    return FileSource.of(path)
