"""Signature lists, and the signed form in which PK, KEK and db are written. UEFI 2.10, sections 32.4.1 and 8.2.2."""

import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Final, Literal, Self

from oci2boot.errors import FormatError, LimitError, SignatureError
from oci2boot.formats.binary import U8, U16, U32, Record
from oci2boot.formats.pkcs7 import DATA, SignedData
from oci2boot.formats.x509 import Certificate, read_certificates

MAX_ESL: Final = 1 << 20
MAX_ENTRIES: Final = 4096

X509: Final = uuid.UUID("a5c059a1-94e4-4aa7-87b5-ab155c2bf072")
SHA256: Final = uuid.UUID("c1c41626-504c-4092-aca9-41f936934328")
IMAGE_HASHES: Final = {
    uuid.UUID("826ca512-cf10-4ac9-b187-be01496631bd"): "sha1",
    uuid.UUID("0b6e5233-a65c-44c9-9407-d9ab83bfc8bd"): "sha224",
    SHA256: "sha256",
    uuid.UUID("ff3e5307-9fd0-48c9-85f1-8ad56c701e01"): "sha384",
    uuid.UUID("093e0fae-a6c4-4f50-9f1b-d41e2b89c19a"): "sha512",
}
"""Kinds of entries that name a program by its Authenticode hash."""
X509_HASHES: Final = {
    uuid.UUID("3bd2a492-96c0-4079-b420-fcf98ef103ed"): "sha256",
    uuid.UUID("7076876e-80c2-4ee6-aad2-28b349a6865b"): "sha384",
    uuid.UUID("446dbf63-2502-4cda-bcfa-2465d2b0fe9d"): "sha512",
}
"""Kinds of entries that revoke a certificate by the hash of its TBSCertificate, with a time behind the hash."""
_PKCS7: Final = uuid.UUID("4aafd29d-68df-49ee-8aa9-347d375665a7")
_GLOBAL_VARIABLE: Final = uuid.UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")
_SECURITY_DATABASE: Final = uuid.UUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f")

Variable = Literal["PK", "KEK", "db"]
VENDORS: Final[dict[Variable, uuid.UUID]] = {
    "PK": _GLOBAL_VARIABLE,
    "KEK": _GLOBAL_VARIABLE,
    "db": _SECURITY_DATABASE,
}
ATTRIBUTES: Final = 0x27
"""Non-volatile, boot service and runtime access, time-based authenticated write access."""

_WIN_CERT_REVISION: Final = 0x0200
_WIN_CERT_TYPE_EFI_GUID: Final = 0x0EF1


@dataclass(frozen=True, slots=True)
class SignatureListHeader(Record):
    signature_type: Annotated[bytes, "16s"]
    signature_list_size: U32
    signature_header_size: U32
    signature_size: U32


