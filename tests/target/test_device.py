"""Disks written over whatever was there before, with other sectors, and encrypted.

Witnesses: e2fsck, fsck.fat, fdisk, sgdisk, wipefs; cryptsetup for the LUKS2 header, and GRUB for what it encrypts.
"""

import os
import re
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import XTS

from oci2boot.errors import DigestError, Error, FormatError, TargetError
from oci2boot.formats.gpt import read_gpt
from oci2boot.target.device import write_device
from oci2boot.target.disk import write_disk
from oci2boot.target.entries import EspFile, RootEntry
from oci2boot.target.luks import Secret, data_offset, unlock
from oci2boot.target.opened import open_disk
from oci2boot.target.plan import DiskPlan
from tests.partitions import extract
from tests.target.disks import Root, directory, plan_of, regular, said, verified
from tests.witness import program

MIB = 1 << 20
SECRET = Secret(b"correct horse", pbkdf_memory=32 << 10)
ENTRIES = [
    directory(b"/d"),
    *(regular(b"/d/%04d" % number, b"%d" % number * 700) for number in range(3000)),
    *(verified(b"/v%d" % size, b"verified" * size) for size in (1, 512, 100_000)),
    regular(b"/zeros", bytes(3 * MIB)),
    regular(b"/empty"),
]
ESP = [
    EspFile("EFI/BOOT/BOOTX64.EFI", b"program" * 30_000),
    EspFile("EFI/Linux/zeros.efi", bytes(2 * MIB + 1)),
    *(EspFile(f"loader/entries/an entry with a long name {number}.conf", b"title") for number in range(200)),
]
SIZES: dict[str, Any] = {"size": 512 * MIB, "esp_size": 280 * MIB}


def used_device(path: Path, size: int) -> Path:
    """Return a file with no zeros to rely on, and a partition table at its ends."""
    piece = os.urandom(8 * MIB)
    with path.open("wb") as file:
        for at in range(0, size, len(piece)):
            file.write(piece[: size - at])
    subprocess.run([program("sfdisk"), "--quiet", path], input=b"label: gpt\nsize=100M\nsize=100M\n", check=True)
    return path


def signatures(path: Path) -> list[str]:
    return said("wipefs", "--no-act", "--noheadings", "--output", "TYPE", path).split()


def content(disk: Path, plan: DiskPlan, into: Path) -> Path:
    """Return a directory with all files of the root partition."""
    into.mkdir()
    Root(disk, plan).debugfs(f"rdump / {into}")
    return into


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DiskPlan]:
    plan = plan_of(ENTRIES, ESP, **SIZES)
    path = used_device(tmp_path_factory.mktemp("device") / "device", plan.size)
    assert write_device(plan, path) is False  # the kernel reads no partition table from a file
    return path, plan


def test_an_old_device_gets_the_content_of_the_disk_image(device: tuple[Path, DiskPlan], tmp_path: Path) -> None:
    """P.8: what was there before shows nowhere."""
    path, plan = device
    Root(path, plan).check()
    image = tmp_path / "disk.raw"
    write_disk(plan, image)
    said("diff", "-r", content(path, plan, tmp_path / "a"), content(image, plan, tmp_path / "b"))
    found = {
        disk: extract(disk, plan.esp.start, plan.esp.size, tmp_path / f"{disk.name}.esp") for disk in (path, image)
    }
    for esp in found.values():
        said("fsck.fat", "-n", esp)
    said("cmp", f"--bytes={plan.esp.used}", *found.values())
    for file in ESP:
        said("mcopy", "-n", "-i", found[path], f"::/{file.path}", tmp_path / "copied")
        assert (tmp_path / "copied").read_bytes() == file.source


def test_nothing_is_found_on_the_device_but_what_was_written(device: tuple[Path, DiskPlan], tmp_path: Path) -> None:
    path, plan = device
    assert "No problems found" in said("sgdisk", "-v", path)
    assert signatures(path) == ["gpt", "gpt", "PMBR"]
    assert signatures(extract(path, plan.root.start, plan.root.size, tmp_path / "root")) == ["ext4"]
    assert set(signatures(extract(path, plan.esp.start, plan.esp.size, tmp_path / "esp"))) == {"vfat"}


