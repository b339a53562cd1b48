"""An initramfs by dracut, run in the image's own root: confined, without network, on a copy of the tree.

Nothing here asks for root. What runs is the image's code, so the rest of this machine is out of its sight.
"""

import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from oci2boot.boot.dracut import VERITY_MODULES, DracutOptions, complaints, dracut_argv, plan_dracut
from oci2boot.boot.files import Read
from oci2boot.boot.payload import MAX_INITRAMFS
from oci2boot.errors import ToolError
from oci2boot.system.files import plain_errors, read_all
from oci2boot.system.run import Argv, find_program
from oci2boot.tree.lookup import look_up
from oci2boot.tree.model import Directory, File, Inode, Symlink, walk
from oci2boot.workflows.progress import Report, Told

SECONDS: Final = 1800
MAX_SAID: Final = 4 << 20
OUTPUT: Final = ".oci2boot-initramfs"
ENVIRONMENT: Final[Mapping[str, str]] = {
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LC_ALL": "C",
    # Who may not make device nodes need not: the kernel mounts devtmpfs.
    "DRACUT_NO_MKNOD": "1",
    # Labels and capabilities of files in an initramfs mean nothing, and depend on this machine.
    "DRACUT_NO_XATTR": "1",
}
_NODES: Final = "null zero full random urandom"
_ENTER: Final = f"""
set -eu
root=$1; shift
mount --bind "$root" "$root"
cd "$root"
mount -t proc -o nosuid,nodev,noexec proc proc
mount -t tmpfs -o nosuid,mode=755 tmpfs dev
for node in {_NODES}; do
    : >"dev/$node"
    mount --bind "/dev/$node" "dev/$node"
done
ln -s /proc/self/fd dev/fd
mount -t tmpfs -o nosuid,nodev,mode=755 tmpfs run
# As switch_root does: what lay beneath cannot be reached, not by leaving the chroot either.
mount --no-mtab --move . /
exec setpriv --no-new-privs --bounding-set=-all,+sys_chroot,+dac_override --inh-caps=-all chroot . "$@"
"""
"""For sh in namespaces of its own: make the image's root the only one, and drop what could undo that."""
_UNSHARE: Final = ("--mount", "--pid", "--fork", "--kill-child", "--net", "--ipc", "--uts")


@dataclass(frozen=True, slots=True)
class Confined:
    """A way to run a program with a directory as its root, without network."""

    name: str
    argv: tuple[str, ...]
    """Before the directory's path."""
    after: tuple[str, ...] = ()
    """Behind it."""

    def words(self, root: Path, argv: Argv) -> Argv:
        return [*self.argv, root, *self.after, *argv]


