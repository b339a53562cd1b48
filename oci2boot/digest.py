"""Digests that name different things are different types, so that the checker keeps them apart."""

import hashlib
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal, Self

from oci2boot.errors import FormatError

Hash = Literal["sha256", "sha512"]

HEX_LENGTH = {"sha256": 64, "sha512": 128}
OTHER_HASH: Final[Mapping[Hash, Hash]] = MappingProxyType({"sha256": "sha512", "sha512": "sha256"})


def parse_hash(text: str) -> Hash:
    """Return the name of a hash function that fs-verity, dm-verity and OCI all know."""
    match text:
        case "sha256" | "sha512":
            return text
    raise FormatError(f"not a known hash function: {text!r}", hint="sha256 and sha512 are known")


def _check_hex(hex_digits: str, algorithm: str, what: str) -> None:
    if not re.fullmatch(rf"[0-9a-f]{{{HEX_LENGTH[algorithm]}}}", hex_digits):
        raise FormatError(f"not {what}: {hex_digits[:140]!r}")


def _parse_hex(hex_digits: str, what: str) -> tuple[Hash, bytes]:
    for algorithm, length in HEX_LENGTH.items():
        if len(hex_digits) == length:
            _check_hex(hex_digits, algorithm, what)
            return parse_hash(algorithm), bytes.fromhex(hex_digits)
    raise FormatError(f"not {what}: {hex_digits[:140]!r}")


@dataclass(frozen=True, slots=True)
class OciDigest:
    """The hash of some bytes, as in `sha256:9834…` in a manifest. OCI image-spec, descriptor.md, "Digests"."""

    algorithm: Hash
    hex: str

    @classmethod
    def parse(cls, text: str) -> Self:
        algorithm, _, hex_digits = text.partition(":")
        if algorithm not in HEX_LENGTH:
            raise FormatError(f"not an OCI digest: {text[:140]!r}")
        _check_hex(hex_digits, algorithm, "an OCI digest")
        return cls(parse_hash(algorithm), hex_digits)

    @classmethod
    def of(cls, data: bytes, algorithm: Hash = "sha256") -> Self:
        return cls(algorithm, hashlib.new(algorithm, data).hexdigest())

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"


@dataclass(frozen=True, slots=True)
class VerityDigest:
    """What the kernel's fs-verity calls a file with this content: it names objects in a composefs store."""

    algorithm: Hash
    raw: bytes

    @classmethod
    def parse(cls, hex_digits: str) -> Self:
        """Take 64 (sha256) or 128 (sha512) lower-case hex digits."""
        return cls(*_parse_hex(hex_digits, "an fs-verity digest"))

    @property
    def hex(self) -> str:
        return self.raw.hex()

    @property
    def path(self) -> str:
        """Where a store keeps the object, beneath `objects/`: first byte in hex, slash, the rest."""
        digits = self.raw.hex()
        return f"{digits[:2]}/{digits[2:]}"

    def __str__(self) -> str:
        return self.raw.hex()


@dataclass(frozen=True, slots=True)
class RootHash:
    """What dm-verity calls a device with this content. UAPI group, Discoverable Partitions Specification."""

    algorithm: Hash
    raw: bytes

    @classmethod
    def parse(cls, hex_digits: str) -> Self:
        """Take 64 (sha256) or 128 (sha512) lower-case hex digits."""
        return cls(*_parse_hex(hex_digits, "a root hash"))

    @property
    def data_uuid(self) -> str:
        """GUID of the partition with the data: the first 128 bits."""
        return str(uuid.UUID(bytes=self.raw[:16]))

    @property
    def hash_uuid(self) -> str:
        """GUID of the partition with the hash tree: the last 128 bits."""
        return str(uuid.UUID(bytes=self.raw[-16:]))

    def __str__(self) -> str:
        return self.raw.hex()


@dataclass(frozen=True, slots=True)
class External:
    """The content of a regular file that is an object of the store."""

    digest: VerityDigest
    size: int
    """In bytes."""
