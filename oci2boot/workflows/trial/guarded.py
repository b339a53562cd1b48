"""Bytes that fs-verity or dm-verity guards, changed on the medium: no file system would let anyone write them."""

import re
import stat
from collections.abc import Collection
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Final

from oci2boot.boot.roothash import PARTITION_SIZE
from oci2boot.digest import External, VerityDigest
from oci2boot.errors import FormatError, ToolError
from oci2boot.formats.ext4 import VERITY_ALIGNMENT
from oci2boot.formats.gpt import Partition
from oci2boot.system.files import plain_errors
from oci2boot.system.run import run
from oci2boot.target.esp import mtools_environment
from oci2boot.target.opened import OpenedDisk, open_disk
from oci2boot.target.types import ESP_TYPE, ROOT_TYPES, SIGNATURE_TYPES, VERITY_TYPES
from oci2boot.workflows.progress import Report, Warned
from oci2boot.workflows.trial.tamper import INIT, Change, Tampering
from oci2boot.workflows.verify.dm_verity import find_partition
from oci2boot.workflows.verify.erofs_files import fsck_is_missing
from oci2boot.workflows.verify.esp import find_root_signature
from oci2boot.workflows.verify.promises import DevicePromise

BLOCK: Final = 4096

INITRAMFS: Final = r"oci2boot: FATAL: promised is the image .*, found is .*"
KERNEL: Final = r"fs-verity .*FILE CORRUPTED.*"
DATA: Final = r"verity: [^\n]*(?<!meta)data block \d+ is corrupted"
TREE: Final = r"verity: [^\n]*metadata block \d+ is corrupted"
UNSIGNED: Final = (
    r"oci2boot: FATAL: [^\n]*no signature[^\n]*|(?i:fail[^\n]*signature[^\n]*|signature[^\n]*(fail|no such)[^\n]*)"
)
REFUSED: Final = (
    r"oci2boot: FATAL: .*|Kernel panic - not syncing.*|(?:Failed to|Dependency failed for) [^\n]*(?i:root)[^\n]*"
    r"|[Ee]mergency [Mm]ode.*"
)
"""By which a machine gives up; the last two are systemd's, in an initramfs of the image's own."""


def image_tamperings(disk: Path, image: VerityDigest, init: External) -> list[Tampering]:
    """Return the changes that the initramfs or the kernel has to catch, by the rootfs image that is promised."""
    with open_disk(disk) as opened:
        found = [
            Tampering("a byte of the EROFS image", _flip(_place(opened, image, 70 * BLOCK + 1)), (INITRAMFS,)),
            Tampering("UKI A with rootfs B", _swap(image, init.digest), (INITRAMFS,)),
            Tampering("a byte of a file", _flip(_place(opened, init.digest, 100)), (KERNEL,)),
        ]
        if init.size > BLOCK:
            tree = -(-init.size // VERITY_ALIGNMENT) * VERITY_ALIGNMENT
            change = _flip(_place(opened, init.digest, tree))
            found.append(Tampering("a byte of a file's Merkle tree", change, (KERNEL,)))
    return found


def device_tamperings(disk: Path, uki: str, promise: DevicePromise, report: Report) -> list[Tampering]:
    """Return the changes that the kernel has to catch, by the root hash that the UKI promises."""
    root_hash = next(promise.root_hashes)
    with open_disk(disk) as opened:
        data = find_partition(opened, "root", ROOT_TYPES, root_hash.data_uuid)
        tree = data if promise.hash_offset else find_partition(opened, "hash", VERITY_TYPES, root_hash.hash_uuid)
        init = _place_of_init(opened, data, report)
    found = [Tampering("a byte of the file system's first block", _flip(data.start + 1), (DATA, REFUSED))]
    if init is not None:
        found.append(Tampering("a byte of a file", _flip(data.start + init + 100), (DATA, REFUSED)))
    # Behind its superblock, which nothing verifies, a tree begins with its top.
    top = tree.start + promise.hash_offset + BLOCK
    found.append(Tampering("a byte of the hash tree", _flip(top + 5), (TREE, REFUSED)))
    if promise.signed:
        found.append(Tampering("the signature of the root hash taken away", _unsign(uki), (UNSIGNED,)))
    return found


# Where


def _place(opened: OpenedDisk, digest: VerityDigest, position: int) -> int:
    """Return where on the disk a byte of an object lies; behind its content, of its fs-verity metadata."""
    fs = opened.root()
    number = fs.find(_object_path(digest).encode())
    if number is None or stat.S_IFMT(fs.inode(number).mode) != stat.S_IFREG:
        raise FormatError(f"object {digest} is missing from the disk")
    block, offset = divmod(position, BLOCK)
    for extent in fs.extents(number):
        if extent.logical <= block < extent.logical + extent.length:
            return _start(opened, ROOT_TYPES) + (extent.physical + block - extent.logical) * BLOCK + offset
    raise FormatError(f"object {digest} has nothing at byte {position}")


def _place_of_init(opened: OpenedDisk, data: Partition, report: Report) -> int | None:
    """Return where in the partition the content of a file begins that every boot needs, by erofs-utils."""
    if missing := fsck_is_missing():
        report(Warned(f"no byte of a file is tried: {missing}"))
        return None
    path = INIT.decode()
    with plain_errors(ToolError, "copy the file system for dump.erofs"), NamedTemporaryFile(prefix="oci2boot-") as file:
        file.writelines(opened.pieces(data, data.size))
        file.flush()
        said = run(["dump.erofs", f"--path={path}", "-e", file.name], package="erofs-utils")
    extent = re.search(r"^ +0: .*: +(\d{1,18})\.\.", said.decode(errors="replace"), re.MULTILINE)
    if extent is None:
        raise FormatError(f"{path} of the image has nothing that could be tampered with")
    return int(extent[1])


def _start(opened: OpenedDisk, types: Collection[str]) -> int:
    return opened.of_types(types)[0].start


def _object_path(digest: VerityDigest) -> str:
    return f"/composefs/objects/{digest.path}"


# What is done


def _flip(at: int) -> Change:
    """Flip a bit of the byte at an offset."""

    def apply(disk: Path) -> None:
        with disk.open("r+b") as file:
            file.seek(at)
            old = file.read(1)[0]
            file.seek(at)
            file.write(bytes([old ^ 1]))

    return apply


def _swap(image: VerityDigest, other: VerityDigest) -> Change:
    """Put another whole fs-verity file under the name of the promised image."""

    def apply(disk: Path) -> None:
        with open_disk(disk) as opened:
            start = _start(opened, ROOT_TYPES)
        for command in (f"unlink {_object_path(image)}", f"ln {_object_path(other)} {_object_path(image)}"):
            run(["debugfs", "-w", "-R", command, f"{disk}?offset={start}"], package="e2fsprogs")

    return apply


def _unsign(uki: str) -> Change:
    """Take away both signatures: what the boot loader hands over, and the partition."""

    def apply(disk: Path) -> None:
        with open_disk(disk) as opened:
            start = _start(opened, {ESP_TYPE})
            path = find_root_signature(opened.esp().files, uki)
            parts = opened.of_types(SIGNATURE_TYPES)
        if path is not None:
            run(["mdel", "-i", f"{disk}@@{start}", f"::/{path}"], env=mtools_environment(0), package="mtools")
        with disk.open("r+b") as file:
            for part in parts:
                file.seek(part.start)
                file.write(bytes(min(part.size, PARTITION_SIZE)))

    return apply
