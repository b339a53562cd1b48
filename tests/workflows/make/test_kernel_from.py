"""A root file system without a kernel, and the UKI that promises it. C.7, D.10, D.12"""

import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from oci2boot.boot.kernel import version_in
from oci2boot.errors import Error, FormatError, ImageError, LimitError, TargetError
from oci2boot.formats import cpio
from oci2boot.oci.reference import Reference
from oci2boot.workflows.make import kernel_from
from oci2boot.workflows.make.kernel_from import KernelFrom
from oci2boot.workflows.make.seal import SealRequest, seal
from oci2boot.workflows.make.uki_build import BuildRequest, build
from oci2boot.workflows.make.uki_config import configure
from oci2boot.workflows.progress import silent
from tests.boot.debian import kernel as debian_kernel
from tests.boot.initrds import CLOSED, SYSTEMD
from tests.oci.layouts import Layout
from tests.tarballs import unpack
from tests.workflows.make.seals import BUILTIN, EXACT, by_cfsctl, cfsctl_id, converted, section
from tests.workflows.sealable import EFI, KVER, add_image, base, kernel, stub

OTHER_RELEASE = b'ID=kernels\nPRETTY_NAME="where kernels are from"\n'
MODULES = f"usr/lib/modules/{KVER}"
BOOTS = (f"{MODULES}/vmlinuz", f"{MODULES}/initramfs.img", "etc/kernel/cmdline")


@pytest.fixture
def kernel_root(tmp_path: Path) -> Path:
    """It has all that boots, and says that it is another system."""
    root = unpack(base(), tmp_path / "kernel-root")
    (root / "usr/lib/os-release").write_bytes(OTHER_RELEASE)
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Nothing that boots is in it."""
    path = unpack(base(), tmp_path / "root")
    for name in ("usr/lib/modules", "usr/lib/systemd/boot", "etc/kernel"):
        shutil.rmtree(path / name)
    return path


def sections(path: Path) -> Mapping[str, bytes]:
    return {name: section(path, name.encode()) for name in (".linux", ".initrd", ".cmdline", ".osrel", ".uname")}


def test_a_root_without_a_kernel_is_promised_by_a_uki_of_another_root(root: Path, kernel_root: Path) -> None:
    """C.7, D.10: the digest is cfsctl's of a root that has no kernel; which system it is, its own os-release says."""
    request = BuildRequest(rootfs=root, tree=EXACT, boot=BUILTIN, kernel_from=KernelFrom(root=kernel_root))
    built = build(request, silent)
    assert built.path.parent == root / "boot/EFI/Linux"
    found = sections(built.path)
    assert found[".linux"] == kernel()
    assert found[".initrd"].startswith(cpio.write(SYSTEMD))
    assert found[".uname"].decode() == KVER
    assert b"trixie" in found[".osrel"]
    assert b"kernels" not in found[".osrel"]
    assert found[".cmdline"].decode() == f"rw quiet {CLOSED} composefs={by_cfsctl(root)}"


def test_the_promised_roots_own_words_count(root: Path, kernel_root: Path) -> None:
    """Kernel arguments, and how /etc is mounted: those of the system, not those of where its kernel is from."""
    (root / "etc/kernel").mkdir()
    (root / "etc/kernel/cmdline").write_text("rw own\n")
    for where, transient in ((root, "true"), (kernel_root, "false")):
        (where / "usr/lib/composefs").mkdir()
        (where / "usr/lib/composefs/setup-root-conf.toml").write_text(f"[etc]\ntransient = {transient}\n")
    (kernel_root / "usr/lib/bootc/kargs.d").mkdir(parents=True)
    (kernel_root / "usr/lib/bootc/kargs.d/10.toml").write_text('kargs = ["theirs"]\n')
    request = BuildRequest(rootfs=root, tree=EXACT, boot=BUILTIN, kernel_from=KernelFrom(root=kernel_root))
    found = sections(build(request, silent).path)
    assert found[".cmdline"].startswith(b"rw own ")
    assert b"theirs" not in found[".cmdline"]
    assert b"transient = true" in found[".initrd"]
    assert b"transient = false" not in found[".initrd"]