def test_the_kernel_is_to_clear_the_inode_tables_that_were_not_written(device: tuple[Path, DiskPlan]) -> None:
    """ext4's lazy initialisation goes by ITABLE_ZEROED; that those in use are sound, e2fsck has proved."""
    path, plan = device
    groups = [line for line in said("dumpe2fs", Root(path, plan).device).splitlines() if re.match(r"Group \d", line)]
    unzeroed = [group for group in groups if "ITABLE_ZEROED" not in group]
    assert unzeroed
    assert all("INODE_UNINIT" in group for group in unzeroed)


def test_a_device_that_was_interrupted_has_no_partitions(tmp_path: Path) -> None:
    """The table comes last: half a system never boots."""
    honest = verified(b"/broken", b"right" * 9000)
    broken = RootEntry(
        path=honest.path, kind=honest.kind, meta=honest.meta, source=b"wrong" * 9000, verity=honest.verity
    )
    plan = plan_of([*ENTRIES, broken], ESP, **SIZES)
    path = used_device(tmp_path / "device", plan.size)
    assert "gpt" in signatures(path)
    with pytest.raises(DigestError):
        write_device(plan, path)
    assert signatures(path) == []


def test_a_device_whose_writer_is_stopped_is_said_to_be_half_written(tmp_path: Path) -> None:
    def stop(_: int) -> None:
        raise KeyboardInterrupt

    plan = plan_of([], ESP, **SIZES)
    path = used_device(tmp_path / "device", plan.size)
    with pytest.raises(KeyboardInterrupt) as caught:
        write_device(plan, path, progress=stop)
    assert caught.value.__notes__ == [f"{path} is half-written"]
    with pytest.raises(KeyboardInterrupt) as caught:
        write_disk(plan, tmp_path / "file", progress=stop)
    assert not hasattr(caught.value, "__notes__")
    assert [item.name for item in tmp_path.iterdir()] == ["device"], "a file is there whole, or not at all"


def test_a_device_of_another_size_than_planned_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "device"
    path.write_bytes(b"x" * MIB)
    with pytest.raises(TargetError, match="the plan is for"):
        write_device(plan_of([], **SIZES), path)
    assert path.read_bytes() == b"x" * MIB


