"""A machine that looks after itself, in QEMU: installed to a disk, upgraded, rolled back, saved from a bad upgrade.

One script runs at each boot and keeps its place in /var; what it finds it writes to the second serial port.
"""

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
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


BAD_UNIT = b"""\
[Unit]
DefaultDependencies=no
Before=sysinit.target
FailureAction=reboot-force
[Service]
Type=oneshot
ExecStart=/bin/false
"""
RELEASES: dict[str, dict[str, bytes | Path]] = {
    "one": {CANARY: b"one"},
    "two": {CANARY: b"two" * 3000},
    "bad": {
        CANARY: b"bad" * 3000,
        f"{UNITS}/bad.service": BAD_UNIT,
        f"{UNITS}/sysinit.target.requires/bad.service": Path("../bad.service"),
    },
}


INSTALL = r"""
say install 'oci2boot install --repo /sysroot/composefs --target /dev/vdb \
    --wipe --yes --no-nvram --quiet >/dev/null && echo done'
echo end
systemctl --no-block poweroff
"""

LIFE = r"""
mkdir -p /var/lib/day2
step=$(cat /var/lib/day2/step || echo 1) 2>/dev/null
# The registry has on this machine the name that it has where the disk was made.
systemd-run --quiet --unit=registry --socket-property=ListenStream=127.0.0.1:REGISTRY \
    /usr/lib/systemd/systemd-socket-proxyd 10.0.2.100:5000
until curl -fsS http://127.0.0.1:REGISTRY/v2/ >/dev/null 2>&1; do sleep 1; done
echo "step $step"
say digest 'grep -o "composefs=[0-9a-f]*" /proc/cmdline'
say release 'head -c 3 /usr/share/demo/release'
say etc 'cat /etc/changed'
say blessed '/usr/lib/systemd/systemd-bless-boot status'
say entries 'ls /boot/EFI/Linux /efi/EFI/Linux'
next() { echo $((step + 1)) >/var/lib/day2/step; echo "done $step"; sync; systemctl --no-block reboot; exit; }
case $step in
1)
    echo changed >/etc/changed
    say upgrade 'oci2boot upgrade --quiet >/dev/null && echo done'
    next ;;
2)
    json status 'oci2boot status --json'
    say rollback 'oci2boot rollback >/dev/null && echo done'
    next ;;
3)
    say bad 'oci2boot switch --quiet --tls-verify false 127.0.0.1:REGISTRY/machine:bad >/dev/null && echo done'
    # As after two failed starts: the third one is enough for a test.
    for entry in /efi/EFI/Linux/*+3*.efi /boot/EFI/Linux/*+3*.efi; do
        [ ! -e "$entry" ] || mv "$entry" "${entry%+3*}+1-2.efi"
    done
    next ;;
4)
    json status 'oci2boot status --json'
    bad=$(ls /sysroot/state/deploy | while read -r one; do
        grep -q '"machine:bad\|/machine:bad' "/sysroot/state/deploy/$one/oci2boot.json" && echo "$one"; done)
    say delete "oci2boot delete $bad >/dev/null && echo done"
    json plan 'oci2boot gc --dry-run --json'
    say before 'find /sysroot/composefs/objects -type f | wc -l'
    json gc 'oci2boot gc --json'
    say after 'find /sysroot/composefs/objects -type f | wc -l'
    say measured 'cd /sysroot/composefs/objects; find . -type f | xargs fsverity measure |
        sed "s/^sha[0-9]*://" | tr -d ./ | awk "\$1 == \$2" | wc -l'
    say fsck 'oci2boot fsck --repo /sysroot/composefs --quiet && echo whole'
    echo end
    systemctl --no-block poweroff ;;
esac
"""


@dataclass(frozen=True, slots=True)
class Life:
    installed: dict[str, str]
    steps: list[dict[str, str]]
    promised: str
    """The digest of the disk that it began with."""