def ways() -> Iterator[Confined]:
    """Yield what this machine has installed, the best first; the kernel may allow none of them."""
    if bwrap := find_program("bwrap"):
        alone = ("--unshare-all", "--die-with-parent", "--new-session", "--uid", "0", "--gid", "0")
        # systemd-sysusers makes an /etc/shadow that nobody may read, and cpio is to.
        might = ("--cap-drop", "ALL", "--cap-add", "CAP_DAC_OVERRIDE")
        places = ("/", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/run", "--")
        yield Confined("bwrap", (bwrap, *alone, *might, "--bind"), places)
    unshare = find_program("unshare")
    if unshare and find_program("setpriv") and find_program("chroot"):
        script = ("sh", "-c", _ENTER, "sh")
        yield Confined("unshare --user", (unshare, "--user", "--map-root-user", *_UNSHARE, *script))
        if os.geteuid() == 0:
            yield Confined("unshare", (unshare, *_UNSHARE, *script))


def choose_way(root: Path) -> Confined:
    """Return the first way that works here. Raises `ToolError` where none does: nothing less is good enough."""
    said = "neither bwrap nor unshare is installed"
    for way in ways():
        try:
            run_confined(way, root, ["/bin/sh", "-c", ":"], {}, 60)
        except ToolError as error:
            said = error.message
        else:
            return way
    raise ToolError(
        f"dracut of the image cannot be run apart from this machine: {said}",
        hint="install bubblewrap, allow user namespaces, or be root; --initrd builtin runs nothing of the image",
    )


def run_confined(way: Confined, root: Path, argv: Argv, environment: Mapping[str, str], seconds: float) -> str:
    """Run a program of the image to its end and return all that it said. Raises `ToolError` if it fails."""
    deadline = time.monotonic() + seconds
    name = f"{argv[0]} in the image's root, by {way.name},"
    with subprocess.Popen(
        [str(word) for word in way.words(root, argv)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**ENVIRONMENT, **environment},
        process_group=0,
    ) as process:
        assert process.stdout
        said = bytearray()
        try:
            while True:
                if not select.select([process.stdout], [], [], max(deadline - time.monotonic(), 0))[0]:
                    raise ToolError(f"{name} did not end within {seconds:.0f} seconds")
                piece = os.read(process.stdout.fileno(), 1 << 16)
                if not piece:
                    break
                said += piece
                if len(said) > MAX_SAID:
                    raise ToolError(f"{name} said more than {MAX_SAID >> 20} MiB")
            process.wait(max(deadline - time.monotonic(), 1))
        except BaseException as error:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise ToolError(f"{name} did not end within {seconds:.0f} seconds") from error
            raise
    text = said.decode(errors="replace")
    if process.returncode:
        lines = text.strip().splitlines()
        raise ToolError(f"{name} failed ({process.returncode}): {lines[-1] if lines else 'it said nothing'}")
    return text


def build_dracut(
    tree: Directory, read: Read, kernel: str | None, version: str, options: DracutOptions, verity: bool, report: Report
) -> bytes:
    """Return the initramfs that the image's dracut makes for its kernel.

    `version` is the image's, `%Y%m%d%H%M%S`: no file of the initramfs is younger. Raises `ImageError` for what the
    image lacks, before anything runs; `ToolError` if dracut fails, or says that something is left out.
    """
    kver = plan_dracut(tree, read, kernel, options, verity=verity)
    epoch = int(datetime.strptime(version, "%Y%m%d%H%M%S").replace(tzinfo=UTC).timestamp())
    with tempfile.TemporaryDirectory(prefix="oci2boot-dracut-") as folder:
        root = Path(folder, "root")
        with plain_errors(ToolError, "cannot lay out the image's files for dracut"):
            check_out(tree, read, root)
        way = choose_way(root)
        report(Told(f"dracut of the image makes an initramfs for {kver}, by {way.name}"))
        argv = dracut_argv(kver, options, VERITY_MODULES if verity else (), f"/{OUTPUT}")
        said = run_confined(way, root, argv, {"SOURCE_DATE_EPOCH": str(epoch)}, SECONDS)
        if failed := complaints(said):
            raise ToolError(
                f"dracut left something out: {failed[0]}", hint="install in the image what is missing (as zstd, kmod)"
            )
        return _take(root)


def check_out(tree: Directory, read: Read, root: Path) -> None:
    """Write a tree to a new directory: no owners, xattrs and device nodes, and its user may read and enter all."""
    made: dict[int, Path] = {}
    for path, inode in walk(tree):
        target = root / os.fsdecode(path.lstrip(b"/"))
        if isinstance(inode, File) and id(inode) in made:
            target.hardlink_to(made[id(inode)])
            continue
        _write(inode, target, read)
        if isinstance(inode, File):
            made[id(inode)] = target
    # What is mounted there may not land where a symlink of the image leads.
    for name in ("dev", "proc", "run"):
        place = root / name
        if place.is_symlink() or not place.is_dir():
            place.unlink(missing_ok=True)
            place.mkdir()
    # Of the state, in images whose /var is empty; dracut takes the directory over.
    home = root / "root"
    if home.is_symlink() and not look_up(tree, b"root"):
        home.unlink()
        home.mkdir(0o700)


def _write(inode: Inode, target: Path, read: Read) -> None:
    match inode:
        case Directory():
            target.mkdir()
            target.chmod(inode.meta.mode & 0o1777 | 0o700)
        case Symlink():
            target.symlink_to(os.fsdecode(inode.target))
        case File():
            with target.open("xb") as file:
                file.write(read(inode))
            target.chmod(inode.meta.mode & 0o777 | 0o600)
            # Older than the image's version, a file keeps its time in the initramfs.
            os.utime(target, ns=(0, inode.meta.mtime * 10**9 + inode.meta.mtime_nsec))


def _take(root: Path) -> bytes:
    """Return what dracut wrote; the image's code may have put anything in its place."""
    with (
        plain_errors(ToolError, "cannot read the initramfs that dracut made"),
        os.fdopen(os.open(root / OUTPUT, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file,
    ):
        return read_all(file, MAX_INITRAMFS, "the initramfs that dracut made")
