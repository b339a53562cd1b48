"""Installed disks that boot nothing, yet have all that a bootable one has; and ways to damage them."""

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from oci2boot.store.images import Bootable, save
from oci2boot.store.repository import Repository
from oci2boot.workflows.install.disk import install
from oci2boot.workflows.progress import silent
from oci2boot.workflows.requests import InstallRequest
from tests.store.stored import SKELETON, Stored, layer, store_image
from tests.tarballs import directory, file, hard_link, pax, symlink
from tests.witness import program
from tests.workflows.sealable import kernel, uki

BIG = b"".join(number.to_bytes(4, "big") * 250 for number in range(1000))
"""A thousand kilobytes in blocks of which no two are equal: it has a Merkle tree of two levels."""
SMALL = b"one block " * 100
UKI = "EFI/Linux/demo_1.efi"


def layers(*more: bytes) -> list[bytes]:
    return [
        layer(
            SKELETON,
            directory(b"usr/lib/"),
            file(b"usr/lib/big", BIG, mtime=1000),
            hard_link(b"usr/lib/again", b"usr/lib/big"),
            file(b"usr/bin/small", SMALL, mode=0o755),
            file(b"etc/inline", b"inline"),
            symlink(b"usr/bin/link", b"small"),
            pax((b"SCHILY.xattr.security.capability", b"\1\0\0\2\0\4\0\0" + bytes(12))),
            file(b"usr/bin/capable", b"capable" * 100),
            *(file(b"usr/lib/file%d" % number, b"%d" % number * 1000) for number in range(40)),
            *more,
        )
    ]


@dataclass(frozen=True, slots=True)
class Demo:
    repo: Path
    stored: Stored
    disk: Path
    root_start: int

    @property
    def digest(self) -> str:
        return self.stored.rootfs.digest.hex

    @property
    def root(self) -> str:
        """The root partition for e2fsprogs."""
        return f"{self.disk}?offset={self.root_start}"


def boot_files(digest: str) -> dict[str, bytes]:
    return {
        UKI: uki(f"quiet composefs={digest}"),
        "EFI/BOOT/BOOTX64.EFI": kernel(),
        "loader/loader.conf": b"timeout 3\n",
    }


def installed(folder: Path, tars: list[bytes], esp: Mapping[str, bytes] | None = None) -> Demo:
    """Install an image; `esp` are its boot files, those of a good one by default."""
    repo = folder / "repo"
    with Repository.ensure(repo) as repository:
        stored = store_image(repository, "plain", tars)
        fields = {name: getattr(stored.bootable, name) for name in Bootable.__dataclass_fields__}
        files = boot_files(stored.rootfs.digest.hex) if esp is None else esp
        save(repository, Bootable(**(fields | {"name": "demo"})), stored.rootfs.image, files, None)
    plan = install(InstallRequest(repo=repo, target=folder / "disk.raw", name="demo"), silent).plan
    return Demo(repo, stored, folder / "disk.raw", plan.root.start)


@cache
def _data(disk: Path) -> list[tuple[int, bytes]]:
    """Return (offset, bytes) of what is no hole."""
    found, at = [], 0
    with disk.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        while at < size:
            try:
                start = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError:
                break
            at = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            found.append((start, os.pread(file.fileno(), at - start, start)))
    return found


def find(disk: Path, content: bytes) -> int:
    """Return where the bytes lie first on a disk that has not been changed.

    What is on the EFI system partition comes before the copy of it that the repository has as an object.
    """
    return min(start + data.index(content) for start, data in _data(disk) if content in data)


def copied(demo: Demo, folder: Path) -> Demo:
    disk = folder / "disk.raw"
    subprocess.run(["cp", "--sparse=always", demo.disk, disk], check=True)
    return Demo(demo.repo, demo.stored, disk, demo.root_start)


def debugfs(demo: Demo, request: str) -> None:
    """Let debugfs change the root file system, checksums and all."""
    done = subprocess.run(
        [program("debugfs"), "-w", "-R", request, demo.root], check=True, capture_output=True, text=True
    )
    assert len(done.stderr.splitlines()) == 1, done.stderr  # its version


def is_clean(demo: Demo) -> bool:
    return subprocess.run([program("e2fsck"), "-fn", demo.root], check=False, capture_output=True).returncode == 0
