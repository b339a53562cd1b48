"""Boot files for boot loaders that we do not write to, taken by mkimage and mkbootimg, unpacked by cpio."""

import hashlib
import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard

from oci2boot.boot.loose import FORMAT, LooseParts, aboot_files, manifest, plain_files
from oci2boot.boot.payload import PayloadOptions
from oci2boot.boot.promise import ComposefsPromise
from oci2boot.boot.type1 import type1_payload
from oci2boot.digest import VerityDigest
from oci2boot.errors import Error, ImageError
from oci2boot.formats import cpio
from oci2boot.formats.android_boot import Layout
from oci2boot.formats.cmdline import ComposefsArg
from oci2boot.tree.files import Read
from oci2boot.tree.model import Directory
from tests.boot.debian import kernel
from tests.boot.initrds import CLOSED, GROWING, SYSTEMD
from tests.boot.trees import joined, scan, tree_of
from tests.witness import program

DIGEST = "ab" * 32
PROMISE = ComposefsPromise(ComposefsArg(VerityDigest.parse(DIGEST)), in_initramfs=True)
OPTIONS = PayloadOptions(architecture="amd64", version="1", devicetree="vendor/board.dtb")
SOURCE = '/dts-v1/; / { compatible = "vendor,board"; #address-cells = <1>; #size-cells = <1>; };'
ITS = """
/dts-v1/;
/ {
    description = "demo";
    #address-cells = <1>;
    images {
        kernel { data = /incbin/("kernel"); type = "kernel"; arch = "x86_64"; os = "linux"; compression = "none";
                 load = <0x1000000>; entry = <0x1000000>; hash-1 { algo = "sha256"; }; };
        ramdisk { data = /incbin/("initramfs"); type = "ramdisk"; arch = "x86_64"; os = "linux"; compression = "none";
                  hash-1 { algo = "sha256"; }; };
        fdt { data = /incbin/("devicetree.dtb"); type = "flat_dt"; arch = "x86_64"; compression = "none";
              hash-1 { algo = "sha256"; }; };
    };
    configurations { default = "conf"; conf { kernel = "kernel"; ramdisk = "ramdisk"; fdt = "fdt"; }; };
};
"""


def compiled() -> bytes:
    argv = [program("dtc"), "-q", "-I", "dts", "-O", "dtb"]
    return subprocess.run(argv, input=SOURCE.encode(), check=True, capture_output=True).stdout


@pytest.fixture(scope="module")
def image() -> tuple[Directory, Read]:
    version, files = kernel()
    tree, read = scan(files)
    packed = zstandard.compress(cpio.write(SYSTEMD))
    made = tree_of(
        {
            **GROWING,
            # Three bytes more than a multiple of four: the archives that follow must begin at one.
            f"boot/initrd.img-{version}": packed + bytes(3 - len(packed) % 4 + 4),
            f"usr/lib/linux-image-{version}/vendor/board.dtb": compiled(),
            "usr/lib/os-release": b"ID=debian\n",
            "etc/kernel/cmdline": b"rw quiet\n",
        }
    )

    def read_any(file: object) -> bytes:
        content = getattr(file, "content", None)
        return content if isinstance(content, bytes) else read(file)  # type: ignore[arg-type]

    return joined(tree, made), read_any


@pytest.fixture(scope="module")
def parts(image: tuple[Directory, Read]) -> LooseParts:
    return type1_payload(*image, PROMISE, OPTIONS, efi=False).parts


