"""What a machine's first image takes over from the system that was there: a Debian, or a deployment of ostree.

Nothing of it is changed: the old system stays as it was, and boots, until `gc --transition` removes it.
"""

import os
import re
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from oci2boot.errors import Error, FormatError, TargetError
from oci2boot.sysroot.accounts import FILES, Accounts, read_accounts, with_people
from oci2boot.sysroot.first_boot import KEYS_MAX, FirstBoot, with_first_boot
from oci2boot.system.files import plain_errors
from oci2boot.tree.files import Read, find_file
from oci2boot.tree.lookup import look_up
from oci2boot.tree.model import Directory, Symlink, find

Item = Literal["users", "hostname", "machine-id", "ssh", "fstab", "home", "var"]
ITEMS: Final[tuple[Item, ...]] = ("users", "hostname", "machine-id", "ssh", "fstab", "home", "var")
MAX_FILE: Final = 1 << 20
BOOTED: Final = Path("/run/ostree-booted")
"""It is there where ostree booted the machine. ostree(1)"""
MAX_HOST_KEYS: Final = 32
SKIPPED: Final = frozenset(
    {
        "cache",
        "tmp",
        "run",
        "lock",
        "lib/dpkg",
        "lib/apt",
        "lib/systemd",
        "lib/rpm",
        "lib/pacman",
        "log/journal",
        "home",
    }
)
"""What of /var is the old system's own: its packages, its services' leases, what can be made again."""
_MACHINE_ID: Final = re.compile(rb"[0-9a-f]{32}\n?")
_HOST_KEY: Final = re.compile(r"ssh_host_[a-z0-9]+_key(\.pub)?")
_OWN_PLACES: Final = (
    "/",
    "/usr",
    "/etc",
    "/var",
    "/boot",
    "/efi",
    "/boot/efi",
    "/sysroot",
    "/proc",
    "/sys",
    "/dev",
    "/run",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class OldSystem:
    etc: Path
    var: Path
    home: str | None
    """Beneath the physical root, where it is a directory of its own; ostree has it in /var."""
    title: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is to be taken over, and from where."""

    old: OldSystem
    items: tuple[Item, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TakeOver:
    """The plan, which the user sees first."""

    old: OldSystem
    items: tuple[Item, ...]
    settings: FirstBoot
    """What goes into the new machine's /etc."""
    copied: tuple[str, ...] = ()
    """Paths of the old /var, to be copied."""
    shown: tuple[tuple[str, str], ...] = ()
    """(item, what of it)"""
    notes: tuple[str, ...] = ()
    """What stays behind, and why."""

    def to_json(self) -> dict[str, Any]:
        return {
            "from": self.old.title,
            "items": [{"item": item, "takes": text} for item, text in self.shown],
            "left_behind": list(self.notes),
        }


@dataclass(slots=True)
class _Plan:
    files: dict[str, bytes] = field(default_factory=dict)
    hostname: str | None = None
    keys: bytes | None = None
    copied: list[str] = field(default_factory=list)
    shown: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def parse_items(text: str) -> tuple[Item, ...]:
    """Read `users,ssh`, `all` or `none`."""
    if text in ("all", "none"):
        return ITEMS if text == "all" else ()
    words = [word.strip() for word in text.split(",")]
    for word in words:
        if word not in ITEMS:
            raise FormatError(
                f"nothing to take over is called {word!r}", hint=f"all, none, or some of {','.join(ITEMS)}"
            )
    return tuple(item for item in ITEMS if item in words)


def find_old(root: Path) -> OldSystem | None:
    """Return the system whose physical root this is; None where there is none.

    Raises `TargetError` for several deployments of ostree of which none runs.
    """
    if root == Path("/") and BOOTED.exists():
        raise TargetError(
            "this machine runs a deployment of ostree: its disk is at /sysroot",
            hint="install there: --target /sysroot, after mount -o remount,rw /sysroot",
        )
    if (root / "ostree/deploy").is_dir():
        found = [path for path in sorted(root.glob("ostree/deploy/*/deploy/*")) if (path / "etc").is_dir()]
        running = [path for path in found if BOOTED.exists() and path.samefile("/")]
        if not found:
            return None
        if len(running or found) > 1:
            raise TargetError(
                f"{root} has {len(found)} deployments of ostree, and it is not known whose state is meant",
                hint="`ostree admin undeploy` all but one first, or --take-over none",
            )
        (deployment,) = running or found
        etc = Path("/etc") if running else deployment / "etc"
        return OldSystem(etc=etc, var=deployment.parent.parent / "var", home=None, title=_title(deployment, etc))
    if not (root / "etc").is_dir():
        return None
    return OldSystem(
        etc=root / "etc",
        var=root / "var",
        home="home" if (root / "home").is_dir() else None,
        title=_title(root, root / "etc"),
    )


def plan_takeover(asked: Asked, tree: Directory, read: Read, settings: FirstBoot) -> TakeOver:
    """Find out what the new machine gets.

    `tree` is its root file system, `settings` what the user says, which comes first.
    """
    plan, old = _Plan(), asked.old
    for item in asked.items:
        _PLANS[item](plan, old, tree, read)
    if settings.hostname or plan.hostname is None:
        plan.hostname = settings.hostname
    made = FirstBoot(
        plan.hostname, settings.ssh_keys or plan.keys, settings.credentials, settings.tpm2_pcrs, {**plan.files}
    )
    made.check()
    return TakeOver(
        old=old,
        items=asked.items,
        settings=made,
        copied=tuple(plan.copied),
        shown=tuple(plan.shown),
        notes=tuple(plan.notes),
    )


def _users(plan: _Plan, old: OldSystem, tree: Directory, read: Read) -> None:
    theirs = read_accounts({name: data for name in FILES if (data := _read(old.etc / name)) is not None})
    mine = read_accounts({name: read(file) for name in FILES if (file := find_file(tree, b"/etc/" + name.encode()))})
    shells = [path for path in {row[6] for row in theirs.rows["passwd"]} | {"/bin/bash", "/bin/sh"} if _has(tree, path)]
    made: Accounts = with_people(mine, theirs, shells)
    if made.names:
        plan.files |= {f"/etc/{name}": data for name, data in made.write().items()}
        plan.shown.append(("users", ", ".join(made.names)))
    plan.notes += made.notes
    keys = _read(old.etc.parent / "root/.ssh/authorized_keys", KEYS_MAX)
    if keys and keys.strip():
        try:
            with_first_boot(FirstBoot(ssh_keys=keys), tree, None, read)
        except Error as error:
            plan.notes.append(f"root's authorized_keys: {error.message}")
            return
        plan.keys = keys
        plan.shown.append(("users", "root's authorized_keys"))


def _has(tree: Directory, path: str) -> bool:
    return look_up(tree, path.encode()) is not None


def _hostname(plan: _Plan, old: OldSystem, _: Directory, __: Read) -> None:
    lines = [line.strip() for line in (_read(old.etc / "hostname") or b"").decode(errors="replace").splitlines()]
    if name := next((line for line in lines if line and not line.startswith("#")), None):
        try:
            FirstBoot(hostname=name).check()
        except FormatError as error:
            plan.notes.append(error.message)
            return
        plan.hostname = name
        plan.shown.append(("hostname", name))


def _machine_id(plan: _Plan, old: OldSystem, _: Directory, __: Read) -> None:
    data = _read(old.etc / "machine-id") or b""
    if _MACHINE_ID.fullmatch(data):
        plan.files["/etc/machine-id"] = data
        plan.shown.append(("machine-id", data.decode().strip()))


def _ssh(plan: _Plan, old: OldSystem, _: Directory, __: Read) -> None:
    folder = old.etc / "ssh"
    names = [name for name in _names(folder) if _HOST_KEY.fullmatch(name)]
    taken = []
    for name in names[:MAX_HOST_KEYS]:
        if data := _read(folder / name):
            plan.files[f"/etc/ssh/{name}"] = data
            taken.append(name)
    if taken:
        plan.shown.append(("ssh", ", ".join(name for name in taken if not name.endswith(".pub"))))


def _fstab(plan: _Plan, old: OldSystem, tree: Directory, __: Read) -> None:
    kept = []
    for line in (_read(old.etc / "fstab") or b"").decode(errors="replace").splitlines():
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        why = _why_not(words, tree)
        if why is None:
            words[1] = _place_of(tree, words[1]) or words[1]
            if "nofail" not in words[3].split(","):
                words[3] += ",nofail"
            kept.append(" ".join([*words[:4], *(words[4:6] or ["0", "0"])]))
        elif why:
            plan.notes.append(f"fstab, {words[1] if len(words) > 1 else line[:80]}: {why}")
    if kept:
        _to_fstab(plan, kept)
        plan.shown.append(("fstab", ", ".join(line.split()[1] for line in kept)))


def _to_fstab(plan: _Plan, lines: Sequence[str]) -> None:
    plan.files["/etc/fstab"] = plan.files.get("/etc/fstab", b"") + "".join(f"{line}\n" for line in lines).encode()


def _why_not(words: Sequence[str], tree: Directory) -> str | None:
    """Say why a line does not hold any more; nothing to say of those that the image has its own way for."""
    if len(words) < 4 or not all(word.isprintable() for word in words):
        return "it is not a line of fstab"
    device, place, kind = words[:3]
    if place in _OWN_PLACES or kind in ("proc", "sysfs", "devpts", "tmpfs", "devtmpfs"):
        return ""
    if kind == "swap":
        return None if device.startswith(("/dev/", "UUID=", "LABEL=", "PARTUUID=", "PARTLABEL=")) else "swap in a file"
    if not place.startswith("/") or ".." in place.split("/"):
        return "that is no place"
    if place.startswith(("/usr/", "/etc/", "/sysroot/")):
        return "it would lie over what is verified"
    return None if _place_of(tree, place) else "the image has no such directory"


def _place_of(tree: Directory, place: str) -> str | None:
    """Return where a directory of the new system is, as systemd.mount(5) wants it: without symlinks; None for none."""
    found = look_up(tree, place.encode())
    if found:
        return f"/{os.fsdecode(found[0])}" if isinstance(found[1], Directory) else None
    link = find(tree, place.encode())
    if (
        isinstance(link, Symlink)
        and link.target.lstrip(b"/").startswith(b"var/")
        and b".." not in link.target.split(b"/")
    ):
        return f"/{os.fsdecode(link.target.strip(b'/'))}"  # of the state, and made when something is mounted there
    return place if place.startswith("/var/") else None


def _home(plan: _Plan, old: OldSystem, tree: Directory, __: Read) -> None:
    if old.home is None:
        if (old.var / "home").is_dir():
            plan.copied.append("home")
            plan.shown.append(("home", f"a copy of {old.var / 'home'}"))
        return
    if any(line.split()[1:2] == [b"/home"] for line in (_read(old.etc / "fstab") or b"").splitlines()):
        if b" /home " not in plan.files.get("/etc/fstab", b""):
            plan.notes.append("home: a file system of its own, which comes with fstab")
        return
    place = _place_of(tree, "/home")
    if place is None:
        plan.notes.append("home: the image has no /home")
        return
    _to_fstab(plan, [f"/sysroot/{old.home} {place} none bind,rw,exec,nosuid,nodev,nofail 0 0"])
    plan.shown.append(("home", "the same directory, which both systems have"))


def _var(plan: _Plan, old: OldSystem, _: Directory, __: Read) -> None:
    names = _names(old.var)
    found: list[str] = []
    for name in names:
        folder = old.var / name
        if name in SKIPPED or folder.is_symlink():
            continue
        below = [one for one in SKIPPED if one.startswith(f"{name}/")]
        if below and folder.is_dir():
            found += [f"{name}/{inner}" for inner in _names(folder) if f"{name}/{inner}" not in below]
        else:
            found.append(name)
    plan.copied += found
    if found:
        plan.shown.append(("var", f"copies of {len(found)} files and directories"))
        plan.notes.append(f"var: {', '.join(sorted(SKIPPED))} stay the old system's")


_PLANS: Final[Mapping[Item, Callable[[_Plan, OldSystem, Directory, Read], None]]] = {
    "users": _users,
    "hostname": _hostname,
    "machine-id": _machine_id,
    "ssh": _ssh,
    "fstab": _fstab,
    "home": _home,
    "var": _var,
}


def _title(root: Path, etc: Path) -> str:
    for path in (etc / "os-release", root / "usr/lib/os-release"):
        for line in (_read(path) or b"").decode(errors="replace").splitlines():
            if line.startswith("PRETTY_NAME=") and line.isprintable():
                return line.removeprefix("PRETTY_NAME=").strip("\"'")[:80]
    return "the system before"


def _names(folder: Path) -> list[str]:
    """Return what is in a directory; nothing where there is none, or a symlink to one."""
    if folder.is_symlink() or not folder.is_dir():
        return []
    with plain_errors(TargetError, f"read {folder}"):
        return sorted(entry.name for entry in folder.iterdir())


def _read(path: Path, limit: int = MAX_FILE) -> bytes | None:
    """Read a regular file, whatever else may lie there; None where it is none, or too large to be what it is called."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        with plain_errors(TargetError, f"read {path}"):
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return None
            with open(fd, "rb", closefd=False) as file:
                data = file.read(limit + 1)
    finally:
        os.close(fd)
    return data if len(data) <= limit else None
