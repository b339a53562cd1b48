"""A planned change of a boot directory, made on a disk that is not mounted."""

import hashlib

from oci2boot.boot.names import MAX_UKI
from oci2boot.errors import DigestError, TargetError
from oci2boot.sysroot.bootdir import TEMPORARY
from oci2boot.sysroot.bootdir_steps import BootPlan, Remove, RemoveDirectory, Rename, Step, Write, parents
from oci2boot.target.esp_disk import EspOnDisk


def apply_on_disk(plan: BootPlan, esp: EspOnDisk) -> None:
    """Make the steps of a plan; made twice, or after an interruption, the second time does what is left."""
    for step in plan.steps:
        _apply(step, esp)


def _apply(step: Step, esp: EspOnDisk) -> None:
    files = {path.lower(): path for path in esp.fat().files}
    path = files.get(step.path.lower())
    match step:
        case Write():
            if path is None or _sha256(esp, path) != step.sha256:
                _write(step, esp, path or step.path)
        case Rename():
            to = files.get(step.to.lower())
            if path and to and path != to:
                raise TargetError(f"{step.to} is there already")
            if path:
                esp.rename(path, step.to)
            elif not to:
                raise TargetError(f"{step.path} is gone", hint="the boot directory was changed meanwhile; try again")
        case Remove():
            if path:
                esp.remove(path)
        case RemoveDirectory():
            folder = next((one for one in esp.fat().directories if one.lower() == step.path.lower()), None)
            if folder and not any(one.startswith(f"{step.path.lower()}/") for one in files):
                esp.remove_directory(folder)


def _write(step: Write, esp: EspOnDisk, path: str) -> None:
    there = {one.lower() for one in esp.fat().directories}
    for parent in parents(path):
        if parent.lower() not in there:
            esp.make_directory(parent)
    folder, slash, _ = path.rpartition("/")
    temporary = f"{folder}{slash}{TEMPORARY}{step.sha256[:16]}.tmp"
    if temporary in esp.fat().files:
        esp.remove(temporary)
    esp.add(temporary, step.source)
    if _sha256(esp, temporary) != step.sha256:
        raise DigestError(f"{path} does not read back as it was written", hint="the medium is damaged")
    esp.rename(temporary, path)


def _sha256(esp: EspOnDisk, path: str) -> str:
    return hashlib.sha256(esp.fat().content(path, MAX_UKI)).hexdigest()
