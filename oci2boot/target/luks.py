"""The LUKS2 header of a partition, made in a plain file by an ordinary user. LUKS2 On-Disk Format 1.1.

The volume key is drawn here, and given to cryptsetup by way of memory: the blocks are encrypted as they are written,
and no device mapper is needed.
"""

import json
import os
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from oci2boot.errors import FormatError, TargetError, ToolError
from oci2boot.formats.xts import KEY_SIZE, SECTOR, decryptor, encryptor
from oci2boot.system.run import Argv, run
from oci2boot.target.copy import Progress
from oci2boot.target.filesystem import ext4_of, write_ext4_staged
from oci2boot.target.plan import LUKS_HEADER, DiskPlan, derive_uuid
from oci2boot.target.volume import Volume, pwrite_all

MAGIC: Final = b"LUKS\xba\xbe"
Read = Callable[[int, int], bytes]

_SYSFS_SECTOR: Final = 512
_PACKAGE: Final = "cryptsetup-bin"
_JSON_MAX: Final = 4 << 20
"""Bytes; section 2.2 has the sizes of the header's areas."""


@dataclass(frozen=True, slots=True)
class Secret:
    """What opens the partition; salts and volume key are random, so no two disks are equal."""

    passphrase: bytes = field(repr=False)
    pbkdf_memory: int | None = None
    """KiB that guessing one passphrase must take; by default what cryptsetup finds right for this machine."""


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
        run(argv, data=secret.passphrase, package=_PACKAGE)
    finally:
        os.close(memory)
    with header.open("rb") as file:
        return file.read(LUKS_HEADER), key


def write_encrypted(
    plan: DiskPlan, fd: int, secret: Secret | None, folder: Path, progress: Progress, *, blank: bool
) -> None:
    """Write header and file system; the header last, so that an interrupted disk has nothing that can be opened."""
    if secret is None:
        raise TargetError(f"the partition {ext4_of(plan).label} must be encrypted, but there is no passphrase for it")
    header, key = make_header(plan, secret, folder)
    ext4 = ext4_of(plan)
    volume = Volume(fd, ext4.start + ext4.header, blank, encryptor(key))
    write_ext4_staged(plan, volume, folder, progress)
    pwrite_all(fd, header, ext4.start)


def unlock(read: Read, passphrase: bytes, folder: Path) -> Read:
    """Return what reads the decrypted content of a partition; `folder` is for its header, which is no secret.

    Raises `FormatError` where the passphrase is wrong, or where it is encrypted in another way than here.
    """
    header = folder / "header"
    header.write_bytes(read(0, LUKS_HEADER))
    start = data_offset(run(["cryptsetup", "luksDump", "--dump-json-metadata", header], package=_PACKAGE))
    decrypt = decryptor(_volume_key(header, passphrase))

    def read_decrypted(offset: int, size: int) -> bytes:
        first = offset // SECTOR * SECTOR
        data = read(start + first, -(-(offset + size) // SECTOR) * SECTOR - first)
        return decrypt(first, data[: len(data) // SECTOR * SECTOR])[offset - first :][:size]

    return read_decrypted


def data_offset(metadata: bytes) -> int:
    """Return where the encrypted data begin, in bytes. LUKS2 On-Disk Format 1.1, section 3.3."""
    if len(metadata) > _JSON_MAX:
        raise FormatError("the LUKS2 header is too large")
    try:
        (segment,) = json.loads(metadata)["segments"].values()
        facts = {name: segment[name] for name in ("type", "size", "iv_tweak", "encryption", "sector_size")}
        offset = int(segment["offset"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FormatError("the LUKS2 header does not have the one segment that is read here") from error
    if facts != _SEGMENT or "integrity" in segment or offset < 0:
        raise FormatError("the root partition is encrypted in another way than that of `install`, and cannot be read")
    return offset


_SEGMENT: Final = {
    "type": "crypt",
    "size": "dynamic",
    "iv_tweak": "0",
    "encryption": "aes-xts-plain64",
    "sector_size": SECTOR,
}


def _volume_key(header: Path, passphrase: bytes) -> bytes:
    argv: list[str | Path] = [
        "cryptsetup", "luksDump", "--batch-mode", "--dump-volume-key", "--key-file", "-", header,
    ]  # fmt: skip
    try:
        said = run(argv, data=passphrase, package=_PACKAGE)
    except ToolError as error:
        raise FormatError(f"the passphrase does not open the root partition: {error.message}") from error
    # The option for a file takes none that is there already, so none in memory; the key is the last thing printed.
    key = bytes.fromhex(b"".join(re.findall(rb"\b[0-9a-f]{2}\b", said.rpartition(b"dump:")[2])).decode())
    if len(key) != KEY_SIZE:
        raise FormatError(f"the volume key of the root partition does not have {KEY_SIZE} bytes")
    return key
