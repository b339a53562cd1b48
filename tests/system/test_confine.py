"""A program of an image is kept apart from this machine, in each way that the kernel allows here."""

import shutil
import subprocess
from pathlib import Path

import pytest

from oci2boot.errors import ToolError
from oci2boot.system.confine import Confined, choose_way, run_confined, ways
from tests.witness import program


@pytest.fixture(scope="module")
def busybox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a root with a shell."""
    root = tmp_path_factory.mktemp("image") / "root"
    for name in ("bin", "dev", "proc", "run"):
        (root / name).mkdir(parents=True)
    shutil.copy(program("busybox"), root / "bin/busybox")
    (root / "bin/sh").symlink_to("busybox")
    return root


KERNEL_ALLOWS = {
    "bwrap": ["bwrap", "--unshare-all", "--bind", "/", "/", "--proc", "/proc", "--dev", "/dev", "true"],
    "unshare --user": ["unshare", "--user", "--map-root-user", "--mount", "--net", "--pid", "--fork", "true"],
    "unshare": ["unshare", "--mount", "--net", "--pid", "--fork", "true"],
}
"""Way → what the kernel must do for it, said in words that are not ours."""


def allowed() -> list[str]:
    """Return the ways that the kernel has to allow here; none may be all that a machine for tests has."""
    found = []
    for name, (tool, *words) in KERNEL_ALLOWS.items():
        if subprocess.run([program(tool), *words], check=False, capture_output=True).returncode == 0:
            found.append(name)
    return found


def test_the_kernel_allows_a_way() -> None:
    """K1.14"""
    assert allowed()


@pytest.fixture(params=allowed())
def way(request: pytest.FixtureRequest) -> Confined:
    return next(way for way in ways() if way.name == request.param)


def run(way: Confined, root: Path, script: str, seconds: float = 60) -> str:
    return run_confined(way, root, ["/bin/busybox", "sh", "-c", script], {}, seconds)


def test_the_image_sees_its_own_files_and_no_network(busybox: Path, way: Confined) -> None:
    """K1.14: what runs is the image's code"""
    assert run(way, busybox, f"busybox ls {busybox.parent} 2>&1 || echo none").endswith("none\n")
    assert set(run(way, busybox, "busybox ls /").split()) == {"bin", "dev", "proc", "run"}
    interfaces = run(way, busybox, "busybox cat /proc/net/dev").splitlines()[2:]
    assert [line.split(":")[0].strip() for line in interfaces] == ["lo"]
    assert run(way, busybox, "busybox id -u; echo $PPID; echo >/dev/null") in ("0\n0\n", "0\n1\n")
    # cap_dac_override is bit 1, cap_sys_chroot is bit 18: linux/capability.h
    effective = run(way, busybox, "busybox grep CapEff /proc/self/status").split()[1]
    assert int(effective, 16) & ~(1 << 1 | 1 << 18) == 0


def test_what_does_not_end_is_ended(busybox: Path, way: Confined) -> None:
    """K1.14"""
    with pytest.raises(ToolError, match="did not end within 2 seconds"):
        run(way, busybox, "busybox sleep 600", 2)


def test_what_says_too_much_is_ended(busybox: Path, way: Confined) -> None:
    """K1.14"""
    with pytest.raises(ToolError, match="said more than"):
        run(way, busybox, "busybox yes", 300)


def test_a_failure_is_told_by_its_last_line(busybox: Path, way: Confined) -> None:
    """K1.14"""
    with pytest.raises(ToolError, match=r"failed \(3\): last"):
        run(way, busybox, "echo first; echo last >&2; exit 3")


def test_a_machine_that_confines_nothing_is_refused(
    busybox: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """K1.14: nothing of the image runs without walls"""
    monkeypatch.setattr("oci2boot.system.run._SBIN", ())
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolError, match="neither bwrap nor unshare") as caught:
        choose_way(busybox)
    assert "bubblewrap" in (caught.value.hint or "")
