"""What a new machine is told before its first boot, read from the files that people name."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from oci2boot.errors import FormatError
from oci2boot.sysroot.first_boot import CREDENTIAL_MAX, KEYS_MAX, FirstBoot
from oci2boot.system.files import read_limited
from oci2boot.target.luks import Secret

PASSPHRASE_MAX: Final = 512
"""Bytes: what cryptsetup takes from a terminal."""
PBKDF_MEMORY_MIN: Final = 32 << 10
PBKDF_MEMORY_MAX: Final = 4 << 30
"""Bytes, of Argon2id. cryptsetup, docs/LUKS2-format"""


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
        raise FormatError(f"{pbkdf_memory} bytes of memory for a passphrase: from 32K to 4G can be asked for")
    return Secret(passphrase, pbkdf_memory // 1024 if pbkdf_memory else None)
