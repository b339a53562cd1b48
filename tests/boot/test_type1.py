"""Kernels without a UKI: an entry of the Boot Loader Specification, as systemd's bootctl reads it."""

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard

from oci2boot.boot.payload import PayloadOptions, plan_payload
from oci2boot.boot.promise import ComposefsPromise
from oci2boot.boot.type1 import Type1Payload, type1_payload
from oci2boot.cli.hints import hint_of
from oci2boot.digest import VerityDigest
from oci2boot.errors import Error, LimitError, NoStubError
from oci2boot.formats import cpio
from oci2boot.formats.cmdline import ComposefsArg
from oci2boot.tree.files import Read
from oci2boot.tree.model import Directory
from tests.boot.debian import kernel
from tests.boot.initrds import CLOSED, GROWING, SYSTEMD
from tests.boot.trees import joined, scan, tree_of
from tests.sysroot.bootctl import listed
from tests.witness import program

PROMISE = ComposefsPromise(ComposefsArg(VerityDigest.parse("ab" * 32)), in_initramfs=True)
OPTIONS = PayloadOptions(architecture="amd64", version="20261121.1", arguments=("console=ttyS0",))
OS_RELEASE = b'ID=debian\nPRETTY_NAME="Debian GNU/Linux 13 (trixie)"\nVERSION_ID="13"\n'
INITRAMFS = zstandard.compress(cpio.write(SYSTEMD))
MICROCODE = cpio.write([cpio.file(b"kernel/x86/microcode/AuthenticAMD.bin", b"microcode")])


@pytest.fixture(scope="module")
def debian() -> tuple[Directory, Read]:
    """Debian's kernel without systemd's stub."""
    version, files = kernel()
    tree, read = scan(files)
    made = tree_of(
        {
            **GROWING,
            f"boot/initrd.img-{version}": INITRAMFS,
            "boot/amd-ucode.img": MICROCODE,
            "usr/lib/os-release": OS_RELEASE,
            "etc/os-release": Path("../usr/lib/os-release"),
            "etc/kernel/cmdline": b"rw quiet\n",
        }
    )
    return joined(tree, made), read


def with_entry(debian: tuple[Directory, Read], text: str, **more: str) -> tuple[Directory, Read]:
    version, _ = kernel()
    entries = {"image": text, **more}
    files: dict[str, bytes | Path] = {
        f"boot/loader/entries/{name}.conf": content.replace("KVER", version).encode()
        for name, content in entries.items()
    }
    return joined(debian[0], tree_of(files)), debian[1]


def written(payload: Type1Payload, esp: Path) -> None:
    for path, data in payload.files.items():
        (esp / path).parent.mkdir(parents=True, exist_ok=True)
        (esp / path).write_bytes(data)


def test_bootctl_sees_an_entry_with_the_promise(debian: tuple[Directory, Read], tmp_path: Path) -> None:
    """P.5, P.9, D.16"""
    payload = type1_payload(*debian, PROMISE, OPTIONS)
    written(payload, tmp_path)
    (entry,) = listed(tmp_path)
    assert entry["id"] == "debian_20261121.1.conf"
    assert entry["title"] == "Debian GNU/Linux 13 (trixie)"
    assert (entry["version"], entry["sortKey"], entry["architecture"]) == ("20261121.1", "debian", "x64")
    assert entry["options"] == f"rw quiet {CLOSED} console=ttyS0 composefs={'ab' * 32}"
    version, files = kernel()
    assert (tmp_path / entry["linux"][1:]).read_bytes() == (files / f"boot/vmlinuz-{version}").read_bytes()
    parts = [(tmp_path / path[1:]).read_bytes() for path in entry["initrd"]]
    assert parts[:2] == [MICROCODE, INITRAMFS]
    assert b"setup-root" in parts[2]
    assert any("nothing signs" in note for note in payload.notes)


def test_equal_files_lie_in_one_place(debian: tuple[Directory, Read]) -> None:
    """Two versions share kernel and initramfs; what says which root each boots is small, and lies apart."""
    first = type1_payload(*debian, PROMISE, OPTIONS)
    other = type1_payload(
        *debian,
        ComposefsPromise(ComposefsArg(VerityDigest.parse("cd" * 32)), in_initramfs=True),
        PayloadOptions(architecture="amd64", version="2"),
    )
    apart = set(first.files) ^ set(other.files)
    assert {path.rpartition("/")[2] for path in apart - {first.entry, other.entry}} == {"initrd3"}
    assert len(apart) == 4
    assert sum(len(payload.files[path]) for payload in (first, other) for path in apart & set(payload.files)) < 4096


