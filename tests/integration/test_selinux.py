"""SELinux on an installed machine: the labels of what is not in the image, and a boot with the policy enforced."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from oci2boot.digest import External
from oci2boot.rootfs.reader import read_rootfs
from oci2boot.store.images import find_image
from oci2boot.store.repository import Repository
from oci2boot.system.qemu import boot
from oci2boot.tree.model import Directory, File, find
from tests import vm
from tests.conftest import Initramfs, Installed
from tests.witness import program

pytestmark = [pytest.mark.boot, pytest.mark.demo]

ENFORCE = "io.systemd.stub.kernel-cmdline-extra=security=selinux selinux=1 enforcing=1"
UNLABELLED = ("unlabeled_t", "file_t")


def policy_of(repo: Path, folder: Path) -> Path:
    """Take the image's file_contexts and its companions out of the store."""
    with Repository.open(repo) as repository:
        tree = read_rootfs(repository.read_object(find_image(repository, None).root.image))
        files = find(tree, b"/etc/selinux/default/contexts/files")
        assert isinstance(files, Directory)
        for name, inode in files.entries.items():
            if isinstance(inode, File):
                content = inode.content
                data = repository.read_object(content.digest) if isinstance(content, External) else content
                assert isinstance(data, bytes)
                (folder / name.decode()).write_bytes(data)
    return folder / "file_contexts"


def test_the_physical_root_has_the_labels_of_the_places_it_becomes(
    installed: Callable[[Initramfs], Installed], tmp_path: Path
) -> None:
    """P.4: as matchpathcon(8) has them, by the image's policy."""
    made = installed("dracut")
    policy = policy_of(made.repo, tmp_path)
    digest = vm.promised_digest(made.disk, tmp_path)
    deployment = f"/state/deploy/{digest}"
    places = {
        "/": "/",
        "/composefs": "/usr",
        "/composefs/objects": "/usr",
        "/state": "/",
        deployment: "/",
        f"{deployment}/etc/upper": "/etc",
        "/state/os/default/var": "/var",
        "/state/os/default/var/lib": "/var/lib",
        "/state/os/default/var/log": "/var/log",
    }
    for place, meaning in places.items():
        argv: list[str | Path] = [program("matchpathcon"), "-n", "-m", "dir", "-f", policy, meaning]
        expected = subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()
        found = vm.debugfs(made.disk, f"ea_get {place} security.selinux")
        assert expected in found, (place, found)
        assert ":object_r:" in expected


def test_a_machine_boots_with_the_policy_enforced(installed: Callable[[Initramfs], Installed], tmp_path: Path) -> None:
    """P.4, P.10: to the login prompt, with /etc written on the way. setup-root mounts before there is a policy."""
    with boot(vm.machine(installed("dracut").disk, ENFORCE), tmp_path / "vm") as running:
        running.wait_for("Finished sshd-keygen.service", 3 * vm.BOOT_SECONDS)  # it writes to /etc/ssh
        running.wait_for("demo login:|Reached target multi-user.target", vm.BOOT_SECONDS)
        console = running.console
    denials = [line for line in console.splitlines() if "avc:" in line and "denied" in line]
    assert "Successfully loaded SELinux policy" in console
    assert not [line for line in denials if "permissive=1" in line]
    # What Debian's policy denies is between it and Debian's programs; none of it is for want of a label.
    assert not [line for line in denials if any(f":{name}:s0" in line for name in UNLABELLED)]
