"""Signatures in EFI executables. Microsoft, "Windows Authenticode Portable Executable Signature Format"; UEFI, 32.5.

Signing is deterministic: a signature holds no time, so the same image and key give the same bytes, wherever the key is.
"""

import hashlib
import hmac
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from oci2boot.errors import FormatError, LimitError, SignatureError
from oci2boot.formats import der, pe
from oci2boot.formats.binary import U16, U32, Record
from oci2boot.formats.pkcs7 import CONTENT_TYPE, MESSAGE_DIGEST, SHA256, SignedData
from oci2boot.formats.x509 import Certificate, find_anchor

MAX_SIGNATURES: Final = 16
MAX_TABLE: Final = 4 << 20

ALIGNMENT: Final = 8
"""Of the certificate table in the file, and of each entry in the table."""

_REVISION: Final = 0x0200
_PKCS_SIGNED_DATA: Final = 0x0002
_CHECK_SUM_OFFSET: Final = 64
"""Of CheckSum in the optional header."""

SPC_INDIRECT_DATA: Final = der.oid("1.3.6.1.4.1.311.2.1.4")
_SPC_PE_IMAGE_DATA: Final = der.oid("1.3.6.1.4.1.311.2.1.15")
_OBSOLETE: Final = der.encode(der.context(0, constructed=False), "<<<Obsolete>>>".encode("utf-16-be"))
_PE_IMAGE_DATA: Final = der.encode(
    der.SEQUENCE,
    der.encode(der.BIT_STRING, b"\0"),
    der.encode(der.context(0), der.encode(der.context(2), _OBSOLETE)),
)


@dataclass(frozen=True, slots=True)
class WinCertificate(Record):
    length: U32
    revision: U16
    certificate_type: U16


@dataclass(frozen=True, slots=True)
class Signature:
    """A signature that holds for its image."""

    signed_data: SignedData
    anchor: Certificate | None
    """The certificate that makes it trusted."""

    @property
    def signer(self) -> Certificate:
        return self.signed_data.signer


def image_hash(data: bytes, algorithm: str = "sha256") -> bytes:
    """Return the hash that signatures and the firmware's db, dbx and PCR 4 have of an image.

    It covers all bytes but the checksum, the table of certificates and the pointer to it.
    """
    headers, end = _layout(data)
    view = memoryview(data)
    check_sum = headers.optional_header_offset + _CHECK_SUM_OFFSET
    entry = _table_entry(headers)
    hasher = hashlib.new(algorithm, view[:check_sum])
    hasher.update(view[check_sum + 4 : entry])
    hasher.update(view[entry + 8 : end])
    hasher.update(bytes(-end % ALIGNMENT))
    return hasher.digest()


def to_be_signed(digest: bytes) -> bytes:
    """Return the attributes that are signed for an image with this hash."""
    body = der.Reader(_indirect_data(digest)).take(der.SEQUENCE, "SpcIndirectDataContent").content
    return der.set_of(
        der.encode(der.SEQUENCE, CONTENT_TYPE, der.set_of(SPC_INDIRECT_DATA)),
        der.encode(
            der.SEQUENCE, MESSAGE_DIGEST, der.set_of(der.encode(der.OCTET_STRING, hashlib.sha256(body).digest()))
        ),
    )


def detached(digest: bytes, certificate: Certificate, signature: bytes) -> bytes:
    """Return the PKCS #7 signature of an image with this hash; the key signed `to_be_signed(digest)`."""
    tbs = to_be_signed(digest)
    certificate.check_signature(signature, tbs)
    return SignedData(
        content_type=SPC_INDIRECT_DATA,
        content=_indirect_data(digest),
        certificates=(certificate,),
        issuer_and_serial=certificate.issuer_and_serial,
        attributes=tbs,
        signature=signature,
    ).pack_content_info()


def attach(data: bytes, certificate: Certificate, signature: bytes) -> bytes:
    """Add the signature that the certificate's key made of `to_be_signed(image_hash(data))`, after those there are."""
    return attach_detached(data, detached(image_hash(data), certificate, signature))


def attach_detached(data: bytes, signed: bytes) -> bytes:
    """Add a PKCS #7 signature, after those there are; whether it holds, `verify` says."""
    headers, end = _layout(data)
    table = data[end:] if headers.signed else b""
    entry = WinCertificate(WinCertificate.layout().size + len(signed), _REVISION, _PKCS_SIGNED_DATA).pack() + signed
    table += entry + bytes(-len(entry) % ALIGNMENT)
    if len(table) > MAX_TABLE:
        raise LimitError(f"signatures of more than {MAX_TABLE} bytes")
    start = end + -end % ALIGNMENT
    result = bytearray().join((memoryview(data)[:end], bytes(start - end), table))
    at = _table_entry(headers)
    result[at : at + 8] = pe.DataDirectory(start, len(table)).pack()
    at = headers.optional_header_offset + _CHECK_SUM_OFFSET
    result[at : at + 4] = bytes(4)
    result[at : at + 4] = _check_sum(result).to_bytes(4, "little")
    return bytes(result)


def strip(data: bytes) -> bytes:
    """Return the executable without its signatures."""
    headers, end = _layout(data)
    result = bytearray(data[:end])
    at = _table_entry(headers)
    result[at : at + 8] = bytes(8)
    return bytes(result)


