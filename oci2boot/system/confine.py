"""A program run with a directory as its root: without network, out of sight of this machine's files, able to do little.

bwrap(1), unshare(1), setpriv(1); user_namespaces(7). Nothing here asks for root.
"""

import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from oci2boot.errors import ToolError
from oci2boot.system.run import Argv, find_program

MAX_SAID: Final = 4 << 20
ENVIRONMENT: Final[Mapping[str, str]] = {
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LC_ALL": "C",
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
        f"nothing keeps a program of the image apart from this machine: {said}",
        hint="install bubblewrap, allow user namespaces, or be root",
    )


def run_confined(way: Confined, root: Path, argv: Argv, environment: Mapping[str, str], seconds: float) -> str:
    """Run a program of the image to its end and return all that it said. Raises `ToolError` if it fails.

    It gets `ENVIRONMENT` and `environment`, and nothing of ours.
    """
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
