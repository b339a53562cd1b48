"""What a new machine is told before its first boot, read from the files that people name."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

from oci2boot.errors import FormatError
from oci2boot.sysroot.first_boot import CREDENTIAL_MAX, KEYS_MAX, FirstBoot
from oci2boot.sysroot.tpm2 import DEFAULT_PCRS
from oci2boot.system.files import read_limited
from oci2boot.target.luks import Secret
from oci2boot.workflows.options import Option, parse_size

PASSPHRASE_MAX: Final = 512
"""Bytes: what cryptsetup takes from a terminal."""
PBKDF_MEMORY_MIN: Final = 32 << 10
PBKDF_MEMORY_MAX: Final = 4 << 30
"""Bytes, of Argon2id. cryptsetup, docs/LUKS2-format"""


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedFirstBoot:
    """Options of `install` that a machine finds when it first boots."""

    hostname: Annotated[str | None, Option("--hostname", "host name of the machine, in its own /etc")] = None
    ssh_keys: Annotated[
        tuple[Path, ...], Option("--ssh-key", "file with public SSH keys that may log in as root; may be repeated")
    ] = ()
    credentials: Annotated[
        tuple[str, ...],
        Option(
            "--credential",
            "credential for the machine's services, in its /etc/credstore; may be repeated. Like all of /etc, host "
            "name, keys and credentials are not verified at boot; without LUKS, anyone who has the disk can read them",
            metavar="NAME=VALUE|NAME=@FILE",
        ),
    ] = ()
    tpm2: Annotated[
        bool,
        Option(
            "--luks-tpm2",
            "enrol the machine's TPM at its first boot: it opens the disk from then on, and the passphrase stays "
            "valid. The image's initramfs must have the TPM's libraries",
        ),
    ] = False
    tpm2_pcrs: Annotated[
        str,
        Option(
            "--luks-tpm2-pcrs",
            "PCRs that must be as they were for the TPM to open the disk. 7 is Secure Boot and its keys: it outlasts "
            "upgrades, and trusts all that those keys sign; without Secure Boot it keeps out nobody who has the "
            "machine. If the UKI brings a policy signed for PCR 11, that is enrolled too, and admits no other UKIs",
        ),
    ] = DEFAULT_PCRS

    def read(self) -> FirstBoot:
        return read_first_boot(self.hostname, self.ssh_keys, self.credentials, self.tpm2_pcrs if self.tpm2 else None)


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedSecret:
    """Options of `install` that encrypt a disk."""

    passphrase: Annotated[
        Path | None,
        Option(
            "--luks-passphrase-file",
            "encrypt the root partition with LUKS2; the passphrase is the one line of this file. Keys and identifiers "
            "are random: no two such disks are equal. The image's initramfs must have systemd-cryptsetup",
        ),
    ] = None
    pbkdf_memory: Annotated[
        int | None,
        Option(
            "--luks-pbkdf-memory",
            "memory that one try of a passphrase takes: 64M for a machine with 512M; by default what cryptsetup finds "
            "right for the machine that this runs on",
            metavar="SIZE",
            parse=parse_size,
        ),
    ] = None

    def read(self) -> Secret | None:
        return read_secret(self.passphrase, self.pbkdf_memory)


def read_first_boot(
    hostname: str | None, ssh_keys: Sequence[Path], credentials: Sequence[str], tpm2_pcrs: str | None = None
) -> FirstBoot:
    """Take credentials as `NAME=VALUE` or `NAME=@FILE`."""
    values: dict[str, bytes] = {}
    for words in credentials:
        name, equals, value = words.partition("=")
        if not equals:
            raise FormatError(f"a credential without a value: {name!r}", hint="write NAME=VALUE or NAME=@FILE")
        if name in values:
            raise FormatError(f"two credentials have the name {name!r}")
        values[name] = read_limited(Path(value[1:]), CREDENTIAL_MAX) if value.startswith("@") else value.encode()
    keys = b"".join(read_limited(path, KEYS_MAX).rstrip(b"\n") + b"\n" for path in ssh_keys)
    settings = FirstBoot(hostname, keys if ssh_keys else None, values, tpm2_pcrs)
    settings.check()
    return settings


def read_secret(path: Path | None, pbkdf_memory: int | None = None) -> Secret | None:
    """Read a passphrase: the file's only line, as it will be typed; `pbkdf_memory` is in bytes."""
    if path is None:
        if pbkdf_memory is not None:
            raise FormatError(
                "no memory is needed for a disk that is not encrypted", hint="encrypt it: --luks-passphrase-file FILE"
            )
        return None
    passphrase = read_limited(path, PASSPHRASE_MAX + 2).removesuffix(b"\n").removesuffix(b"\r")
    if not passphrase or b"\n" in passphrase or b"\0" in passphrase or len(passphrase) > PASSPHRASE_MAX:
        raise FormatError(f"{path} does not hold one line with a passphrase of 1 to {PASSPHRASE_MAX} bytes")
    if pbkdf_memory is not None and not PBKDF_MEMORY_MIN <= pbkdf_memory <= PBKDF_MEMORY_MAX:
        raise FormatError(f"{pbkdf_memory} bytes of memory for a passphrase: it must be from 32K to 4G")
    return Secret(passphrase, pbkdf_memory // 1024 if pbkdf_memory else None)