def read_signatures(data: bytes) -> list[SignedData]:
    """Return the signatures in an image, in order, without checking that they hold."""
    return list(map(SignedData.parse_content_info, raw_signatures(data)))


def raw_signatures(data: bytes) -> list[bytes]:
    """Return the signatures in an image as they stand there, PKCS #7."""
    headers, end = _layout(data)
    if not headers.signed:
        return []
    signatures: list[bytes] = []
    at, header = end, WinCertificate.layout().size
    while at < len(data):
        if len(signatures) == MAX_SIGNATURES:
            raise LimitError(f"an executable with more than {MAX_SIGNATURES} signatures")
        entry = WinCertificate.unpack(data, at)
        after = at + entry.length + -entry.length % ALIGNMENT
        if entry.length <= header or after > len(data):
            raise FormatError("an executable whose table of signatures is cut short")
        if (entry.revision, entry.certificate_type) != (_REVISION, _PKCS_SIGNED_DATA):
            raise FormatError("an executable with a signature of an unknown kind")
        value = der.Reader(data[at + header : after]).take(der.SEQUENCE, "a signature")
        end_of_value = at + header + len(value.raw)
        # Some signers count the padding in, some do not.
        if at + entry.length not in (end_of_value, end_of_value + -end_of_value % ALIGNMENT):
            raise FormatError("an executable with a signature of another size than its entry says")
        if any(data[end_of_value:after]):
            raise FormatError("an executable with bytes other than zeros after a signature")
        signatures.append(bytes(value.raw))
        at = after
    return signatures


def verify(data: bytes, trusted: Sequence[Certificate] = ()) -> list[Signature]:
    """Return the signatures of an image, after checking each; nothing for an unsigned image.

    Raises `SignatureError` where one does not fit. Whether its signer is trusted, says `anchor`.
    """
    digest = image_hash(data)
    return [_verify(signed, digest, trusted) for signed in read_signatures(data)]


def _verify(signed: SignedData, digest: bytes, trusted: Sequence[Certificate]) -> Signature:
    if signed.content_type != SPC_INDIRECT_DATA:
        raise FormatError("an executable with a signature of something else")
    content = der.Reader(signed.content).take(der.SEQUENCE, "what is signed")
    if len(content.raw) != len(signed.content):
        raise FormatError("an executable with a signature of more than the image")
    fields = content.members()
    fields.take(der.SEQUENCE, "the kind of what is signed").members().expect(_SPC_PE_IMAGE_DATA, "what is signed")
    info = fields.take(der.SEQUENCE, "the image's digest").members()
    fields.end("what is signed")
    info.expect(SHA256, "the image's digest algorithm")
    if not hmac.compare_digest(info.take(der.OCTET_STRING, "the image's digest").content, digest):
        raise SignatureError("the executable was changed after it was signed")
    info.end("the image's digest")
    if not signed.attributes:
        raise FormatError("an executable with a signature without signed attributes")
    # PKCS #7 leaves tag and length of the content out.
    signed.check(content.content)
    return Signature(signed, find_anchor(signed.signer, signed.certificates, trusted))


def _indirect_data(digest: bytes) -> bytes:
    return der.encode(
        der.SEQUENCE,
        der.encode(der.SEQUENCE, _SPC_PE_IMAGE_DATA, _PE_IMAGE_DATA),
        der.encode(der.SEQUENCE, SHA256, der.encode(der.OCTET_STRING, digest)),
    )


def _table_entry(headers: pe.Pe) -> int:
    """Return the offset of the data directory that points to the table of certificates."""
    count_at = 108 if headers.optional_header.magic == pe.PE32_PLUS else 92
    return headers.optional_header_offset + count_at + 4 + 8 * pe.SECURITY_DIRECTORY


def _layout(data: bytes) -> tuple[pe.Pe, int]:
    """Return the headers and the end of what is hashed, which is all of the file before its table of certificates.

    The hash is defined section by section; only where they follow each other is it one of the whole file.
    """
    headers = pe.parse(data)
    if len(headers.directories) <= pe.SECURITY_DIRECTORY:
        raise FormatError("an executable without a place for signatures")
    ranges = sorted(
        (section.pointer_to_raw_data, section.pointer_to_raw_data + section.size_of_raw_data)
        for section in headers.sections
        if section.size_of_raw_data
    )
    ranges = [(0, headers.optional_header.size_of_headers), *ranges]
    if any(end != start for (_, end), (start, _) in itertools.pairwise(ranges)):
        raise FormatError("an executable with bytes between its sections, which no signature would cover")
    table = headers.directories[pe.SECURITY_DIRECTORY]
    if not table.size:
        if table.virtual_address:
            raise FormatError("an executable with an empty table of signatures")
        return headers, len(data)
    start = table.virtual_address
    if start % ALIGNMENT or start < ranges[-1][1] or start + table.size != len(data) or table.size > MAX_TABLE:
        raise FormatError("an executable whose table of signatures is not at its end")
    return headers, start


def _check_sum(data: bytes | bytearray) -> int:
    """Return the PE checksum of an image whose CheckSum is zero: the folded sum of its 16-bit words, and its size."""
    # 2**16 is 1 modulo 65535, so large numbers may be added instead of single words.
    piece = 8192
    total = sum(int.from_bytes(data[at : at + piece], "little") for at in range(0, len(data), piece))
    folded = total % 0xFFFF
    return (0xFFFF if total and not folded else folded) + len(data)
