"""What an initramfs has of ours, whoever makes it: what a script calls or reads must have come along."""

import subprocess
from pathlib import Path

import pytest

from oci2boot.boot import closing, glue
from oci2boot.boot.glue import SETUP_ROOT, Glue
from oci2boot.formats import cpio
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
add_file() { printf '%s\\n' "$1"; [ -z "${2-}" ] || printf 'unit:%s:%s\\n' "${1##*/}" "$2"; }
add_symlink() { :; }
add_dir() { mkdir -p "$BUILDROOT$1"; }
inst_simple() { [ -z "${2-}" ] || printf 'unit:%s:%s\\n' "${1##*/}" "$2"; }
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


def run_hook(kind: str, folder: Path) -> list[str]:
    """Run the hook for an initramfs in `folder`/dest; return what it takes along."""
    hook, function = HOOKS[kind]
    (folder / "functions").write_text(TAKEN)
    text = (SCRIPTS / hook).read_text().replace("/usr/share/initramfs-tools/hook-functions", str(folder / "functions"))
    (folder / "hook").write_text(f"{TAKEN}\n{text}\n{function}\n")
    for path in ("scripts/functions", "usr/lib/systemd/systemd"):
        (folder / "dest" / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / "dest" / path).write_text("# theirs\n")
    variables = {"DESTDIR": "dest", "BUILDROOT": "dest", "initdir": "dest", "systemdsystemunitdir": "/units"}
    argv = [program("bash"), "-eu", str(folder / "hook")]
    done = subprocess.run(argv, cwd=folder, env={**variables, "PATH": "/usr/bin:/bin"}, check=True, capture_output=True)
    return done.stdout.decode().split()


@pytest.mark.parametrize("kind", HOOKS)
def test_every_hook_takes_it_along(kind: str, tmp_path: Path) -> None:
    """C.15"""
    taken = run_hook(kind, tmp_path)
    ours = {Path(line).name for line in taken if line.startswith("/usr/lib/oci2boot/")}
    assert ours == {*SETUP_ROOT, "restart"}


@pytest.mark.parametrize("kind", HOOKS)
def test_every_hook_closes_the_initramfs_as_a_conversion_does(kind: str, tmp_path: Path) -> None:
    """B.12: an image may build its UKI by itself."""
    taken = {}
    for line in run_hook(kind, tmp_path):
        if line.startswith("unit:"):
            _, unit, place = line.split(":")
            taken[place] = unit
    base = [cpio.file(b"usr/lib/systemd/systemd", b"")]
    if kind == "initramfs-tools":
        base = [cpio.file(b"scripts/functions", b"# theirs\n"), cpio.file(b"scripts/local", b"")]
    closed = cpio.read(
        closing.close(Glue(brought="oci2boot"), cpio.read(cpio.write(base), glue.keep)).archive, lambda _: True
    )
    apart = {"mkinitcpio": {"dracut-emergency.service"}}.get(kind, set())
    for path, member in closed.items():
        name = path.decode()
        if name.startswith(("etc/systemd/system/", "scripts/")) and member.content and Path(name).name not in apart:
            if f"/{name}" in taken:
                found = (SCRIPTS / "systemd" / taken.pop(f"/{name}")).read_bytes()
            else:
                found = (tmp_path / "dest" / name).read_bytes()
            assert found == member.content, name
    assert not taken


def test_mkinitcpio_gives_no_shell() -> None:
    """B.12: its init reads a hook when it calls the first of its functions: mkinitcpio(8), "Runtime hooks"."""
    init = """
launch_interactive_shell() { echo a shell; }
. "$1"
run_earlyhook
launch_interactive_shell --exec
"""
    argv = [program("dash"), "-c", init, "init", str(SCRIPTS / "mkinitcpio/hooks/oci2boot")]
    done = subprocess.run(argv, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (127, "")
    assert "/usr/lib/oci2boot/restart" in done.stderr
