"""Have a machine open its encrypted root by its own TPM: a unit that enrols it at the first boot, then removes itself.

Only the machine can do it, since only its TPM can seal. What opened the disk in the initramfs is needed once more: it
is taken from where systemd still has it, a credential or the kernel's keyring (two and a half minutes), so that it is
never written to the disk. Where it is not there any more, or there is no TPM, the unit fails, and the next boot tries
again. systemd-cryptenroll(1), systemd-cryptsetup@.service(8), systemd-ask-password(1)
"""

import re
from collections.abc import Iterator
from typing import Final

from oci2boot.errors import FormatError

DEFAULT_PCRS: Final = "7"
"""Secure Boot: its keys, and by whose certificate the boot loader was trusted. It stays the same over upgrades."""

PCR_MAX: Final = 23
_NAME: Final = "oci2boot-enrol-tpm2"
_FOLDER: Final = "/etc/systemd/system"
_UNIT: Final = f"{_FOLDER}/{_NAME}.service"
_DROPIN: Final = f"{_FOLDER}/multi-user.target.d/{_NAME}.conf"
_LATER: Final = {11: "the UKI and how far the boot is", 15: "the key of the opened disk"}
"""PCRs that differ between the initramfs, which opens the disk, and the running system, which enrols."""


def check_pcrs(text: str) -> None:
    """Take PCRs as systemd-cryptenroll does: `7`, `0+7`."""
    if not re.fullmatch(r"[0-9]{1,2}(\+[0-9]{1,2})*", text) or any(int(number) > PCR_MAX for number in text.split("+")):
        raise FormatError(f"not a list of PCRs: {text!r}", hint="write it as 7 or 0+7")
    for number in map(int, text.split("+")):
        if number in _LATER:
            raise FormatError(
                f"PCR {number} holds {_LATER[number]}: it never has the value of now when the disk is opened",
                hint="sign a policy for the UKI instead (ukify --pcr-private-key): it is enrolled with the PCRs",
            )


def enrolment(pcrs: str) -> Iterator[tuple[str, str]]:
    """Yield path and content of the files that have the machine enrol its TPM."""
    check_pcrs(pcrs)
    yield _UNIT, _SERVICE.format(pcrs=pcrs, unit=_UNIT, dropin=_DROPIN)
    yield _DROPIN, f"[Unit]\nWants={_NAME}.service\n"


# Restart: a TPM may be busy for longer than the kernel waits. --wipe-slot: run again after a power cut, it leaves one.
_SERVICE: Final = """\
[Unit]
Description=Enrol the TPM to open the encrypted root partition
StartLimitIntervalSec=10min
StartLimitBurst=3

[Service]
Type=oneshot
Restart=on-failure
RestartSec=5
KeyringMode=shared
ImportCredential=cryptsetup.passphrase
ExecStart=/bin/sh -c 'key=$${{CREDENTIALS_DIRECTORY-}}/cryptsetup.passphrase; \\
    if [ -f "$$key" ]; then cat "$$key"; \\
    else systemd-ask-password -n --no-tty --accept-cached --keyname=cryptsetup --timeout=1 "Root partition"; fi | \\
    systemd-cryptenroll --unlock-key-file=/dev/stdin --wipe-slot=tpm2 --tpm2-device=auto --tpm2-pcrs={pcrs} \\
        /dev/gpt-auto-root-luks'
ExecStartPost=/bin/sh -c 'rm {unit} {dropin} && sync -f /etc'
"""
