"""What this machine's firmware would refuse is refused here, before anything of it is in the boot directory."""

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final

from oci2boot.boot.firmware import Firmware
from oci2boot.boot.names import EXTRA, MAX_UKI
from oci2boot.errors import SignatureError
from oci2boot.store.repository import Repository
from oci2boot.sysroot.bootdir_plan import is_entry
from oci2boot.sysroot.bootdir_steps import Write
from oci2boot.system.efivars import read_variable
from oci2boot.system.files import read_limited
from oci2boot.workflows.machine.model import DeployPlan
from oci2boot.workflows.progress import Report, Warned

_REMOVABLE: Final = re.compile(r"EFI/BOOT/BOOT[A-Z0-9]+\.EFI", re.IGNORECASE)
_MAGIC: Final = b"MZ"


def read_firmware(efivars: Path | None) -> Firmware | None:
    """Return what the firmware of these variables holds; None without Secure Boot, or where they are not at hand."""
    return Firmware.read(partial(read_variable, efivars)) if efivars and efivars.is_dir() else None


def check_firmware(firmware: Firmware, plan: DeployPlan, repository: Repository, report: Report) -> None:
    """Raise `SignatureError` for the first program that would not start: loader, UKI, addon, kernel."""
    shim = plan.bootable.options.get("loader") == "shim"
    for name in (*firmware.keys.unknown(), *(firmware.shim.unknown() if firmware.shim else ())):
        report(Warned(f"the firmware revokes by entries of the kind {name}, which are not understood here"))
    if shim and firmware.shim is None:
        report(Warned("which keys shim trusts cannot be told: it did not start this machine"))
    for path, data in _programs(plan, repository):
        first = bool(shim and _REMOVABLE.fullmatch(path))
        if why := firmware.refuses(data, first=first, behind_shim=shim or firmware.shim is not None):
            raise SignatureError(
                f"this machine's Secure Boot would not start {path}: {why}",
                hint="nothing was changed; sign it with a key that the firmware knows, or enrol its key first",
            )


def _programs(plan: DeployPlan, repository: Repository) -> Iterator[tuple[str, bytes]]:
    """Yield what would be started, without a boot loader that stays as it is: it started this machine."""
    written = {step.path for step in plan.boot.steps if isinstance(step, Write)}
    for path, digest in sorted(plan.bootable.esp.items()):
        if is_entry(path) or EXTRA in path or plan.boot.paths.get(path, path) in written:
            data = read_limited(repository.object_path(digest), MAX_UKI)
            if data.startswith(_MAGIC):
                yield path, data
