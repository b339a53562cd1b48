"""A converted image becomes what a machine boots next: objects, names, state, and the boot directory last.

The one function behind an installation into directories, `upgrade` and `switch`. Stopped at any point, the machine
boots what it booted before; run again, it completes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

from oci2boot.boot.names import ADDON, BLESSER, EXTRA, TRIES, uncounted
from oci2boot.digest import External
from oci2boot.errors import StoreError, TargetError
from oci2boot.formats.cmdline import find_composefs, split
from oci2boot.rootfs.reader import read_rootfs
from oci2boot.store.content import Content, deployed_refs, image_content
from oci2boot.store.images import WITHOUT_UKI, Bootable
from oci2boot.store.repository import Repository
from oci2boot.store.transfer import missing_objects, set_refs, transfer
from oci2boot.sysroot.bootdir_apply import apply_boot
from oci2boot.sysroot.bootdir_plan import is_entry, plan_boot
from oci2boot.sysroot.bootdir_steps import BootPlan
from oci2boot.sysroot.deployments import after, record_bytes, remove_state
from oci2boot.sysroot.etc import EtcPlan, EtcPolicy, plan_etc
from oci2boot.sysroot.etc_merged import MergedEtc, fingerprint
from oci2boot.sysroot.etc_upper import write_upper
from oci2boot.sysroot.first_boot import FirstBoot, with_first_boot
from oci2boot.sysroot.physical import RECORD, deployment_state, initial_var
from oci2boot.sysroot.state import SysrootState
from oci2boot.sysroot.transition import write_before, write_entry
from oci2boot.system.files import plain_errors, write_atomically
from oci2boot.tree.lookup import look_up
from oci2boot.tree.model import Directory, File
from oci2boot.tree.selinux import load_policy
from oci2boot.workflows.install.takeover import Asked, TakeOver, plan_takeover
from oci2boot.workflows.machine.etc import Policy, Upper, image_etc, read_upper
from oci2boot.workflows.machine.keep import forget
from oci2boot.workflows.machine.transition import before, copy_var
from oci2boot.workflows.make.canonical import reader
from oci2boot.workflows.options import Option
from oci2boot.workflows.progress import Report, Step, Told, Warned

LOCAL: Final = f"local{ADDON}"
"""The machine's own kernel arguments, beside each of its UKIs."""


@dataclass(frozen=True, slots=True)
class DeployOptions:
    etc: Policy = None
    """The machine's own files win where nothing is said."""
    allow_missing_verity: Annotated[
        bool, Option("--allow-missing-verity", "accept a directory on a file system without fs-verity")
    ] = False
    """The image has to be made for it."""
    first_boot: FirstBoot | None = None
    """What a new machine is told; one that is there knows."""
    take_over: Asked | None = None
    """Of the system that was there before the first image."""
    keep: Annotated[
        int | None,
        Option("--keep", "delete the oldest deployments until this many are left; pinned ones stay", least=2),
    ] = None
    """None keeps all that there is room for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SysrootPlan:
    bootable: Bootable
    content: Content
    missing: tuple[External, ...]
    """Objects that the machine's repository lacks."""
    tree: Directory
    record: bytes
    state: Directory | None
    """The new state directory; None where this image is what the machine runs, whose state stays."""
    etc: EtcPlan | None
    """None where there is nothing to merge."""
    upper: Upper | None
    """What is merged."""
    var: Directory
    """For a machine that has none yet."""
    boot: BootPlan
    takeover: TakeOver | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "image": self.bootable.to_json(),
            "objects": {
                "needed": len(self.content.objects),
                "added": len(self.missing),
                "added_bytes": sum(item.size for item in self.missing),
            },
            "etc": self.etc.to_json() if self.etc else None,
            "boot": self.boot.to_json(),
            **({"takeover": self.takeover.to_json()} if self.takeover else {}),
        }


def plan_deployment(
    state: SysrootState, source: Repository, target: Repository, bootable: Bootable, options: DeployOptions
) -> SysrootPlan:
    """Find out everything that must be done; nothing is written."""
    if not bootable.esp:
        raise StoreError(f"{bootable.name} was converted without boot files", hint="convert it without --no-boot")
    rootfs = bootable.composefs.image
    check_verity(target, bootable, allow_missing=options.allow_missing_verity)
    content = image_content(source, bootable.name)
    tree = read_rootfs(source.read_object(rootfs))
    boot = plan_boot_files(state, source, bootable, tree)
    current = state.current
    esp = {uncounted(boot.paths[path]): str(digest) for path, digest in bootable.esp.items()}
    there = next((one for one in state.deployments if one.digest == rootfs), None)
    fresh = current is None or current.digest != rootfs
    merged = there.merged if there and not fresh else None
    etc: EtcPlan | None = None
    upper: Upper | None = None
    new_state: Directory | None = None
    new_etc: Directory | None = None
    takeover: TakeOver | None = None
    if options.take_over and state.deployments and current is not None:
        raise TargetError("this machine has an image already: what was there before is not taken over any more")
    var = initial_var(tree)
    if fresh:
        if current is not None:
            upper = read_upper(state.sysroot.deployments / current.digest.hex / "etc/upper", current.digest.algorithm)
            old, new = image_etc(target, current.digest), image_etc(source, rootfs)
            policy = options.etc or EtcPolicy()
            etc = plan_etc(old, new, upper.tree, policy)
            new_etc = etc.upper
            merged = MergedEtc(current.digest, policy, fingerprint(new_etc, rootfs))
        elif options.first_boot or options.take_over:
            read = reader(lambda content: source.read_object(content.digest))
            settings = options.first_boot or FirstBoot()
            if options.take_over:
                takeover = plan_takeover(options.take_over, tree, read, settings)
                settings = takeover.settings
            new_etc, new_var = with_first_boot(settings, tree, load_policy(tree, read), read)
            var = new_var or var
    record = record_bytes(
        bootable.to_json() | {"esp": esp},
        deployed=after(state.deployments),
        pinned=there.pinned if there else False,
        merged=merged,
    )
    if fresh:
        new_state = deployment_state(record, tree, new_etc)
    missing = tuple(missing_objects(content, target))
    return SysrootPlan(
        bootable=bootable,
        content=content,
        missing=missing,
        tree=tree,
        record=record,
        state=new_state,
        etc=etc,
        upper=upper,
        var=var,
        boot=boot,
        takeover=takeover,
    )


