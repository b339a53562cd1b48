"""The LUKS2 header of a partition, made in a plain file by an ordinary user. LUKS2 On-Disk Format 1.1.

The volume key is drawn here, and given to cryptsetup by way of memory: the blocks are encrypted as they are written,
and no device mapper is needed.
"""

import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from oci2boot.errors import TargetError
from oci2boot.formats.xts import KEY_SIZE, SECTOR, encryptor
from oci2boot.system.run import Argv, run
from oci2boot.target.copy import Progress
from oci2boot.target.filesystem import ext4_of, write_ext4_staged
from oci2boot.target.plan import LUKS_HEADER, DiskPlan, derive_uuid
from oci2boot.target.volume import Volume, pwrite_all

_SYSFS_SECTOR: Final = 512


@dataclass(frozen=True, slots=True)
class Secret:
    """What opens the partition; salts and volume key are random, so no two disks are equal."""

    passphrase: bytes = field(repr=False)
    pbkdf_memory: int | None = None
    """KiB that guessing one passphrase shall take; by default what cryptsetup finds right for this machine."""


def luks_format_argv(plan: DiskPlan, header: Path, key: Path, pbkdf_memory: int | None) -> Argv:
    """The passphrase comes on standard input."""
    ext4 = ext4_of(plan)
    argv: list[str | Path] = [
        "cryptsetup", "luksFormat", "--batch-mode", "--type", "luks2",
        "--cipher", "aes-xts-plain64", "--key-size", str(8 * KEY_SIZE), "--sector-size", str(SECTOR),
        "--offset", str(LUKS_HEADER // _SYSFS_SECTOR),
        "--uuid", derive_uuid(ext4.guid.encode(), "luks"), "--label", ext4.label,
        "--volume-key-file", key, "--key-file", "-",
    ]  # fmt: skip
    if pbkdf_memory is not None:
        argv += ["--pbkdf", "argon2id", "--pbkdf-memory", str(pbkdf_memory), "--pbkdf-force-iterations", "4"]
    return [*argv, header]


def make_header(plan: DiskPlan, secret: Secret, folder: Path) -> tuple[bytes, bytes]:
    """Return the header and the volume key; `folder` is for temporary files without secrets in plain."""
    key = secrets.token_bytes(KEY_SIZE)
    header = folder / "header"
    with header.open("wb") as file:
        file.truncate(2 * LUKS_HEADER)
    memory = os.memfd_create("volume key", os.MFD_CLOEXEC)
    try:
        os.write(memory, key)
        place = Path(f"/proc/{os.getpid()}/fd/{memory}")
        argv = luks_format_argv(plan, header, place, secret.pbkdf_memory)
        run(argv, data=secret.passphrase, package="cryptsetup-bin")
    finally:
        os.close(memory)
    with header.open("rb") as file:
        return file.read(LUKS_HEADER), key


def write_encrypted(
    plan: DiskPlan, fd: int, secret: Secret | None, folder: Path, progress: Progress, *, blank: bool
) -> None:
    """Write header and file system; the header last, so that an interrupted disk has nothing that can be opened."""
    if secret is None:
        raise TargetError(f"the partition {ext4_of(plan).label} is to be encrypted, and there is no passphrase for it")
    header, key = make_header(plan, secret, folder)
    ext4 = ext4_of(plan)
    volume = Volume(fd, ext4.start + ext4.header, blank, encryptor(key))
    write_ext4_staged(plan, volume, folder, progress)
    pwrite_all(fd, header, ext4.start)
