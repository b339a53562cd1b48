"""What an attacker may change on a disk whose root file system is under dm-verity."""

import re
from collections.abc import Iterator
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Final

from oci2boot.boot.roothash import PARTITION_SIZE
from oci2boot.errors import FormatError, ToolError
from oci2boot.formats.gpt import Partition
from oci2boot.system.files import plain_errors
from oci2boot.system.run import run
from oci2boot.target.esp import mtools_environment
from oci2boot.target.opened import OpenedDisk, open_disk
from oci2boot.target.types import ESP_TYPE, ROOT_TYPES, SIGNATURE_TYPES, VERITY_TYPES
from oci2boot.workflows.progress import Report, Warned
from oci2boot.workflows.trial.tamper import BLOCK, INIT, Change, Tampering, flip_on_disk
from oci2boot.workflows.verify.erofs_files import fsck_is_missing
from oci2boot.workflows.verify.esp import find_root_signature
from oci2boot.workflows.verify.promises import DevicePromise

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


def verity_tamperings(disk: Path, uki: str, promise: DevicePromise, report: Report) -> Iterator[Tampering]:
    """Yield the changes that the kernel has to catch, by the root hash that the UKI promises."""
    root_hash = next(promise.root_hashes)
    with open_disk(disk) as opened:
        data = _partition(opened, ROOT_TYPES, root_hash.data_uuid)
        tree = data if promise.hash_offset else _partition(opened, VERITY_TYPES, root_hash.hash_uuid)
        init = _place_of_init(opened, data, report)
    yield Tampering("a byte of the file system's first block", _flip(data.start + 1), (DATA, REFUSED))
    if init is not None:
        yield Tampering("a byte of a file", _flip(data.start + init + 100), (DATA, REFUSED))
    # Behind its superblock, which nothing verifies, a tree begins with its top.
    top = tree.start + promise.hash_offset + BLOCK
    yield Tampering("a byte of the hash tree", _flip(top + 5), (TREE, REFUSED))
    if promise.signed:
        yield Tampering("the signature of the root hash taken away", _unsign(uki), (UNSIGNED,))


def _partition(opened: OpenedDisk, types: frozenset[str], guid: str) -> Partition:
    found = [part for part in opened.of_types(types) if part.guid == guid]
    if len(found) != 1:
        raise FormatError(f"{len(found) or 'no'} partition has the GUID {guid}, of the root hash that is promised")
    return found[0]


def _place_of_init(opened: OpenedDisk, data: Partition, report: Report) -> int | None:
    """Return where in the partition the content of a file begins that no boot goes without, by erofs-utils."""
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


def _flip(at: int) -> Change:
    return lambda disk: flip_on_disk(disk, at)


def _unsign(uki: str) -> Change:
    """Take away both signatures: what the boot loader hands over, and the partition."""

    def apply(disk: Path) -> None:
        with open_disk(disk) as opened:
            esp = opened.of_types({ESP_TYPE})[0]
            path = find_root_signature(opened.esp().files, uki)
            parts = opened.of_types(SIGNATURE_TYPES)
        if path is not None:
            run(["mdel", "-i", f"{disk}@@{esp.start}", f"::/{path}"], env=mtools_environment(0), package="mtools")
        with disk.open("r+b") as file:
            for part in parts:
                file.seek(part.start)
                file.write(bytes(min(part.size, PARTITION_SIZE)))

    return apply