@pytest.fixture(scope="module")
def folder(parts: LooseParts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("files")
    for name, data in plain_files(parts).items():
        (made / name).write_bytes(data)
    return made


def test_the_files_are_the_kernel_and_one_initramfs_with_glue_and_digest(folder: Path) -> None:
    """C.16"""
    version, files = kernel()
    assert (folder / "kernel").read_bytes() == (files / f"boot/vmlinuz-{version}").read_bytes()
    assert (folder / "cmdline").read_text() == f"rw quiet {CLOSED} composefs={DIGEST}\n"
    assert (folder / "devicetree.dtb").read_bytes() == compiled()
    initramfs = (folder / "initramfs").read_bytes()
    found = cpio.read(initramfs, lambda path: path.endswith(b"rootfs.digest"))
    assert {b"usr/lib/systemd/systemd", b"usr/lib/oci2boot/setup-root"} <= found.keys()
    assert found[b"usr/lib/composefs/rootfs.digest"].content == f"{DIGEST}\n".encode()
    # As the kernel has it, which makes no directory that no archive names.
    start = initramfs.rindex(b"070701", 0, initramfs.rindex(b"rootfs.digest"))
    assert start % 4 == 0
    last = initramfs[initramfs.rindex(b"TRAILER!!!", 0, start) + 10 :].lstrip(b"\0")
    names = subprocess.run(
        [program("cpio"), "-it", "--quiet"], input=last, check=True, capture_output=True
    ).stdout.split()
    assert names == [b"usr/lib/composefs", b"usr/lib/composefs/rootfs.digest"]


def test_mkimage_makes_a_fit_image_of_them(folder: Path) -> None:
    """C.16: U-Boot's own tools read back what was put in."""
    (folder / "boot.its").write_text(ITS)
    subprocess.run([program("mkimage"), "-f", "boot.its", "boot.itb"], cwd=folder, check=True, capture_output=True)
    names = ("kernel", "initramfs", "devicetree.dtb")
    for number, name in enumerate(names):
        argv = [program("dumpimage"), "-T", "flat_dt", "-p", str(number), "-o", "out", "boot.itb"]
        subprocess.run(argv, cwd=folder, check=True, capture_output=True)
        assert (folder / "out").read_bytes() == (folder / name).read_bytes()


def test_the_manifest_has_the_digests_of_sha256sum(folder: Path, parts: LooseParts) -> None:
    """C.16, C.19"""
    files = plain_files(parts)
    document = json.loads(manifest(files, {"rootfs": DIGEST, "sizes": parts.sizes.to_json()}))
    said = subprocess.run(["sha256sum", *files], cwd=folder, check=True, capture_output=True, text=True).stdout
    assert {line.split()[1]: line.split()[0] for line in said.splitlines()} == {
        name: one["sha256"] for name, one in document["files"].items()
    }
    assert {name: one["size"] for name, one in document["files"].items()} == {
        name: (folder / name).stat().st_size for name in files
    }
    assert (document["format"], document["rootfs"]) == (FORMAT, DIGEST)
    assert document["sizes"]["devicetree"] == len(compiled())
    assert document["sizes"]["kernel"] == len(parts.kernel)
    assert manifest(files, {"a": 1}) == manifest(dict(reversed(files.items())), {"a": 1})


def test_an_android_boot_image_holds_the_same(folder: Path, parts: LooseParts) -> None:
    """C.37: by mkbootimg, to the byte."""
    argv = [program("mkbootimg"), "--header_version", "2", "--kernel", "kernel", "--ramdisk", "initramfs"]
    argv += ["--dtb", "devicetree.dtb", "--cmdline", parts.cmdline, "--pagesize", "4096", "--output", "theirs.img"]
    subprocess.run(argv, cwd=folder, check=True)
    (ours,) = aboot_files(parts, Layout.parse("pagesize=4096")).values()
    assert hashlib.sha256(ours).digest() == hashlib.sha256((folder / "theirs.img").read_bytes()).digest()
    with pytest.raises(ImageError, match="needs a device tree"):
        aboot_files(replace(parts, devicetree=b""), Layout())


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("gone.dtb", None, "no device tree gone.dtb"),
        ("/usr/lib/gone.dtb", None, "no device tree /usr/lib/gone.dtb"),
        ("text.dtb", b"compatible" * 10, "is no device tree"),
        ("short.dtb", b"\xd0\x0d\xfe\xed" + bytes(10), "is no device tree"),
        ("cut.dtb", b"\xd0\x0d\xfe\xed" + (100).to_bytes(4, "big") + bytes(60), "of 100 bytes, and has 68"),
        ("zero.dtb", b"\xd0\x0d\xfe\xed" + bytes(60), "of 0 bytes"),
    ],
)
def test_what_is_no_device_tree_is_refused(
    image: tuple[Directory, Read], name: str, data: bytes | None, message: str
) -> None:
    tree, read = image
    if data:
        tree = joined(tree, tree_of({f"usr/lib/modules/{kernel()[0]}/dtb/{name}": data}))
    with pytest.raises(Error, match=message):
        type1_payload(tree, read, PROMISE, replace(OPTIONS, devicetree=name))


