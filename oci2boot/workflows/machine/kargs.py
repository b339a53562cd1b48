"""A machine's own kernel arguments: an addon beside each of its UKIs, signed, of arguments that weaken nothing."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from oci2boot.boot.names import MAX_UKI, addons_folder
from oci2boot.boot.payload import EFI_NAMES, find_efi_program, machine_of
from oci2boot.boot.sealed import read_addon
from oci2boot.boot.uki import build_addon
from oci2boot.errors import TargetError
from oci2boot.formats import pe
from oci2boot.formats.cmdline import join, split
from oci2boot.rootfs.reader import read_rootfs
from oci2boot.store.images import Bootable
from oci2boot.store.repository import Repository
from oci2boot.sysroot.bootdir import BootEntry, mapped
from oci2boot.sysroot.bootdir_apply import apply_boot
from oci2boot.sysroot.bootdir_steps import BootPlan, Remove, RemoveDirectory, Step, Write, peak, sha256_of
from oci2boot.sysroot.machine import Sysroot, changing
from oci2boot.sysroot.state import SysrootState, promised, read_state
from oci2boot.workflows.keys.signing import sign_files
from oci2boot.workflows.machine.deploy import LOCAL, local_addon
from oci2boot.workflows.make.canonical import reader
from oci2boot.workflows.progress import Report, Warned
from oci2boot.workflows.requests import SigningOptions

ALLOWED: Final = tuple(
    re.compile(pattern)
    for pattern in (
        r"console=(tty[A-Za-z]*[0-9]+|hvc[0-9]+|ttyAMA[0-9]+)(,[0-9]+[neo]?[78]?r?)?",
        r"quiet|splash|rhgb|nomodeset",
        r"loglevel=[0-7]",
        r"systemd\.(log_level=[a-z]+|log_target=[a-z-]+|show_status=[a-z]+|hostname=[A-Za-z0-9.-]+)",
        r"(rd\.)?(vconsole|locale)\.[A-Za-z_]+=[A-Za-z0-9_.@-]+",
        r"net\.ifnames=[01]|biosdevname=[01]",
        r"video=[A-Za-z0-9,:@x-]+",
        r"(default_)?hugepagesz=[0-9]+[KMG]|hugepages=[0-9]+|transparent_hugepage=(always|madvise|never)",
        r"isolcpus=[a-z0-9,_-]+|nohz_full=[0-9,-]+|rcu_nocbs=[0-9,-]+|maxcpus=[0-9]+",
        r"crashkernel=[0-9A-Za-z@:,-]+|panic=-?[0-9]+|printk\.devkmsg=(on|off|ratelimit)",
        r"intel_iommu=on|amd_iommu=force_enable|iommu=force|pcie_aspm=[a-z]+|usbcore\.autosuspend=-?[0-9]+",
        r"zswap\.enabled=[01]|cpufreq\.default_governor=[a-z]+|intel_pstate=[a-z_]+|amd_pstate=[a-z]+",
    )
)
"""Whole arguments. What chooses a root, an init, a policy or a key, or turns a protection off, is none of them."""


@dataclass(frozen=True, slots=True)
class LocalArguments:
    arguments: tuple[str, ...]
    plan: BootPlan | None = None

    def to_json(self) -> dict[str, Any]:
        return {"arguments": list(self.arguments), "boot": self.plan.to_json() if self.plan else None}


def list_arguments(sysroot: Sysroot) -> LocalArguments:
    return LocalArguments(_here(read_state(sysroot)))


def add_arguments(
    sysroot: Sysroot, words: Sequence[str], signing: SigningOptions | None, report: Report, *, dry_run: bool = False
) -> LocalArguments:
    """Append arguments to those that the machine's images boot with; one that is there stays where it is."""
    for word in words:
        if not any(pattern.fullmatch(word) for pattern in ALLOWED):
            raise TargetError(
                f"{word[:200]!r} is not among the arguments that a machine may add",
                hint="say it when the image is built: `oci2boot convert --karg`, or kargs.d in the image",
            )
    return _change(
        sysroot, lambda here: (*here, *(word for word in words if word not in here)), signing, report, dry_run=dry_run
    )


def remove_arguments(
    sysroot: Sysroot, words: Sequence[str], signing: SigningOptions | None, report: Report, *, dry_run: bool = False
) -> LocalArguments:
    def rest(here: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := [word for word in words if word not in here]:
            raise TargetError(
                f"{unknown[0][:200]!r} is not an argument of this machine's own", hint="oci2boot kargs list"
            )
        return tuple(word for word in here if word not in words)

    return _change(sysroot, rest, signing, report, dry_run=dry_run)


def _here(state: SysrootState) -> tuple[str, ...]:
    path = local_addon(state)
    if path is None:
        return ()
    with mapped(path, MAX_UKI) as data:
        return tuple(split(read_addon(data)))


def _change(
    sysroot: Sysroot,
    change: Callable[[tuple[str, ...]], tuple[str, ...]],
    signing: SigningOptions | None,
    report: Report,
    *,
    dry_run: bool,
) -> LocalArguments:
    with changing(sysroot):
        state = read_state(sysroot)
        wanted = change(_here(state))
        ours = {one.digest for one in state.deployments}
        entries = [one for one in state.directory.entries if one.kind == "uki" and promised((one,)) & ours]
        addon = _addon(state, wanted, signing, entries, report) if wanted else None
        steps = tuple(step for entry in entries for step in _steps(entry, addon))
        needed = peak(state.directory, steps)
        if needed > state.directory.free:
            raise TargetError(f"{state.directory.path} has {state.directory.free} bytes free, {needed} are needed")
        first = state.directory.default
        plan = BootPlan(steps=steps, first=first.id if first else "", needed=needed, paths={})
        if not dry_run:
            apply_boot(plan, sysroot.boot_directory())
    return LocalArguments(wanted, plan)


def _steps(entry: BootEntry, addon: bytes | None) -> list[Step]:
    folder = addons_folder(entry.path)
    path = next((path for path in entry.files if path.lower().endswith(f"/{LOCAL}")), f"{folder}/{LOCAL}")
    if addon is not None:
        return [Write(path, addon, len(addon), sha256_of(addon))]
    return [Remove(path), RemoveDirectory(path.rpartition("/")[0])] if path in entry.files else []


def _addon(
    state: SysrootState,
    words: Sequence[str],
    signing: SigningOptions | None,
    entries: Sequence[BootEntry],
    report: Report,
) -> bytes:
    """Build it of the stub in the image; for any kernel, so that the next version of the image can keep it."""
    current = state.current
    if current is None:
        raise TargetError("nothing of ours boots on this machine")
    if current.record is None:
        raise TargetError(f"{current.digest} was deployed by another program, without a record")
    with Repository.open(state.sysroot.repository) as repository:
        read = reader(lambda content: repository.read_object(content.digest))
        name = f"addon{EFI_NAMES[machine_of(Bootable.from_json(current.record).architecture)]}.efi.stub"
        stub = find_efi_program(read_rootfs(repository.read_object(current.digest)), read, name, "stub for addons")
    addon = build_addon(stub, join(words), None)
    if signing is not None:
        return sign_files({LOCAL: addon}, signing, report)[LOCAL]
    for entry in entries:
        with mapped(state.directory.path / entry.path, MAX_UKI) as data:
            if pe.parse(data).signed:
                raise TargetError(
                    f"{entry.path} is signed: under Secure Boot an unsigned addon is passed over",
                    hint="--secureboot-key and --secureboot-certificate sign it",
                )
    report(Warned("the addon is not signed: under Secure Boot it has no effect"))
    return addon
