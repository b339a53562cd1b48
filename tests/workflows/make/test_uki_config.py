"""`uki config`: what it writes is read by Debian's own plugin of kernel-install, 60-ukify.install of systemd 257."""

import io
import os
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from oci2boot.errors import TargetError
from oci2boot.workflows.make.uki_build import BuildRequest, build
from oci2boot.workflows.make.uki_config import Configured, configure
from oci2boot.workflows.progress import silent
from oci2boot.workflows.requests import BootOptions
from tests.boot.debian import package
from tests.boot.initrds import CLOSED
from tests.witness import program
from tests.workflows.make.seals import EXACT, by_cfsctl
from tests.workflows.sealable import KVER, base

SECTIONS = (".linux", ".initrd", ".cmdline", ".osrel", ".uname")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An operating system unpacked into a directory by Python's tarfile."""
    path = tmp_path / "root"
    for layer in base({"etc/kernel/cmdline": b"rw rhgb quiet\n"}):
        with tarfile.open(fileobj=io.BytesIO(layer)) as archive:
            archive.extractall(path, filter="tar")
    return path


def request(root: Path) -> BuildRequest:
    return BuildRequest(rootfs=root, tree=EXACT, boot=BootOptions(ukify="builtin", kargs=("console=ttyS0",)))


@pytest.fixture
def configured(root: Path, tmp_path: Path) -> Configured:
    return configure(request(root), tmp_path / "etc/kernel", silent)


def kernel_install(root: Path, configuration: Path, staging: Path) -> Path:
    """Run the plugins as kernel-install(8) does, in the order of their names; return the UKI."""
    staging.mkdir()
    modules = root / "usr/lib/modules" / KVER
    ukify = package("systemd-ukify")
    environment = {
        **os.environ,
        "KERNEL_INSTALL_CONF_ROOT": str(configuration),
        "KERNEL_INSTALL_STAGING_AREA": str(staging),
        "KERNEL_INSTALL_LAYOUT": dict(
            line.split("=", 1) for line in (configuration / "install.conf").read_text().splitlines()
        )["layout"],
        "KERNEL_INSTALL_ENTRY_TOKEN": (configuration / "entry-token").read_text().strip(),
        "KERNEL_INSTALL_MACHINE_ID": "0123456789abcdef0123456789abcdef",
        "KERNEL_INSTALL_UKIFY": str(ukify / "usr/bin/ukify"),
        "KERNEL_INSTALL_VERBOSE": "1",
    }
    words = ["add", KVER, str(staging / "unused"), str(modules / "vmlinuz"), str(modules / "initramfs.img")]
    own = [[str(plugin)] for plugin in sorted((configuration / "install.d").iterdir())]
    for plugin in [*own, [sys.executable, str(ukify / "usr/lib/kernel/install.d/60-ukify.install")]]:
        done = subprocess.run([*plugin, *words], check=False, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
    return staging / "uki.efi"


def sections(uki: Path, folder: Path) -> dict[str, bytes]:
    """Return sections by objcopy, a NUL at their end left out."""
    dumps = [word for name in SECTIONS for word in ("--dump-section", f"{name}={folder / name}")]
    subprocess.run([program("objcopy"), *dumps, uki, folder / "copy"], check=True, capture_output=True)
    return {name: (folder / name).read_bytes().strip(b"\0 ") for name in SECTIONS}


def test_the_distributions_plugin_builds_the_same_uki(root: Path, configured: Configured, tmp_path: Path) -> None:
    """D.9, D.12: the distribution's own options in their order, and the digest that cfsctl computes."""
    made = sections(kernel_install(root, configured.folder, tmp_path / "staging"), tmp_path)
    assert made[".cmdline"].decode() == f"rw rhgb quiet {CLOSED} console=ttyS0 composefs={by_cfsctl(root)}"
    ours = build(replace(request(root), output=tmp_path / "ours.efi"), silent)
    assert made == sections(ours.path, tmp_path)


def test_the_distributions_plugin_builds_a_uki_with_both_digests(root: Path, tmp_path: Path) -> None:
    """D.12, C.36: the signed set comes with the glue."""
    asked = replace(request(root), boot=replace(request(root).boot, both_hashes=True))
    made = configure(asked, tmp_path / "kernel", silent)
    uki = kernel_install(root, made.folder, tmp_path / "staging")
    both = [word.partition("=")[2] for word in made.cmdline.split() if word.startswith("composefs=")]
    assert (both[0], list(map(len, both))) == (by_cfsctl(root), [64, 128])
    assert "".join(f"{digest}\n" for digest in both).encode() in uki.read_bytes()
    ours = build(replace(asked, output=tmp_path / "ours.efi"), silent)
    assert sections(uki, tmp_path) == sections(ours.path, tmp_path)


def test_the_root_file_system_is_not_touched(root: Path, configured: Configured, tmp_path: Path) -> None:
    """D.14: what is promised stays what it is."""
    assert by_cfsctl(root) == configured.digest
    for place in (root / "etc/kernel", root / "boot", root):
        with pytest.raises(TargetError, match="lies in the root file system"):
            configure(request(root), place, silent)
    (tmp_path / "link").symlink_to(root / "etc")
    with pytest.raises(TargetError, match="lies in the root file system"):
        configure(request(root), tmp_path / "link/kernel", silent)
    assert by_cfsctl(root) == configured.digest


def test_run_again_it_writes_the_same(root: Path, configured: Configured) -> None:
    """C.24"""
    before = {path: path.read_bytes() for path in configured.folder.rglob("*") if path.is_file()}
    assert configure(request(root), configured.folder, silent) == configured
    assert {path: path.read_bytes() for path in configured.folder.rglob("*") if path.is_file()} == before