def test_a_device_tree_may_be_named_by_its_path_and_is_in_the_entry(image: tuple[Directory, Read]) -> None:
    path = f"/usr/lib/linux-image-{kernel()[0]}/vendor/board.dtb"
    payload = type1_payload(*image, PROMISE, replace(OPTIONS, devicetree=path))
    assert payload.parts.devicetree == compiled()
    (line,) = [line for line in payload.files[payload.entry].decode().splitlines() if line.startswith("devicetree ")]
    assert payload.files[line.split()[1][1:]] == compiled()


def test_a_kernel_that_no_firmware_starts_is_one_for_other_boot_loaders(image: tuple[Directory, Read]) -> None:
    tree, read = image
    version = kernel()[0]
    packed = b"\x1f\x8b a packed kernel"
    tree = joined(tree, tree_of({f"boot/vmlinuz-{version}": packed}))
    assert type1_payload(tree, read, PROMISE, OPTIONS, efi=False).parts.kernel == packed
    with pytest.raises(ImageError, match="cannot be started by firmware"):
        type1_payload(tree, read, PROMISE, OPTIONS)
    with pytest.raises(ImageError, match="for aarch64, its kernel for x86_64"):
        type1_payload(*image, PROMISE, replace(OPTIONS, architecture="arm64"), efi=False)


def test_read_on_demand_is_told_to_any_initramfs_and_refused_without_fs_verity(image: tuple[Directory, Read]) -> None:
    """D.5"""
    promise = replace(PROMISE, read="on-demand")
    found = cpio.read(type1_payload(*image, promise, OPTIONS).parts.initramfs, lambda path: path.endswith(b"/read"))
    assert found[b"usr/lib/oci2boot/read"].content == b"on-demand\n"
    assert b"usr/lib/oci2boot/read" not in cpio.read(
        type1_payload(*image, PROMISE, OPTIONS).parts.initramfs, lambda _: False
    )
    optional = replace(promise, argument=replace(promise.argument, insecure=True))
    with pytest.raises(ImageError, match="makes fs-verity optional"):
        type1_payload(*image, optional, OPTIONS)


def test_glue_that_knows_no_such_file_is_named(image: tuple[Directory, Read]) -> None:
    tree, read = image
    own = cpio.write([*SYSTEMD, cpio.file(b"usr/bin/composefs-setup-root", b"")])
    tree = joined(tree, tree_of({f"boot/initrd.img-{kernel()[0]}": own}))
    notes = type1_payload(tree, read, PROMISE, OPTIONS).notes
    assert any("composefs-setup-root, takes its promise from the command line alone" in note for note in notes)


def test_the_users_own_root_takes_the_place_of_the_label(image: tuple[Directory, Read]) -> None:
    """C.16: the label is that of a disk made here; an installation into other file systems names its own."""
    promise = replace(PROMISE, by_label=True)
    for given, wanted in ((), ["root=LABEL=oci2boot"]), (("root=UUID=1-2",), ["root=UUID=1-2"]):
        line = type1_payload(*image, promise, replace(OPTIONS, arguments=given)).cmdline
        assert [word for word in line.split() if word.startswith("root=")] == wanted
