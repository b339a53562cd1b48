"""AES-XTS as dm-crypt does it: `aes-xts-plain64` in sectors of 4096 bytes. IEEE 1619; Linux, drivers/md/dm-crypt.c."""

from collections.abc import Callable, Iterator
from typing import Final

from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import XTS

SECTOR: Final = 4096
KEY_SIZE: Final = 64
"""Bytes: AES-256, and as much for the tweak."""
_TWEAK_UNIT: Final = 512
"""plain64 counts in these whatever the sector's size, unless the mapping says `iv_large_sectors`."""


def encryptor(key: bytes) -> Callable[[int, bytes | bytearray], bytes]:
    """Return what encrypts whole sectors; their offset is in bytes from the start of the encrypted data."""
    return _each(AES(key), Cipher.encryptor)


def decryptor(key: bytes) -> Callable[[int, bytes | bytearray], bytes]:
    """Return what decrypts whole sectors; their offset is in bytes from the start of the encrypted data."""
    return _each(AES(key), Cipher.decryptor)


def _each(
    algorithm: AES, direction: Callable[[Cipher[XTS]], CipherContext]
) -> Callable[[int, bytes | bytearray], bytes]:
    def sectors(offset: int, data: memoryview) -> Iterator[bytes]:
        for at in range(0, len(data), SECTOR):
            tweak = ((offset + at) // _TWEAK_UNIT).to_bytes(16, "little")
            yield direction(Cipher(algorithm, XTS(tweak))).update(data[at : at + SECTOR])

    return lambda offset, data: b"".join(sectors(offset, memoryview(data)))