@dataclass(frozen=True, slots=True)
class EfiTime(Record):
    year: U16
    month: U8
    day: U8
    hour: U8
    minute: U8
    second: U8
    pad1: U8
    nanosecond: U32
    time_zone: U16
    daylight: U8
    pad2: U8

    @classmethod
    def of(cls, seconds: int) -> Self:
        """Take a Unix time; the fields after the second must be zero in a signed variable."""
        try:
            moment = datetime.fromtimestamp(seconds, UTC)
        except (ValueError, OverflowError, OSError) as error:
            raise FormatError(f"not a time that firmware knows: {seconds}") from error
        return cls(moment.year, moment.month, moment.day, moment.hour, moment.minute, moment.second, 0, 0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class WinCertificateUefiGuid(Record):
    length: U32
    revision: U16
    certificate_type: U16
    certificate_guid: Annotated[bytes, "16s"]


@dataclass(frozen=True, slots=True)
class Entry:
    kind: uuid.UUID
    owner: uuid.UUID
    data: bytes


def pack_esl(entries: Iterable[Entry]) -> bytes:
    """Return one list for each entry: certificates have no size in common."""
    header = SignatureListHeader.layout().size
    lists = []
    for entry in entries:
        size = 16 + len(entry.data)
        lists.append(SignatureListHeader(entry.kind.bytes_le, header + size, 0, size).pack())
        lists.append(entry.owner.bytes_le + entry.data)
    return b"".join(lists)


def parse_esl(data: bytes) -> list[Entry]:
    if len(data) > MAX_ESL:
        raise LimitError(f"signature lists of {len(data)} bytes, at most {MAX_ESL} are read")
    entries: list[Entry] = []
    at, header_size = 0, SignatureListHeader.layout().size
    while at < len(data):
        header = SignatureListHeader.unpack(data, at)
        end = at + header.signature_list_size
        start = at + header_size + header.signature_header_size
        if header.signature_size <= 16 or start > end or end > len(data) or (end - start) % header.signature_size:
            raise FormatError("a signature list whose sizes do not fit")
        if len(entries) + (end - start) // header.signature_size > MAX_ENTRIES:
            raise LimitError(f"signature lists of more than {MAX_ENTRIES} entries")
        kind = uuid.UUID(bytes_le=header.signature_type)
        for entry in range(start, end, header.signature_size):
            owner = uuid.UUID(bytes_le=bytes(data[entry : entry + 16]))
            entries.append(Entry(kind, owner, bytes(data[entry + 16 : entry + header.signature_size])))
        at = end
    return entries


def certificates(entries: Iterable[Entry]) -> list[Certificate]:
    return [Certificate.parse(entry.data) for entry in entries if entry.kind == X509]


def trusted_certificates(data: bytes) -> list[Certificate]:
    """Return the certificates of a file: signature lists as the firmware's db is, one as DER, or any number as PEM."""
    if data[:16] not in (X509.bytes_le, SHA256.bytes_le):
        return read_certificates(data)
    found = certificates(parse_esl(data))
    if not found:
        raise FormatError("signature lists without a certificate")
    return found


def variable_to_be_signed(name: Variable, content: bytes, time: EfiTime) -> bytes:
    return name.encode("utf-16-le") + VENDORS[name].bytes_le + ATTRIBUTES.to_bytes(4, "little") + time.pack() + content


@dataclass(frozen=True, slots=True)
class AuthenticatedVariable:
    """A new value of PK, KEK or db, signed by a key that the firmware lets write it: EFI_VARIABLE_AUTHENTICATION_2."""

    time: EfiTime
    signed_data: SignedData
    content: bytes

    @classmethod
    def of(cls, time: EfiTime, content: bytes, signer: Certificate, signature: bytes) -> Self:
        """Take the signature of `variable_to_be_signed` by the signer's key."""
        return cls(
            time,
            SignedData(
                content_type=DATA,
                content=b"",
                certificates=(signer,),
                issuer_and_serial=signer.issuer_and_serial,
                attributes=b"",
                signature=signature,
            ),
            content,
        )

    def pack(self) -> bytes:
        # Firmware older than 2018 takes the SignedData only without a ContentInfo around it.
        signed = self.signed_data.pack()
        size = WinCertificateUefiGuid.layout().size + len(signed)
        header = WinCertificateUefiGuid(size, _WIN_CERT_REVISION, _WIN_CERT_TYPE_EFI_GUID, _PKCS7.bytes_le)
        return self.time.pack() + header.pack() + signed + self.content

    @classmethod
    def parse(cls, data: bytes) -> Self:
        if len(data) > MAX_ESL:
            raise LimitError(f"a signed variable of {len(data)} bytes, at most {MAX_ESL} are read")
        time = EfiTime.unpack(data)
        at = EfiTime.layout().size
        header = WinCertificateUefiGuid.unpack(data, at)
        kind = (header.revision, header.certificate_type, header.certificate_guid)
        start, end = at + WinCertificateUefiGuid.layout().size, at + header.length
        if kind != (_WIN_CERT_REVISION, _WIN_CERT_TYPE_EFI_GUID, _PKCS7.bytes_le) or not start < end <= len(data):
            raise FormatError("not a signed variable")
        return cls(time, SignedData.parse(data[start:end]), data[end:])

    def check(self, name: Variable, writers: Iterable[Certificate]) -> None:
        """See that one of these certificates' keys signed it as the value of `name`."""
        signed = self.signed_data
        if signed.content_type != DATA or signed.content or signed.signer not in list(writers):
            raise SignatureError(f"a value of {name} that is not signed by a key that may write it")
        signed.check(variable_to_be_signed(name, self.content, self.time))