def test_sectors_of_4096_bytes(tmp_path: Path) -> None:
    """P.8: fdisk and fsck.fat agree, and so does our own reader."""
    plan, path = plan_of(ENTRIES, ESP, **SIZES, sector=4096), tmp_path / "disk.raw"
    write_disk(plan, path)
    Root(path, plan).check()
    listed = said("fdisk", "-b", "4096", "-l", "-o", "Start,Sectors,UUID", path).splitlines()
    assert [line.split() for line in listed[-2:]] == [
        [str(one.start // 4096), str(one.size // 4096), one.guid.upper()] for one in (plan.esp, plan.root)
    ]
    esp = extract(path, plan.esp.start, plan.esp.size, tmp_path / "esp")
    said("fsck.fat", "-n", esp)
    assert "sector size: 4096 bytes" in said("minfo", "-i", esp, "::")
    with path.open("rb") as file:
        gpt = read_gpt(lambda offset, size: os.pread(file.fileno(), size, offset), plan.size)
    assert (gpt.sector, gpt.problems) == (4096, ())


def test_sectors_of_another_size_are_refused() -> None:
    with pytest.raises(TargetError, match="logical blocks of 520 bytes"):
        plan_of([], sector=520)


def decrypted(root: Path, header: int, key: bytes, into: Path) -> Path:
    """Decrypt a root partition as dm-crypt would, where every block in use has been written."""
    data = memoryview(root.read_bytes())[header:]
    with into.open("wb") as file:
        for at in range(0, len(data), 4096):
            tweak = (at // 512).to_bytes(16, "little")
            file.write(Cipher(AES(key), XTS(tweak)).decryptor().update(data[at : at + 4096]))
    return into


def reading(path: Path, offset: int, size: int) -> bytes:
    with path.open("rb") as file:
        return os.pread(file.fileno(), size, offset)


@pytest.mark.parametrize("kind", ["image", "device"])
def test_an_encrypted_root_opens_with_its_passphrase_only(tmp_path: Path, kind: str) -> None:
    """P.8: cryptsetup takes the header and hands out the key; with its own PBKDF and AES, GRUB reads the files."""
    plan, path = plan_of(ENTRIES, ESP, **SIZES, encrypted=True), tmp_path / "disk"
    if kind == "device":
        write_device(plan, used_device(path, plan.size), secret=SECRET)
    else:
        write_disk(plan, path, secret=SECRET)
    with open_disk(path) as opened, pytest.raises(FormatError, match="is encrypted"):
        opened.root()
    root = extract(path, plan.root.start, plan.root.size, tmp_path / "root")
    assert set(signatures(root)) == {"crypto_LUKS"}
    right, wrong, key = tmp_path / "right", tmp_path / "wrong", tmp_path / "key"
    right.write_bytes(SECRET.passphrase)
    wrong.write_bytes(b"battery staple")
    said("cryptsetup", "open", "--test-passphrase", "--key-file", right, root)
    said("cryptsetup", "open", "--test-passphrase", "--key-file", wrong, root, status=2)
    shown = said("cryptsetup", "luksDump", root)
    assert "cipher: aes-xts-plain64\n\tsector: 4096" in shown
    assert f"offset: {plan.root.header} [bytes]" in shown
    words: list[str | Path] = [
        "luksDump",
        "--batch-mode",
        "--dump-volume-key",
        "--volume-key-file",
        key,
        "--key-file",
        right,
        root,
    ]
    said("cryptsetup", *words)
    plain = decrypted(root, plan.root.header, key.read_bytes(), tmp_path / "plain")
    said("e2fsck", "-fn", plain)
    data = plain.read_bytes()
    read = unlock(partial(reading, root), SECRET.passphrase, tmp_path)
    for offset, size in ((0, 1), (1024, 1024), (4095, 2), (MIB, MIB + 5), (len(data) - 5000, 9000)):
        assert read(offset, size) == data[offset : offset + size]
    with pytest.raises(FormatError, match="does not open the root partition"):
        unlock(partial(reading, root), b"battery staple", tmp_path)
    # GRUB 2.06 knows no Argon2.
    weak: list[str | Path] = [
        "--batch-mode",
        "--pbkdf",
        "pbkdf2",
        "--pbkdf-force-iterations",
        "1000",
        "--key-file",
        right,
    ]
    said("cryptsetup", "luksChangeKey", *weak, root, right)
    for entry in ENTRIES[-8:]:
        request = ["-C", str(root), "cat", f"(crypto0){entry.path.decode()}"]
        done = subprocess.run(
            [program("grub-fstest"), *request], input=SECRET.passphrase + b"\n", capture_output=True, check=True
        )
        assert isinstance(entry.source, bytes)
        assert done.stdout.partition(b"opened\n")[2] == entry.source


@pytest.mark.parametrize(
    "words",
    [
        ("--type", "luks2", "--cipher", "aes-cbc-essiv:sha256", "--key-size", "256"),
        ("--type", "luks2", "--sector-size", "512"),
        ("--type", "luks1"),
    ],
)
def test_what_is_encrypted_in_another_way_is_refused(tmp_path: Path, words: tuple[str, ...]) -> None:
    root, passphrase = tmp_path / "root", tmp_path / "passphrase"
    passphrase.write_bytes(SECRET.passphrase)
    with root.open("wb") as file:
        file.truncate(32 * MIB)
    quick = ("--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000")
    said("cryptsetup", "luksFormat", "--batch-mode", *quick, *words, "--key-file", passphrase, root)
    with pytest.raises(Error, match=r"encrypted in another way|not LUKS2|is not supported|failed"):
        unlock(partial(reading, root), SECRET.passphrase, tmp_path)


@pytest.mark.parametrize(
    "metadata",
    [
        b"",
        b"[]",
        b'{"segments": []}',
        b'{"segments": {}}',
        b'{"segments": {"0": 1}}',
        b'{"segments": {"0": {"type": "crypt"}}}',
        b'{"segments": ' + b"[" * 100_000,
    ],
)
def test_a_damaged_description_of_what_is_encrypted_is_refused(metadata: bytes) -> None:
    with pytest.raises(FormatError, match="not have the one segment"):
        data_offset(metadata)


def test_an_encrypted_plan_without_a_passphrase_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="no passphrase"):
        write_disk(plan_of([], **SIZES, encrypted=True), tmp_path / "disk.raw")
    assert list(tmp_path.iterdir()) == []
