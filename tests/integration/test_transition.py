"""A Debian that runs is taken over, in QEMU, and boots again by the menu, until it is removed: both ways, once.

One script runs at each boot of either system and keeps its place on the ESP.
"""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from oci2boot.system.qemu import boot
from tests import vm
from tests.conftest import ROOT
from tests.integration.scripted import STEP_SECONDS, script
from tests.oci.layouts import add_layer
from tests.witness import program
from tests.workflows.sealable import tar

pytestmark = [pytest.mark.boot, pytest.mark.demo, pytest.mark.long]

MIB = 1 << 20
ESP, ROOTFS = 256, 3072
"""In MiB."""
ROOT_TYPE = "4f68bce3-e8cd-4db1-96e7-fbcaf984b709"
OLD: dict[str, str] = {
    "etc/hostname": "oldbox\n",
    "etc/machine-id": "0123456789abcdef0123456789abcdef\n",
    "home/me/letter": "Dear reader\n",
    "etc/old": "only here\n",
}
ENTRY = """\
title The Debian before
sort-key old
linux /debian/linux
initrd /debian/initrd
options root=PARTUUID={root} rw console=ttyS0
"""
LIFE = r"""
mkdir -p /run/old-esp && mount /dev/vda1 /run/old-esp
step=$(cat /run/old-esp/step 2>/dev/null || echo 1)
echo "step $step"
say root 'findmnt -no FSTYPE /'
say host 'cat /proc/sys/kernel/hostname'
say key 'cat /etc/ssh/ssh_host_ed25519_key.pub'
say user 'id -un 1234; id -Gn 1234'
say home 'cd /home/me && cat letter && stat -c %u letter'
say machine 'cat /etc/machine-id'
say old 'cat /etc/old'
next() { echo $((step + 1)) >/run/old-esp/step; sync; umount /run/old-esp; systemctl --no-block reboot; exit; }
case $step in
1)
    say install 'oci2boot install demo --repo /repo --target / --esp /run/old-esp --no-nvram \
        --take-over users,hostname,machine-id,ssh,home --quiet >/dev/null && echo done'
    next ;;
2)
    say back 'bootctl set-oneshot debian.conf && echo done'
    next ;;
3) next ;;
4)
    json gc 'oci2boot gc --transition --yes --json'
    say left 'ls /sysroot'
    say letter 'cd /sysroot/home/me && cat letter'
    echo end
    systemctl --no-block poweroff ;;
esac
"""


def make_disk(rootfs: Path, disk: Path) -> None:
    """Lay out a Debian as people have it: an ESP with systemd-boot, a root partition with ext4."""
    esp, root = disk.with_name("esp.img"), disk.with_name("root.img")
    guid = "0f0f0f0f-1111-4222-8333-444444444444"
    for image, size in ((esp, ESP), (root, ROOTFS)):
        with image.open("wb") as file:
            file.truncate(size * MIB)
    kernel = next((rootfs / "boot").glob("vmlinuz-*"))
    initrd = next((rootfs / "boot").glob("initrd*"))
    loader = rootfs / "usr/lib/systemd/boot/efi/systemd-bootx64.efi"
    entry = disk.with_name("debian.conf")
    entry.write_text(ENTRY.format(root=guid))
    subprocess.run([program("mkfs.vfat"), "-F", "32", esp], check=True, capture_output=True)
    for folder in ("EFI", "EFI/BOOT", "debian", "loader", "loader/entries"):
        subprocess.run([program("mmd"), "-i", esp, f"::{folder}"], check=True)
    for source, target in (
        (loader, "EFI/BOOT/BOOTX64.EFI"),
        (kernel, "debian/linux"),
        (initrd, "debian/initrd"),
        (entry, "loader/entries/debian.conf"),
    ):
        subprocess.run([program("mcopy"), "-i", esp, source, f"::{target}"], check=True)
    argv: list[str | Path] = [
        program("mke2fs"),
        "-q",
        "-F",
        "-t",
        "ext4",
        "-O",
        "verity",
        "-b",
        "4096",
        "-d",
        rootfs,
        root,
    ]
    subprocess.run(argv, check=True)
    with disk.open("wb") as file:
        file.truncate((ESP + ROOTFS + 2) * MIB)
    table = (
        f"label: gpt\nstart=1MiB, size={ESP}MiB, type=c12a7328-f81f-11d2-ba4b-00a0c93ec93b\n"
        f"start={ESP + 1}MiB, size={ROOTFS}MiB, type={ROOT_TYPE}, uuid={guid}\n"
    )
    subprocess.run([program("sfdisk"), "-q", disk], input=table.encode(), check=True)
    for image, start in ((esp, 1), (root, ESP + 1)):
        argv = [
            program("dd"),
            f"if={image}",
            f"of={disk}",
            "bs=1M",
            f"seek={start}",
            "conv=notrunc,sparse",
            "status=none",
        ]
        subprocess.run(argv, check=True)
        image.unlink()