def plan_boot_files(state: SysrootState, source: Repository, bootable: Bootable, tree: Directory) -> BootPlan:
    """Plan the boot directory: the image's UKI first in the menu, with the machine's own kernel arguments."""
    new: dict[str, bytes | Path] = {path: source.object_path(digest) for path, digest in bootable.esp.items()}
    entries = [path for path in new if is_entry(path)]
    if len(entries) != 1:
        raise TargetError(
            f"{bootable.name} has {len(entries) or 'no'} entries for the boot menu, one is needed",
            hint="--loader direct is for disks that are never upgraded",
        )
    local = local_addon(state) if bootable.flow not in WITHOUT_UKI else None
    if local is not None:
        new[f"{entries[0]}{EXTRA}/{LOCAL}"] = local
    return plan_boot(state.directory, new, first=entries[0], keep=state.kept_entries(), tries=tries_of(tree))


def tries_of(tree: Directory) -> int | None:
    """Return how often a new entry may fail; None for an image that has nothing to call it good."""
    found = look_up(tree, BLESSER)
    return TRIES if found and isinstance(found[1], File) else None


def local_addon(state: SysrootState) -> Path | None:
    """Return the addon with this machine's kernel arguments, of what it runs or boots next."""
    current = state.current
    for entry in state.entries_of(current.digest) if current else ():
        for path in entry.files:
            if path.lower().endswith(f"/{LOCAL}"):
                return state.directory.path / path
    return None


def check_verity(target: Repository, bootable: Bootable, *, allow_missing: bool) -> None:
    """Refuse a file system that does not verify, unless that is asked for and the image's own argument allows it."""
    if target.secure:
        return
    if not allow_missing:
        raise TargetError(
            f"{target.path} has no fs-verity: a changed file would not be noticed",
            hint="on ext4, `tune2fs -O verity DEVICE` adds it; btrfs has it; --allow-missing-verity does without",
        )
    if not all(argument.insecure for argument in find_composefs(split(bootable.cmdline or ""))):
        raise TargetError(
            f"{target.path} has no fs-verity, and {bootable.name} boots only with it",
            hint="convert it with --allow-missing-verity, which says so in the kernel argument",
        )


def apply_deployment(
    plan: SysrootPlan, state: SysrootState, source: Repository, target: Repository, report: Report
) -> None:
    """Do it: objects, then names and references, then state, then the boot directory."""
    sysroot, rootfs = state.sysroot, plan.bootable.composefs.image
    for note in (*(plan.upper.notes if plan.upper else ()), *plan.boot.problems):
        report(Warned(note))
    if plan.etc:
        plan.etc.check()
    if source.path != target.path:
        _transfer(plan, source, target, report)
    set_refs(target, {**plan.content.refs, **deployed_refs(plan.content, rootfs)})
    files: Mapping[Any, Path] = plan.upper.files if plan.upper else {}

    def place(content: External) -> Path:
        return files.get(content.digest) or target.object_path(content.digest)

    with plain_errors(TargetError, f"write the state of {sysroot.root}"):
        for folder in (sysroot.deployments, sysroot.var.parent):
            folder.mkdir(parents=True, exist_ok=True)
        if not sysroot.var.exists():
            write_upper(plan.var, sysroot.var, place)
        deployment = sysroot.deployments / rootfs.hex
        if plan.state:
            write_upper(plan.state, deployment, place)
        else:
            write_atomically(deployment / RECORD.decode(), plan.record)
    entry = _take_over(plan.takeover, state, report) if plan.takeover else None
    apply_boot(plan.boot, sysroot.boot_directory())
    if entry:
        write_entry(sysroot, entry)
    for one in state.deployments:
        entries = state.entries_of(one.digest)
        if one.digest != rootfs and entries and all(entry.id in plan.boot.removed for entry in entries):
            report(Told(f"{one.digest} made room in the boot directory, and is deleted"))
            forget(target, one)
            remove_state(sysroot, one.digest)


def _take_over(takeover: TakeOver, state: SysrootState, report: Report) -> bytes | None:
    """Copy what comes along, and note what stays; return an entry for the boot menu, if one is needed."""
    sysroot = state.sysroot
    copy_var(takeover, sysroot.var, report)
    found, entry = before(sysroot, takeover, state.directory)
    write_before(sysroot, found)
    return entry


def _transfer(plan: SysrootPlan, source: Repository, target: Repository, report: Report) -> None:
    done, total = 0, sum(item.size for item in plan.missing)

    def progress(count: int) -> None:
        nonlocal done
        done += count
        report(Step("objects", done, total))

    transfer(plan.content, plan.missing, source, target, progress)
    report(Step("objects", total, total, finished=True, note=f"{len(plan.missing)} added"))