def test_kernel_initramfs_and_stub_may_be_files(root: Path, tmp_path: Path) -> None:
    """C.7: the modules are where the running system needs them."""
    shutil.copytree(unpack(base(), tmp_path / "whole") / "usr/lib/modules", root / "usr/lib/modules")
    for name in ("vmlinuz", "initramfs.img"):
        (root / MODULES / name).unlink()
    files = {"linux": kernel(), "initramfs": cpio.write([*SYSTEMD, cpio.file(b"mine", b"")]), "stub": stub()}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    given = KernelFrom(linux=tmp_path / "linux", initramfs=tmp_path / "initramfs", stub=tmp_path / "stub")
    built = build(BuildRequest(rootfs=root, tree=EXACT, boot=BUILTIN, kernel_from=given), silent)
    found = sections(built.path)
    assert (found[".linux"], found[".uname"].decode()) == (kernel(), KVER)
    assert found[".initrd"].startswith(files["initramfs"])
    assert found[".cmdline"].decode().endswith(f"composefs={by_cfsctl(root)}")
    (root / "usr/lib/modules/6.1-other").mkdir()
    with pytest.raises(ImageError, match="does not say which version it is"):
        build(BuildRequest(rootfs=root, boot=BUILTIN, kernel_from=given), silent)
    build(BuildRequest(rootfs=root, boot=replace(BUILTIN, kernel=KVER), kernel_from=given), silent)


def test_the_kernel_says_its_version() -> None:
    """Debian's own kernel, of which the package says it."""
    version, files = debian_kernel()
    data = (files / f"boot/vmlinuz-{version}").read_bytes()
    assert version_in(data) == version
    assert version_in(data[:0x20E] + b"\xff\xff" + data[0x210:0x400]) is None
    assert version_in(b"") is None
    assert version_in(kernel()) is None


def test_the_kernel_leaves_a_directory_as_a_layer_would(tmp_path: Path) -> None:
    """C.7: what was promised is, by cfsctl, the directory that is left; its times are those before."""
    whole = unpack(base(), tmp_path / "whole")
    os.utime(whole / MODULES, ns=(0, 1_600_000_000_123456789))
    built = build(BuildRequest(rootfs=whole, tree=EXACT, boot=replace(BUILTIN, strip_kernel=True)), silent)
    assert section(built.path, b".linux") == kernel()
    assert not {"vmlinuz", "initramfs.img"} & {path.name for path in (whole / MODULES).iterdir()}
    assert built.digest == by_cfsctl(whole)


def test_a_root_that_cannot_be_written_keeps_its_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = unpack(base(), tmp_path / "whole")
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK or "modules" not in str(path))
    with pytest.raises(TargetError, match="cannot be written"):
        build(BuildRequest(rootfs=whole, boot=replace(BUILTIN, strip_kernel=True)), silent)
    assert (whole / MODULES / "vmlinuz").exists()
    assert not (whole / "boot/EFI").exists()


def test_the_distributions_tools_are_told_of_another_root(root: Path, kernel_root: Path, tmp_path: Path) -> None:
    """D.12: kernel-install runs where the kernel is, and promises the root without one."""
    request = BuildRequest(rootfs=root, tree=EXACT, boot=BUILTIN, kernel_from=KernelFrom(root=kernel_root))
    configured = configure(request, tmp_path / "kernel", silent)
    assert configured.cmdline.endswith(f"composefs={by_cfsctl(root)}")
    assert f"Stub={kernel_root}/{EFI}/linuxx64.efi.stub" in (tmp_path / "kernel/uki.conf").read_text()
    assert b"trixie" in (tmp_path / "kernel/os-release").read_bytes()


def without_kernel() -> list[bytes]:
    """Return the layers of an image of which the lowest alone is left."""
    return base()[:1]