@dataclass(frozen=True, slots=True)
class Life:
    steps: list[dict[str, str]]


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> Life:
    home = tmp_path_factory.mktemp("transition")
    done = subprocess.run([ROOT / "scripts/machine-image"], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    layout = add_layer(Path(done.stdout.strip()), home / "layout", tar(vm.package()))
    bundle = home / "bundle"
    subprocess.run([program("umoci"), "unpack", "--image", f"{layout}:latest", bundle], check=True, capture_output=True)
    rootfs = bundle / "rootfs"
    (rootfs / "home").unlink()  # it leads to /var/home, as in the new system
    for name, text in OLD.items():
        path = rootfs / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for file, line in (
        ("passwd", "me:x:1234:1234:Me:/home/me:/bin/bash"),
        ("shadow", "me:!:19000:0:99999:7:::"),
        ("group", "me:x:1234:"),
        ("group", "games:x:60:me"),
    ):
        path = rootfs / "etc" / file
        kept = [one for one in path.read_text().splitlines() if not one.startswith(line.partition(":")[0] + ":")]
        path.write_text("\n".join([*kept, line]) + "\n")
    for path in (rootfs / "home/me", rootfs / "home/me/letter"):
        os.chown(path, 1234, 1234)
    vm.oci2boot("convert", f"oci:{layout}:latest", "--name", "demo", "--repo", rootfs / "repo", home=home, demote=False)
    make_disk(rootfs, home / "disk.raw")
    shutil.rmtree(bundle)
    with boot(script(home / "disk.raw", LIFE, may_reboot=True), home / "vm") as running:
        running.wait_for(r"(?m)^end$", 2 * STEP_SECONDS, port="report")
        running.wait_end(vm.BOOT_SECONDS)
        parts = running.report.split("step ")[1:]
    return Life([vm.parse_report(part) for part in parts])


def test_the_new_system_has_what_was_taken_over(life: Life) -> None:
    """O.1"""
    old, new, *_ = life.steps
    assert old["root"] == "ext4"
    assert old["install"].endswith("done"), old
    assert new["root"] == "overlay"
    assert old["key"].startswith("ssh-ed25519 ")
    assert (new["host"], new["key"]) == ("oldbox", old["key"])
    assert new["user"] == "me;me games"
    assert new["home"] == "Dear reader;1234"
    assert new["machine"] == OLD["etc/machine-id"].strip()
    assert "No such file" in new["old"]


def test_the_old_system_boots_again_by_the_menu(life: Life) -> None:
    """O.1"""
    _, new, old, *_ = life.steps
    assert new["back"] == "done", new
    assert (old["root"], old["old"]) == ("ext4", "only here")


def test_the_old_system_goes_when_it_is_told_to(life: Life) -> None:
    """O.1: and the new one goes on."""
    last = life.steps[3]
    assert last["root"] == "overlay"
    assert '"done": true' in last["gc"]
    assert last["left"] == "composefs;home;lost+found;state"
    assert last["letter"] == "Dear reader"
