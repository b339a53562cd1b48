"""Debian's SELinux policy, a real one: the package as apt is configured, built by semodule; kept in build/."""

import fcntl
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.witness import program

BUILD = Path(__file__).parent.parent / "build"
STORE = "etc/selinux/default/contexts/files"


def debian_policy() -> Path:
    """Return the directory that holds file_contexts and its companions; the first call takes half a minute."""
    made = BUILD / "selinux-policy-default"
    BUILD.mkdir(exist_ok=True)
    with (BUILD / "selinux-policy-default.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            with tempfile.TemporaryDirectory(dir=BUILD) as scratch:
                shutil.copytree(_build(Path(scratch)) / STORE, Path(scratch, "done"))
                Path(scratch, "done").rename(made)
    return made


def _build(scratch: Path) -> Path:
    def run(*argv: str | Path) -> None:
        subprocess.run(argv, cwd=scratch, check=True, capture_output=True)

    run(program("apt-get"), "download", "selinux-policy-default")
    (package,) = scratch.glob("*.deb")
    run(program("dpkg-deb"), "-x", package, "package")
    root = scratch / "root"
    shutil.copytree(scratch / "package/etc", root / "etc")
    (root / "var/lib/selinux").mkdir(parents=True)
    modules = scratch / "package/usr/share/selinux/default"
    names = (modules / ".modules").read_text().split()
    options = ["-p", str(root), "-s", "default", "-X", "100", "--noreload"]
    run(program("semodule"), *options, *(f"-i{modules / name}.pp.bz2" for name in names))
    return root
