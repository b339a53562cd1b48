"""The system that was there before the first image: what comes along of it, and `gc --transition`, by which it goes."""

import re
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from oci2boot.errors import TargetError
from oci2boot.sysroot.bootdir import BootDirectory
from oci2boot.sysroot.machine import Sysroot, booted_digest, changing
from oci2boot.sysroot.transition import ENTRY, OWN, Before, plan_removal, read_before, remove
from oci2boot.system.files import plain_errors
from oci2boot.system.run import run
from oci2boot.workflows.install.takeover import TakeOver
from oci2boot.workflows.progress import Report, Told

DAY: Final = 86400


@dataclass(frozen=True, slots=True)
class Removed:
    before: Before
    names: tuple[tuple[str, int], ...]
    """(beneath the physical root, bytes)"""
    done: bool

    @property
    def freed(self) -> int:
        return sum(size for _, size in self.names)

    def to_json(self) -> dict[str, Any]:
        return {
            "system": self.before.title,
            "removed": [{"name": name, "bytes": size} for name, size in self.names],
            "entries": list(self.before.entries),
            "kept": list(self.before.kept),
            "freed": self.freed,
            "done": self.done,
        }


def end_transition(sysroot: Sysroot | None, *, dry_run: bool) -> Removed:
    """Remove the old system. A machine that runs it keeps it, and so does one of which that is not known."""
    if sysroot is None:
        raise TargetError(
            "this is a store, and no machine that another system was on", hint="name the machine's: --sysroot DIR"
        )
    before = read_before(sysroot)
    if before is None:
        raise TargetError(
            "nothing is known of a system that was here before", hint="`install --take-over` writes down what was there"
        )
    if sysroot.live and booted_digest(sysroot) is None:
        raise TargetError(
            f"{before.title} is what this machine runs now", hint="restart it with the new system, then try again"
        )
    with nullcontext() if dry_run else changing(sysroot):
        names = tuple(plan_removal(sysroot, before))
        if not dry_run:
            remove(sysroot, before)
    return Removed(before, names, not dry_run)


def copy_var(takeover: TakeOver, var: Path, report: Report) -> None:
    """Copy what comes along into the new /var, which nothing has mounted yet; done again, it copies it again."""
    for path in takeover.copied:
        target = var / path
        with plain_errors(TargetError, f"write {target}"):
            target.parent.mkdir(parents=True, exist_ok=True)
        report(Told(f"copying {takeover.old.var / path}"))
        run(
            ["cp", "--archive", "--no-target-directory", "--reflink=auto", takeover.old.var / path, target], timeout=DAY
        )


def before(sysroot: Sysroot, takeover: TakeOver, boot: BootDirectory) -> tuple[Before, bytes | None]:
    """Return what is to be known of the old system, and an entry for its boot loader, where the menu has none of it."""
    old = takeover.old
    with plain_errors(TargetError, f"read {sysroot.root}"):
        names = sorted(entry.name for entry in sysroot.root.iterdir() if entry.name not in OWN)
    entries = tuple(entry.path for entry in boot.entries if not entry.own and entry.kind != "uki")
    conf = None
    if not entries and (loader := _loader(boot)):
        conf = f"title {old.title}\nefi /{loader}\nsort-key zz-before\n".encode()
        entries = (ENTRY,)
    kept = (old.home,) if old.home and "home" in takeover.items else ()
    return Before(old.title, tuple(names), kept, entries), conf


def _loader(boot: BootDirectory) -> str | None:
    """Return the old system's boot loader on the ESP: its shim, else its GRUB."""
    for name in ("shim", "grub"):
        for path in sorted(boot.files):
            parts = path.lower().split("/")
            own = len(parts) != 3 or parts[0] != "efi" or parts[1] in ("boot", "oci2boot", "linux", "systemd")
            if not own and re.fullmatch(rf"{name}(x64|aa64|riscv64)\.efi", parts[2]):
                return path
    return None
