"""The first image of a machine whose file systems are mounted as directories, or one more beside what is there."""

import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from oci2boot.boot.firmware import Firmware
from oci2boot.errors import FormatError, StoreError, TargetError, UnsealedError
from oci2boot.rootfs.reader import read_rootfs
from oci2boot.store.images import Bootable, find_image
from oci2boot.store.repository import Repository
from oci2boot.sysroot.bootdir import read_boot_directory
from oci2boot.sysroot.bootdir_apply import apply_boot
from oci2boot.sysroot.bootdir_steps import BootPlan
from oci2boot.sysroot.machine import Sysroot, changing
from oci2boot.sysroot.state import SysrootState, read_state
from oci2boot.system.efivars import EFIVARS
from oci2boot.workflows.install.beside import HOST, boot_first, check_bootable, check_not_own
from oci2boot.workflows.lint.stored import check_stored
from oci2boot.workflows.machine.demands import NOTHING_LESS, Allowed, demands_of
from oci2boot.workflows.machine.deploy import (
    DeployOptions,
    SysrootPlan,
    apply_deployment,
    plan_boot_files,
    plan_deployment,
)
from oci2boot.workflows.machine.deployments import SysrootMachine
from oci2boot.workflows.machine.firmware import check_firmware, read_firmware
from oci2boot.workflows.make.again import trusted_by
from oci2boot.workflows.progress import Report, Warned
from oci2boot.workflows.requests import Linting


def install_directories(
    repo: Path,
    name: str | None,
    root: Path,
    esp: Path,
    options: DeployOptions,
    report: Report,
    *,
    dry_run: bool = False,
    nvram: bool = True,
    efivars: Path | None = None,
    linting: Linting | None = None,
    allowed: Allowed = NOTHING_LESS,
) -> SysrootPlan:
    """Install a converted image into mounted file systems: the physical root at `root`, the ESP at `esp`.

    `efivars` are the variables of the firmware that is to boot it; by default this machine's, where it is the target.

    Run again, or on a machine that has another image, it makes one more deployment, of which the machine demands what
    it would at a `switch`. What else is there stays: the root may be that of the system that runs, whose firmware then
    gets an entry.
    """
    for path in (root, esp):
        if not path.is_dir():
            raise TargetError(f"{path} is not a directory", hint="make and mount the file systems first")
    with Repository.open(repo) as source:
        bootable = find_image(source, name)
        check_stored(source, bootable, linting, report)
        sysroot = Sysroot(root.resolve(), esp.resolve())
        check_not_own(sysroot.root)
        check_bootable(sysroot.root, sysroot.boot_directory(), bootable, report)
        firmware = read_firmware(efivars or (EFIVARS if sysroot.root == HOST else None))
        if dry_run and not (sysroot.repository / "meta.json").exists():
            # What a repository there would be like is known only once there is one.
            with tempfile.TemporaryDirectory(prefix=".oci2boot-", dir=root) as scratch:
                elsewhere = Sysroot(Path(scratch), esp.resolve())
                plan = _deploy(elsewhere, source, bootable, options, report, firmware, dry_run=True)
        else:
            bootable = _demanded(sysroot, source, bootable, allowed, report)
            plan = _deploy(sysroot, source, bootable, options, report, firmware, dry_run=dry_run)
        if nvram:
            boot_first(sysroot.root, sysroot.boot_directory(), bootable, report, dry_run=dry_run)
    return plan


def _demanded(sysroot: Sysroot, source: Repository, bootable: Bootable, allowed: Allowed, report: Report) -> Bootable:
    """Hold the image to what a machine that is there already has; a new one demands nothing."""
    if not (sysroot.repository / "meta.json").exists() or not read_state(sysroot).deployments:
        return bootable
    trusted = trusted_by(bootable)
    try:
        with SysrootMachine(sysroot).state() as state:
            demands = demands_of(state, trusted, allowed, same_image=False)
    except FormatError as error:
        # A new installation is the way out for a machine whose record is lost.
        if not allowed.unsealed:
            raise UnsealedError(error.message) from error
        report(Warned(error.message))
        return bootable
    return demands.met_by(source, bootable, report)


class BootDirectoryPlan(NamedTuple):
    """What is written where the rootfs image is not."""

    bootable: Bootable
    boot: BootPlan

    def to_json(self) -> dict[str, Any]:
        return {"image": self.bootable.to_json(), "boot": self.boot.to_json()}


def install_boot_directory(
    repo: Path, name: str | None, esp: Path, report: Report, *, dry_run: bool = False
) -> BootDirectoryPlan:
    """Write boot files alone; where their rootfs image lies is somebody else's business."""
    with Repository.open(repo) as source:
        bootable = find_image(source, name)
        if not bootable.esp:
            raise StoreError(f"{bootable.name} was converted without boot files", hint="convert it without --no-boot")
        state = SysrootState(Sysroot(repo.parent, esp.resolve()), read_boot_directory(esp), (), None)
        tree = read_rootfs(source.read_object(bootable.composefs.image))
        plan = plan_boot_files(state, source, bootable, tree)
        for problem in plan.problems:
            report(Warned(problem))
        if not dry_run:
            apply_boot(plan, esp)
    return BootDirectoryPlan(bootable, plan)


def _deploy(
    sysroot: Sysroot,
    source: Repository,
    bootable: Bootable,
    options: DeployOptions,
    report: Report,
    firmware: Firmware | None,
    *,
    dry_run: bool,
) -> SysrootPlan:
    with changing(sysroot), Repository.ensure(sysroot.repository, source.algorithm) as target:
        state = read_state(sysroot)
        plan = plan_deployment(state, source, target, bootable, options)
        if firmware:
            check_firmware(firmware, plan, source, report)
        if not dry_run:
            apply_deployment(plan, state, source, target, report)
    return plan
