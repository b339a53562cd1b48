"""Keys and certificates made by openssl."""

import subprocess
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from oci2boot.boot.sign import KeySigner, load_key
from oci2boot.formats.x509 import Certificate, read_certificates
from tests.witness import program


def openssl(*words: str | Path, data: bytes | None = None) -> bytes:
    done = subprocess.run([program("openssl"), *map(str, words)], check=False, input=data, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


@dataclass(frozen=True, slots=True)
class Pair:
    key: Path
    path: Path
    """Of the certificate."""

    @property
    def certificate(self) -> Certificate:
        (found,) = read_certificates(self.path.read_bytes())
        return found

    @property
    def signer(self) -> KeySigner:
        """What the program itself signs with."""
        return KeySigner(self.certificate, load_key(self.key.read_bytes()))

    def sign(self, data: bytes) -> bytes:
        key = load_pem_private_key(self.key.read_bytes(), None)
        assert isinstance(key, RSAPrivateKey)
        return key.sign(data, PKCS1v15(), SHA256())

    def sbsign(self, data: bytes) -> bytes:
        """Return an EFI program with a signature by sbsign(1)."""
        with TemporaryDirectory() as folder:
            plain, signed = Path(folder, "plain.efi"), Path(folder, "signed.efi")
            plain.write_bytes(data)
            words: list[str | Path] = ["--key", self.key, "--cert", self.path, "--output", signed, plain]
            subprocess.run([program("sbsign"), *words], check=True, capture_output=True)
            return signed.read_bytes()


def make(folder: Path, name: str, *words: str | Path) -> Pair:
    """Make a key and a certificate; `words` for openssl-req(1) say how, other than RSA-2048 signed by itself."""
    pair = Pair(folder / f"{name}.key", folder / f"{name}.crt")
    kind = [] if "-newkey" in words else ["-newkey", "rsa:2048"]
    openssl(
        "req", "-new", "-x509", "-nodes", "-sha256", "-days", "30", "-subj", f"/CN={name}", *kind, *words,
        "-keyout", pair.key, "-out", pair.path,
    )  # fmt: skip
    return pair
