"""A machine in QEMU that restarts all but its kernel into a new image, and what it then takes for what it runs.

After it comes an ordinary upgrade, with a change of /etc between it and the restart.
"""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from oci2boot.system.qemu import boot
from tests import vm
from tests.conftest import ROOT
from tests.integration.scripted import CANARY, STEP_SECONDS, UNITS, script
from tests.oci.layouts import add_layer
from tests.oci.registries import docker_registry, push
from tests.workflows.sealable import tar

pytestmark = [pytest.mark.boot, pytest.mark.demo]

FINALIZE = "oci2boot-finalize.service"
RELEASES: dict[str, dict[str, bytes | Path]] = {
    name: {
        CANARY: name.encode() * 1000,
        f"{UNITS}/{FINALIZE}": (ROOT / "oci2boot/systemd" / FINALIZE).read_bytes(),
        f"{UNITS}/multi-user.target.wants/{FINALIZE}": Path("..") / FINALIZE,
    }
    for name in ("one", "two", "three")
}

LIFE = r"""
mkdir -p /var/lib/day2
step=$(cat /var/lib/day2/step 2>/dev/null || echo 1)
systemctl is-active --quiet registry.service registry.socket ||
    systemd-run --quiet --unit=registry --socket-property=ListenStream=127.0.0.1:REGISTRY \
        /usr/lib/systemd/systemd-socket-proxyd 10.0.2.100:5000
until curl -fsS http://127.0.0.1:REGISTRY/v2/ >/dev/null 2>&1; do sleep 1; done
echo "step $step"
say kernel 'cat /proc/sys/kernel/random/boot_id'
say promised 'grep -o "composefs=[0-9a-f]*" /proc/cmdline'
say release 'head -c 3 /usr/share/demo/release'
say etc 'cat /etc/changed; cat /etc/later'
say root 'findmnt -n -o FSTYPE,OPTIONS / | grep -o "overlay.*verity=require"'
say var 'cat /var/lib/day2/kept'
say sysroot 'touch /sysroot/written'
say finalizer 'systemctl is-active oci2boot-finalize.service'
next() { echo $((step + 1)) >/var/lib/day2/step; echo "done $step"; sync; }
switch="oci2boot switch --quiet --tls-verify false 127.0.0.1:REGISTRY/machine"
case $step in
1)
    echo changed >/etc/changed
    echo kept >/var/lib/day2/kept
    next
    $switch:two --apply --soft-reboot >/dev/null || echo 'end'
    ;;
2)
    json status 'oci2boot status --json'
    say switch "$switch:three >/dev/null && echo done"
    echo later >/etc/later
    next
    systemctl --no-block reboot
    ;;
3)
    json status 'oci2boot status --json'
    say rollback 'oci2boot rollback >/dev/null && echo done'
    say journal 'journalctl --no-pager -b -1 -u oci2boot-finalize.service'
    echo end
    systemctl --no-block poweroff
    ;;
esac
"""


@pytest.fixture(scope="module")
def registry(shared: Path) -> Iterator[str]:
    home = vm.users_folder(shared / "soft")
    done = subprocess.run([ROOT / "scripts/machine-image"], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    base = add_layer(Path(done.stdout.strip()), home / "base", tar(vm.package()))
    with docker_registry(home / "registry") as address:
        for name, files in RELEASES.items():
            layout = add_layer(base, home / name, tar(files))
            push(f"oci:{layout}:latest", f"docker://{address}/machine:{name}")
        yield address


@pytest.fixture(scope="module")
def life(registry: str, shared: Path) -> list[dict[str, str]]:
    home = shared / "soft"
    port = int(registry.rpartition(":")[2])
    disk = home / "disk.raw"
    image = f"docker://{registry}/machine:one"
    vm.oci2boot("convert", image, "--tls-verify", "false", "--repo", home / "repo", home=home)
    vm.oci2boot("install", "--target", disk, "--size", "4G", "--repo", home / "repo", home=home)
    text = LIFE.replace("REGISTRY", str(port))
    with boot(script(disk, text, registry_port=port, may_reboot=True), home / "run") as running:
        running.wait_for(r"(?m)^end$", 3 * STEP_SECONDS, port="report")
        running.wait_end(vm.BOOT_SECONDS)
        report = running.report
    steps = [vm.parse_report(part) for part in report.split("step ")[1:]]
    assert len(steps) == 3, report
    return steps


def test_a_soft_reboot_runs_the_new_image_under_the_old_kernel(life: list[dict[str, str]]) -> None:
    """P.11: verified as at a boot, with its own /etc, the shared /var and the disk read-only."""
    before, after, _ = life
    assert [before["release"], after["release"]] == ["one", "two"]
    assert before["kernel"] == after["kernel"]
    assert before["promised"] == after["promised"]
    assert after["root"].startswith("overlay")
    assert after["etc"].startswith("changed")
    assert after["var"] == "kept"
    assert "Read-only file system" in after["sysroot"]


def test_what_runs_then_is_known(life: list[dict[str, str]]) -> None:
    """P.11: not from the kernel command line."""
    status = json.loads(life[1]["status"])
    assert f"composefs={status['booted']}" != life[1]["promised"]
    (booted,) = (one for one in status["deployments"] if one["digest"] == status["booted"])
    assert booted["source"].endswith("machine:two")
    assert booted["states"] == ["booted", "next"]
    assert status["problems"] == []


def test_a_change_of_etc_between_upgrade_and_restart_is_there_after_it(life: list[dict[str, str]]) -> None:
    """P.10: merged at shutdown, from what a soft reboot had started."""
    last = life[2]
    assert last["release"] == "thr"
    assert last["kernel"] != life[1]["kernel"]
    assert last["finalizer"] == "active"
    assert last["etc"].split(";")[:2] == ["changed", "later"], last["journal"]
