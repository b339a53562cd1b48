"""A firmware's variables as efivarfs shows them, with lists that virt-firmware makes."""

import uuid
from dataclasses import dataclass
from pathlib import Path

import pefile
from virt.firmware.efi import guids
from virt.firmware.efi.siglist import EfiSigDB
from virt.peutils.pesign import pe_authenticode_hash

from oci2boot.formats.x509 import to_pem
from tests.keys import Pair

OWNER = guids.parse_str("d719b2cb-3d3a-4596-a3bc-dad00e676560")
SHIM = "605dab50-e046-4300-abb6-3dd810dd8b23"
CERT_X509_SHA256 = "3bd2a492-96c0-4079-b420-fcf98ef103ed"
"""UEFI 2.10, 32.4.1: EFI_CERT_X509_SHA256_GUID."""


@dataclass(frozen=True, slots=True)
class Variables:
    folder: Path

    def put(self, name: str, vendor: str, value: bytes, attributes: int = 0x06) -> None:
        self.folder.mkdir(exist_ok=True)
        (self.folder / f"{name}-{vendor}").write_bytes(attributes.to_bytes(4, "little") + value)

    def secure_boot(self, *, on: bool = True) -> None:
        self.put("SecureBoot", guids.EfiGlobalVariable, bytes([on]))
        self.put("SetupMode", guids.EfiGlobalVariable, b"\0")

    def db(self, *keys: Pair, hashes: tuple[bytes, ...] = ()) -> None:
        self.put("db", guids.EfiImageSecurityDatabase, lists(*keys, hashes=hashes), 0x27)

    def dbx(self, *keys: Pair, hashes: tuple[bytes, ...] = (), more: bytes = b"") -> None:
        self.put("dbx", guids.EfiImageSecurityDatabase, lists(*keys, hashes=hashes) + more, 0x27)

    def shim(self, name: str, value: bytes) -> None:
        self.put(name, SHIM, value)


def lists(*keys: Pair, hashes: tuple[bytes, ...] = ()) -> bytes:
    made = EfiSigDB()
    for one in keys:
        made.add_cert_data(OWNER, to_pem("CERTIFICATE", one.certificate.der))
    for digest in hashes:
        made.add_hash(OWNER, digest)
    return bytes(made)


def image_hash(program: bytes, method: str = "sha256") -> bytes:
    """Return what db and dbx know a program by, as virt-firmware computes it."""
    return bytes(pe_authenticode_hash(pefile.PE(data=program), method))


def revoked_certificate(digest: bytes) -> bytes:
    """Return a list with the hash of a TBSCertificate, revoked at whatever time."""
    return list_of(CERT_X509_SHA256, digest + bytes(16))


def list_of(kind: str, data: bytes) -> bytes:
    """Return a list with one entry."""
    entry: bytes = OWNER.bytes_le + data
    head = uuid.UUID(kind).bytes_le
    return head + b"".join(size.to_bytes(4, "little") for size in (28 + len(entry), 0, len(entry))) + entry