def test_the_initramfs_has_the_digest_too(debian: tuple[Directory, Read], tmp_path: Path) -> None:
    """C.16: nothing signs the line of the entry, so the initramfs says what it may boot; unpacked by cpio."""
    payload = type1_payload(*debian, PROMISE, OPTIONS)
    written(payload, tmp_path)
    (entry,) = listed(tmp_path)
    last = (tmp_path / entry["initrd"][-1][1:]).read_bytes()
    subprocess.run([program("cpio"), "-idm", "--quiet"], input=last, cwd=tmp_path, check=True)
    assert (tmp_path / "usr/lib/composefs/rootfs.digest").read_text() == "ab" * 32 + "\n"
    optional = replace(PROMISE, argument=replace(PROMISE.argument, insecure=True))
    initramfs = cpio.read(type1_payload(*debian, optional, OPTIONS).parts.initramfs, lambda _: False)
    assert b"usr/lib/composefs/rootfs.digest" not in initramfs


def test_a_limit_holds_for_what_no_uki_holds(debian: tuple[Directory, Read]) -> None:
    """C.19"""
    payload = type1_payload(*debian, PROMISE, OPTIONS)
    parts = [data for path, data in payload.files.items() if path != payload.entry]
    assert payload.parts.sizes.total == sum(map(len, parts)) + len(payload.cmdline)
    total = payload.parts.sizes.total
    assert type1_payload(*debian, PROMISE, replace(OPTIONS, size_limit=total)).files == payload.files
    with pytest.raises(LimitError, match=rf"{total} bytes, {total - 1} are allowed \(MiB: kernel .*initramfs"):
        type1_payload(*debian, PROMISE, replace(OPTIONS, size_limit=total - 1))


ENTRY = (
    "title Image\nversion KVER\nmachine-id 6a9857a393724b7a981ebb5b8495b9ea\nlinux /vmlinuz-KVER\n"
    "initrd /initrd.img-KVER\noptions ro splash\noptions $kernelopts\ngrub_class kernel\n"
)


def test_the_images_own_entry_is_taken_over(debian: tuple[Directory, Read], tmp_path: Path) -> None:
    """P.5, D.16, D.9"""
    other = "title Other\nlinux /nothing\noptions x\n"
    payload = type1_payload(*with_entry(debian, ENTRY, other=other), PROMISE, OPTIONS)
    written(payload, tmp_path)
    (entry,) = listed(tmp_path)
    assert entry["title"] == "Image"
    assert entry["version"] == "20261121.1"
    assert "machineId" not in entry
    assert entry["options"] == f"ro splash rw quiet {CLOSED} console=ttyS0 composefs={'ab' * 32}"
    assert len(entry["initrd"]) == 3  # theirs, the glue, and the digest
    assert b"\ngrub_class kernel\n" in payload.files[payload.entry]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (ENTRY + "options composefs=" + "cd" * 32 + "\n", "bring composefs="),
        (ENTRY + "initrd /gone\n", "names /gone"),
        (ENTRY.replace("/vmlinuz", "/../vmlinuz"), "not normal"),
        (ENTRY.replace("initrd.img-KVER", "vmlinuz-KVER"), "an initramfs other"),
        (ENTRY + "devicetree-overlay /a /b\n", "overlays"),
    ],
)
def test_an_entry_that_cannot_be_taken_over_is_refused(debian: tuple[Directory, Read], text: str, message: str) -> None:
    with pytest.raises(Error, match=message):
        type1_payload(*with_entry(debian, text), PROMISE, OPTIONS)


def test_a_command_line_that_the_kernel_would_cut_off_is_refused(debian: tuple[Directory, Read]) -> None:
    options = PayloadOptions(architecture="amd64", version="1", arguments=("x" * 1850,))
    with pytest.raises(LimitError, match="what systemd-boot adds"):
        type1_payload(*debian, PROMISE, options)


def test_without_a_stub_the_local_flow_names_the_other(debian: tuple[Directory, Read]) -> None:
    with pytest.raises(NoStubError, match="no systemd-stub") as caught:
        plan_payload(*debian, PROMISE, OPTIONS)
    assert "--flow type1" in (hint_of(caught.value) or "")