@pytest.fixture(scope="module")
def registry(shared: Path) -> Iterator[str]:
    """Serve the releases of an image as machine:stable (the first one) and machine:two, machine:bad."""
    home = vm.users_folder(shared / "day2")
    argv = [ROOT / "scripts/machine-image"]
    done = subprocess.run(argv, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    base = add_layer(Path(done.stdout.strip()), home / "base", tar(vm.package()))
    with docker_registry(home / "registry") as address:
        for name, files in RELEASES.items():
            layout = add_layer(base, home / name, tar(files))
            push(f"oci:{layout}:latest", f"docker://{address}/machine:{'stable' if name == 'one' else name}")
        yield address


@pytest.fixture(scope="module")
def life(registry: str, shared: Path) -> Life:
    home = shared / "day2"
    port = int(registry.rpartition(":")[2])
    first, second = home / "first.raw", home / "second.raw"
    vm.oci2boot(
        "convert", f"docker://{registry}/machine:stable", "--tls-verify", "false", "--repo", home / "repo", home=home
    )
    vm.oci2boot("install", "--target", first, "--repo", home / "repo", home=home)
    with second.open("wb") as file:
        file.truncate(4 << 30)
    with boot(script(first, INSTALL, second_disk=second), home / "first") as running:
        running.wait_for(r"(?m)^end$", STEP_SECONDS, port="report")
        running.wait_end(vm.BOOT_SECONDS)
        installed = vm.parse_report(running.report)
    assert installed["install"].endswith("done"), running.report
    push(f"oci:{home}/two:latest", f"docker://{registry}/machine:stable")

    text = LIFE.replace("REGISTRY", str(port))
    with boot(script(second, text, registry_port=port, may_reboot=True), home / "second") as running:
        for step in (1, 2, 3):
            running.wait_for(rf"(?m)^done {step}$", STEP_SECONDS, port="report")
        running.wait_for(r"(?m)^end$", STEP_SECONDS + vm.BOOT_SECONDS, port="report")
        running.wait_end(vm.BOOT_SECONDS)
        report = running.report
    steps = [vm.parse_report(part) for part in report.split("\nstep ")[1:]]
    assert len(steps) == 4, report
    return Life(installed, steps, vm.promised_digest(first, home))


def test_a_machine_installs_itself_to_another_disk(life: Life) -> None:
    """P.8"""
    assert life.steps[0]["digest"] == f"composefs={life.promised}"
    assert life.steps[0]["release"] == "one"


def test_an_upgrade_is_what_boots_next_and_keeps_etc(life: Life) -> None:
    """P.11, C.22, D.17"""
    assert life.steps[0]["upgrade"].endswith("done")
    assert life.steps[1]["release"] == "two"
    assert life.steps[1]["digest"] != life.steps[0]["digest"]
    assert life.steps[1]["etc"] == "changed"
    status = json.loads(life.steps[1]["status"])
    assert f"composefs={status['booted']}" == life.steps[1]["digest"]
    assert status["fsverity"] is True
    assert {one["digest"] for one in status["deployments"]} == {status["booted"], life.promised}


def test_a_rollback_boots_the_one_before(life: Life) -> None:
    """P.11, D.20"""
    assert life.steps[1]["rollback"].endswith("done")
    assert life.steps[2]["digest"] == life.steps[0]["digest"]
    assert life.steps[2]["etc"] == "changed"


def test_a_bad_upgrade_falls_back_by_itself(life: Life) -> None:
    """B.8: by boot counting; nobody touched the machine."""
    assert life.steps[2]["bad"].endswith("done")
    assert life.steps[3]["release"] == "one"
    status = json.loads(life.steps[3]["status"])
    (bad,) = (one for one in status["deployments"] if str(one["source"]).endswith("machine:bad"))
    assert bad["digest"] != status["booted"]
    assert [entry["bad"] for entry in bad["entries"]] == [True]


def test_gc_frees_what_nobody_needs(life: Life) -> None:
    """B.8, D.20"""
    last = life.steps[3]
    assert last["delete"].endswith("done")
    plan, done = json.loads(last["plan"]), json.loads(last["gc"])
    assert done["objects"]
    assert sorted(done["objects"]) == sorted(plan["objects"])
    assert int(last["before"]) - int(last["after"]) == len(done["objects"])
    assert last["measured"] == last["after"]
    assert last["fsck"].endswith("whole")
