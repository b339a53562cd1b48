"""What an initramfs has of ours, whoever makes it: what a script calls or reads must have come along."""

import subprocess
from pathlib import Path

import pytest

from oci2boot.boot.glue import SETUP_ROOT
from tests.initramfs.scripts import SCRIPTS, needed_by
from tests.witness import program

HOOKS = {
    "dracut": ("dracut/90oci2boot/module-setup.sh", "install"),
    "initramfs-tools": ("initramfs-tools/hooks/oci2boot", ":"),
    "mkinitcpio": ("mkinitcpio/install/oci2boot", "build"),
}
TAKEN = """
inst_multiple() { printf '%s\\n' "$@"; }
copy_file() { printf '%s\\n' "$2"; }
add_file() { printf '%s\\n' "$1"; }
inst_simple() { :; }
copy_exec() { :; }
manual_add_modules() { :; }
add_module() { :; }
add_binary() { :; }
add_runscript() { :; }
"""
"""The functions of dracut.sh(8), initramfs-tools(7) and mkinitcpio(8) that hooks call."""


def test_what_setup_root_needs_is_in_the_list() -> None:
    assert {"setup-root", "grow"} <= needed_by("setup-root") == set(SETUP_ROOT)
    assert {"setup-root", "grow"} <= needed_by("setup-overlays")


@pytest.mark.parametrize("kind", HOOKS)
def test_every_hook_takes_it_along(kind: str, tmp_path: Path) -> None:
    """C.15"""
    hook, function = HOOKS[kind]
    (tmp_path / "functions").write_text(TAKEN)
    text = (
        (SCRIPTS / hook).read_text().replace("/usr/share/initramfs-tools/hook-functions", str(tmp_path / "functions"))
    )
    (tmp_path / "hook").write_text(f"{TAKEN}\n{text}\n{function}\n")
    variables = {"DESTDIR": "dest", "BUILDROOT": "dest", "initdir": "dest", "systemdsystemunitdir": "/units"}
    argv = [program("bash"), "-eu", str(tmp_path / "hook")]
    done = subprocess.run(
        argv, cwd=tmp_path, env={**variables, "PATH": "/usr/bin:/bin"}, check=True, capture_output=True
    )
    ours = {Path(line).name for line in done.stdout.decode().split() if line.startswith("/usr/lib/oci2boot/")}
    assert ours == set(SETUP_ROOT)