def test_an_image_without_a_kernel_is_sealed(kernel_root: Path, tmp_path: Path) -> None:
    """C.7, D.14: cfsctl computes the promised digest from the layers, and a client takes the UKI as it is."""
    layout = Layout(tmp_path / "layout")
    add_image(layout, without_kernel(), "base")
    request = SealRequest(
        source=Reference.parse(f"oci:{layout.path}:base"),
        destination=Reference.parse(f"oci:{tmp_path}/out:x"),
        repo=tmp_path / "repo",
        boot=BUILTIN,
    )
    with pytest.raises(Error, match="no kernel"):
        seal(request, silent)
    made = seal(replace(request, kernel_from=KernelFrom(root=kernel_root)), silent)
    assert made
    assert cfsctl_id(tmp_path / "out", "x", tmp_path / "cfs") == made.rootfs
    bootable = converted(tmp_path / "repo", f"oci:{tmp_path}/out:x")
    assert (bootable.flow, bootable.kernel, bootable.root.image.hex) == ("sealed", KVER, made.rootfs)


@pytest.mark.parametrize(
    ("case", "error", "said"),
    [
        ("empty", ImageError, "no kernel"),
        ("two", Error, "2 kernels"),
        ("no stub", ImageError, "systemd-stub"),
        ("text", Error, "not an EFI executable"),
        ("leads out", ImageError, "no kernel"),
        ("file", Error, "Not a directory"),
        ("missing", Error, "No such file"),
    ],
)
def test_a_root_that_has_no_kernel_is_refused(
    case: str, error: type[Error], said: str, root: Path, kernel_root: Path, tmp_path: Path
) -> None:
    modules = kernel_root / MODULES
    match case:
        case "empty":
            shutil.rmtree(kernel_root)
            kernel_root.mkdir()
        case "two":
            shutil.copytree(modules, modules.with_name("6.13-x"))
        case "no stub":
            (kernel_root / EFI / "linuxx64.efi.stub").unlink()
        case "text":
            (modules / "vmlinuz").write_text("no kernel\n" * 100)
        case "leads out":
            outside = tmp_path / "vmlinuz"
            outside.write_bytes(kernel())
            (modules / "vmlinuz").unlink()
            (modules / "vmlinuz").symlink_to(f"../../../../../{outside.name}")
        case "file":
            shutil.rmtree(kernel_root)
            kernel_root.write_text("")
        case "missing":
            shutil.rmtree(kernel_root)
    with pytest.raises(error, match=said):
        build(BuildRequest(rootfs=root, boot=BUILTIN, kernel_from=KernelFrom(root=kernel_root)), silent)
    assert not list((root / "boot").iterdir())


@pytest.mark.parametrize("version", ["../../x", "6\n7", "", "6.1/x", "x" * 200])
def test_a_version_that_is_a_path_is_none(version: str, root: Path, tmp_path: Path) -> None:
    (tmp_path / "linux").write_bytes(kernel())
    given = KernelFrom(linux=tmp_path / "linux")
    boot = replace(BUILTIN, kernel=version)
    with pytest.raises((FormatError, ImageError), match=r"not a version of a kernel|which version it is"):
        build(BuildRequest(rootfs=root, boot=boot, kernel_from=given), silent)


def test_a_file_without_effect_or_end_is_refused(
    root: Path, kernel_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "initramfs").write_bytes(cpio.write(SYSTEMD))
    given = KernelFrom(root=kernel_root, initramfs=tmp_path / "initramfs")
    with pytest.raises(FormatError, match="--initrd builtin"):
        build(BuildRequest(rootfs=root, boot=replace(BUILTIN, initrd="builtin"), kernel_from=given), silent)
    monkeypatch.setattr(kernel_from, "MAX_INITRAMFS", 100)
    with pytest.raises((LimitError, FormatError, ImageError)):
        build(BuildRequest(rootfs=root, boot=BUILTIN, kernel_from=given), silent)
