"""composefs-rs's own initramfs program, the crate composefs-setup-root, boots what we install."""

import re
import stat
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from oci2boot.formats import cpio
from oci2boot.system.qemu import boot
from tests import vm
from tests.conftest import Initramfs
from tests.oci.layouts import add_layer, tar
from tests.witness import program

pytestmark = [pytest.mark.boot, pytest.mark.demo]

UNIT = b"""\
[Unit]
DefaultDependencies=no
Requires=sysroot.mount
After=sysroot.mount
Before=initrd-root-fs.target
ConditionKernelCommandLine=composefs
OnFailure=emergency.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/bin/composefs-setup-root
StandardError=journal+console
"""
SYSTEMD = b"usr/lib/systemd/system/"
NAME = b"composefs-setup-root.service"

ASK = r"""
say promised 'grep -o composefs=[^\ ]* /proc/cmdline'
say setup 'systemctl show -P ExecMainStatus composefs-setup-root.service'
say ours 'systemctl show -P LoadState oci2boot-setup-root.service'
"""


def their_archive() -> bytes:
    """The program with its wiring; it needs the C library only, which any initramfs of Debian's has."""
    return cpio.write(
        [
            *(
                cpio.directory(path)
                for path in (b"usr", b"usr/bin", b"usr/lib", b"usr/lib/systemd", SYSTEMD.rstrip(b"/"))
            ),
            cpio.file(b"usr/bin/composefs-setup-root", Path(program("composefs-setup-root")).read_bytes(), 0o755),
            cpio.file(SYSTEMD + NAME, UNIT),
            cpio.directory(SYSTEMD + b"initrd-root-fs.target.requires"),
            cpio.symlink(SYSTEMD + b"initrd-root-fs.target.requires/" + NAME, b"../" + NAME),
        ]
    )


def initramfs_of(layout: Path) -> tuple[str, bytes]:
    for blob in sorted((layout / "blobs/sha256").iterdir()):
        if blob.read_bytes()[:2] == b"\x1f\x8b":
            with tarfile.open(blob) as layer:
                for member in layer:
                    if re.match(r"boot/initrd\.img-", member.name) and (file := layer.extractfile(member)):
                        return member.name, file.read()
    raise AssertionError("no initramfs in the demo image")


@pytest.fixture(scope="module")
def disk(demo_image: Callable[[Initramfs], Path], shared: Path) -> Path:
    home = vm.users_folder(shared / "peer-glue")
    name, theirs = initramfs_of(demo_image("dracut"))
    layout = add_layer(demo_image("dracut"), home / "layout", tar({name: their_archive() + theirs}))
    vm.oci2boot("convert", f"oci:{layout}:latest", "--repo", home / "repo", home=home)
    vm.oci2boot("install", "--target", home / "disk.raw", "--repo", home / "repo", home=home)
    return home / "disk.raw"


def test_composefs_setup_root_boots_our_disk(
    disk: Path, demo_image: Callable[[Initramfs], Path], tmp_path: Path
) -> None:
    """C.15, O.2: the repository, the state and the argument are what composefs-rs expects; its unit is closed."""
    (tmp_path / "uki.efi").write_bytes(vm.read_uki(disk, tmp_path)[1])
    words = ["--dump-section", f".initrd={tmp_path}/initrd", f"{tmp_path}/uki.efi", f"{tmp_path}/copy"]
    subprocess.run([program("objcopy"), *words], check=True, capture_output=True)
    initrd = (tmp_path / "initrd").read_bytes()
    theirs = their_archive() + initramfs_of(demo_image("dracut"))[1]
    assert initrd.startswith(theirs)
    added = cpio.read(initrd[len(theirs) :], lambda _: False)
    files = {path for path, member in added.items() if not stat.S_ISDIR(member.mode)}
    closing = {path for path in files if path.startswith((b"etc/systemd/system/", b"usr/lib/oci2boot/restart"))}
    assert b"etc/systemd/system/emergency.service" in closing
    assert files - closing == {
        SYSTEMD + NAME + b".d/zz-oci2boot.conf",
        SYSTEMD + b"initrd-root-fs.target.requires/" + NAME,
    }

    with boot(vm.with_report(vm.machine(disk), content=False, reboot=True, more=ASK), tmp_path / "vm") as running:
        running.wait_for(r"(?m)^end$", 2 * vm.BOOT_SECONDS, port="report")
        first, second = map(vm.parse_report, running.report.split("\nreboot\n"))
    assert first["promised"] == f"composefs={vm.promised_digest(disk, tmp_path)}"
    assert (first["setup"], first["ours"]) == ("0", "not-found")
    assert first["multi-user"] == "active"
    assert first["root"].startswith("overlay")
    assert "verity=require" in first["root"]
    assert first["usr"].endswith("Read-only file system")
    assert (second["etc-kept"], second["var-kept"]) == ("kept", "kept")
