"""The keys of a machine under Secure Boot, and the variables by which it learns them. UEFI 2.10, section 32.3."""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, Self

from oci2boot.boot.sign import KeySigner, Signer
from oci2boot.errors import SignatureError
from oci2boot.formats import esl
from oci2boot.formats.esl import AuthenticatedVariable, EfiTime, Entry, Variable
from oci2boot.formats.x509 import MIN_RSA_BITS, Certificate

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

VARIABLES: Final[tuple[Variable, ...]] = ("db", "KEK", "PK")
"""In the order of their writing: with PK the firmware leaves Setup Mode, and asks for signatures."""
MAX_RSA_BITS: Final = 4096
"""More than firmware's heaps and watchdogs are made for."""
MAX_NAME: Final = 64
"""Of a common name. RFC 5280, appendix A.1, ub-common-name."""

MAX_DAYS: Final = 36525

ENROLMENT: Final = "loader/keys/auto"
"""On the ESP, where systemd-boot looks for keys. systemd-boot(7)."""


def check_parameters(bits: int, days: int, name: str) -> None:
    if not MIN_RSA_BITS <= bits <= MAX_RSA_BITS or bits % 1024:
        raise SignatureError(f"keys of {bits} bits: firmware takes 2048, 3072 and 4096")
    if not 0 < days <= MAX_DAYS:
        raise SignatureError(f"certificates cannot be good for {days} days, at most for {MAX_DAYS}")
    if not name.isprintable() or not 0 < len(name) <= MAX_NAME - len(" KEK"):
        raise SignatureError(f"not a name for keys: {name[:80]!r}")


def generate_pair(common_name: str, bits: int, days: int, start: int) -> KeySigner:
    """Make an RSA key and the certificate that it signs for itself, good for `days` after the Unix time `start`."""
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import rsa
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.serialization import Encoding

    key = rsa.generate_private_key(65537, bits)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)])
    begin = datetime.fromtimestamp(start, UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, SHA256())
    )
    return KeySigner(Certificate.parse(built.public_bytes(Encoding.DER)), key)


def key_to_pem(key: "RSAPrivateKey", passphrase: bytes | None) -> bytes:
    from cryptography.hazmat.primitives.serialization import (
        BestAvailableEncryption,
        Encoding,
        NoEncryption,
        PrivateFormat,
    )

    encryption = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)


@dataclass(frozen=True, slots=True)
class Enrolment:
    """Values of the three variables, as lists and as what the firmware takes."""

    lists: Mapping[Variable, bytes]
    variables: Mapping[Variable, AuthenticatedVariable]

    @classmethod
    def of(
        cls, signers: Mapping[Variable, Signer], owner: uuid.UUID, time: int, others: Sequence[Certificate] = ()
    ) -> Self:
        """Sign PK by itself, KEK by PK and db by KEK; the same keys and time give the same bytes.

        `others` go into db beside the signers' own: Microsoft's, for the firmware of cards, or a vendor's.
        """
        moment = EfiTime.of(time)
        writers: dict[Variable, Signer] = {"PK": signers["PK"], "KEK": signers["PK"], "db": signers["KEK"]}
        lists: dict[Variable, bytes] = {}
        variables: dict[Variable, AuthenticatedVariable] = {}
        for name in VARIABLES:
            writer = writers[name]
            held = [signers[name].certificate, *(others if name == "db" else ())]
            lists[name] = esl.pack_esl([Entry(esl.X509, owner, certificate.der) for certificate in held])
            signature = writer.sign(esl.variable_to_be_signed(name, lists[name], moment))
            variables[name] = AuthenticatedVariable.of(moment, lists[name], writer.certificate, signature)
        return cls(lists, variables)

    @classmethod
    def parse(cls, variables: Mapping[Variable, bytes]) -> Self:
        """Read the three `.auth` files, and see that the key that the firmware asks for signed each."""
        parsed = {name: AuthenticatedVariable.parse(data) for name, data in variables.items()}
        held = {name: esl.certificates(esl.parse_esl(variable.content)) for name, variable in parsed.items()}
        parsed["PK"].check("PK", held["PK"])
        parsed["KEK"].check("KEK", held["PK"])
        parsed["db"].check("db", held["KEK"] + held["PK"])
        return cls({name: variable.content for name, variable in parsed.items()}, parsed)
