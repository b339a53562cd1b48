"""P.7. Held to sbsign, sbverify, osslsigncode and openssl, and to what Debian and Microsoft signed."""

import subprocess
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from oci2boot.errors import Error, FormatError, LimitError, SignatureError
from oci2boot.formats import authenticode, pe
from oci2boot.formats.x509 import Certificate, read_certificates
from tests.boot.debian import kernel, package
from tests.flips import flipped
from tests.keys import Pair, make, openssl
from tests.witness import program

EFI = "usr/lib/systemd/boot/efi"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys")


@pytest.fixture(scope="module")
def db(folder: Path) -> Pair:
    return make(folder, "db")


@pytest.fixture(scope="module")
def image() -> bytes:
    return (package("systemd-boot-efi") / EFI / "systemd-bootx64.efi").read_bytes()


def signed_by(pair: Pair, image: bytes) -> bytes:
    tbs = authenticode.to_be_signed(authenticode.image_hash(image))
    return authenticode.attach(image, pair.certificate, pair.sign(tbs))


@pytest.fixture(scope="module")
def signed(db: Pair, image: bytes) -> bytes:
    return signed_by(db, image)


def test_others_accept_our_signature(db: Pair, signed: bytes, folder: Path) -> None:
    path = folder / "ours.efi"
    path.write_bytes(signed)
    said = subprocess.run([program("sbverify"), "--cert", db.path, path], check=True, capture_output=True, text=True)
    assert said.stdout + said.stderr == "Signature verification OK\n"
    argv: list[str | Path] = [program("osslsigncode"), "verify", "-CAfile", db.path, path]
    listed = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    assert "Signature verification: ok" in listed
    current = listed.partition("Current message digest    : ")[2].split()[0]
    assert current == authenticode.image_hash(signed).hex().upper()
    # osslsigncode says so beneath the line of the checksum where it is not the right one.
    assert "invalid" not in listed.lower()


def test_signing_twice_gives_the_same_bytes(db: Pair, image: bytes, signed: bytes) -> None:
    """C.24, B.5"""
    assert signed_by(db, image) == signed


def test_the_hash_does_not_change_by_signing(image: bytes, signed: bytes) -> None:
    assert authenticode.image_hash(signed) == authenticode.image_hash(image)


def test_an_image_of_odd_size_is_padded_first(db: Pair, image: bytes, folder: Path) -> None:
    odd = image + b"debug"
    path = folder / "odd.efi"
    path.write_bytes(signed_by(db, odd))
    subprocess.run([program("sbverify"), "--cert", db.path, path], check=True, capture_output=True)
    assert [found.anchor for found in authenticode.verify(path.read_bytes(), [db.certificate])] == [db.certificate]


@pytest.mark.parametrize("tool", ["sbsign", "osslsigncode"])
def test_signatures_of_other_signers_hold(tool: str, db: Pair, image: bytes, folder: Path) -> None:
    if tool == "sbsign":
        theirs = db.sbsign(image)
    else:
        source, target = folder / "in.efi", folder / "out.efi"
        source.write_bytes(image)
        target.unlink(missing_ok=True)
        argv: list[str | Path] = [program(tool), "sign", "-h", "sha256", "-key", db.key, "-certs", db.path]
        argv += ["-in", source, "-out", target]
        subprocess.run(argv, check=True, capture_output=True)
        theirs = target.read_bytes()
    (found,) = authenticode.verify(theirs, [db.certificate])
    assert found.anchor == found.signer == db.certificate


def test_both_signatures_of_debians_shim_lead_to_microsofts_authorities() -> None:
    """P.9: shim 16.1 is signed under the authorities of 2011 and of 2023; openssl takes the certificates out."""
    shim = (package("shim-signed") / "usr/lib/shim/shimx64.efi.signed").read_bytes()
    found = authenticode.verify(shim)
    assert [signature.anchor for signature in found] == [None, None]
    authorities: list[Certificate] = []
    for signature in authenticode.read_signatures(shim):
        raw = signature.pack_content_info()
        (authority,) = (
            one
            for one in read_certificates(openssl("pkcs7", "-inform", "DER", "-print_certs", data=raw))
            if "UEFI CA" in one.subject and "signer" not in one.subject
        )
        authorities.append(authority)
    assert [one.subject.partition(",")[0] for one in authorities] == [
        "CN=Microsoft Corporation UEFI CA 2011",
        "CN=Microsoft UEFI CA 2023",
    ]
    for number, authority in enumerate(authorities):
        anchors = [signature.anchor for signature in authenticode.verify(shim, [authority])]
        assert anchors == [authority if number == index else None for index in range(2)]


def test_what_debian_signed_holds() -> None:
    images = [
        package("grub-efi-amd64-signed") / "usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed",
        package("systemd-boot-efi-amd64-signed") / EFI / "systemd-bootx64.efi.signed",
        kernel()[1] / f"boot/vmlinuz-{kernel()[0]}",
    ]
    for path in images:
        (found,) = authenticode.verify(path.read_bytes())
        assert found.signer.subject.startswith("CN=Debian Secure Boot Signer")
        assert found.signer.issuer == "CN=Debian Secure Boot CA"


def test_an_image_may_have_several_signatures(db: Pair, image: bytes, folder: Path) -> None:
    other = make(folder, "other")
    both = signed_by(other, db.sbsign(image))
    for pair, index in ((db, 0), (other, 1)):
        anchors = [found.anchor for found in authenticode.verify(both, [pair.certificate])]
        assert [anchor is not None for anchor in anchors] == [index == 0, index == 1]
        path = folder / "both.efi"
        path.write_bytes(both)
        subprocess.run([program("sbverify"), "--cert", pair.path, path], check=True, capture_output=True)


def test_the_issuer_of_a_signer_is_trusted_only_as_an_authority(folder: Path, image: bytes) -> None:
    """UEFI 2.10, 32.5.3.3; OpenSSL refuses an issuer that is none as well."""
    authority = make(folder, "authority")
    leaf = make(folder, "leaf", "-CA", authority.path, "-CAkey", authority.key, "-addext", "basicConstraints=CA:FALSE")
    forged = make(folder, "forged", "-CA", leaf.path, "-CAkey", leaf.key)
    (found,) = authenticode.verify(signed_by(leaf, image), [authority.certificate])
    assert found.anchor == authority.certificate
    (found,) = authenticode.verify(signed_by(forged, image), [leaf.certificate])
    assert found.anchor is None


def test_a_certificate_that_only_looks_trusted_is_not(signed: bytes, folder: Path) -> None:
    imitation = make(folder, "imitation", "-subj", "/CN=db").certificate
    (found,) = authenticode.verify(signed, [imitation])
    assert found.anchor is None


def test_a_certificate_with_the_name_and_number_of_another_is_not_that_one(
    db: Pair, image: bytes, folder: Path
) -> None:
    """Made with the same key even: trust is in bytes."""
    serial = openssl("x509", "-in", db.path, "-noout", "-serial").decode().strip().partition("=")[2]
    twin = Pair(db.key, folder / "twin.crt")
    openssl(
        "req", "-new", "-x509", "-key", db.key, "-subj", "/CN=db", "-days", "9", "-set_serial", f"0x{serial}",
        "-out", twin.path,
    )  # fmt: skip
    assert twin.certificate.issuer_and_serial == db.certificate.issuer_and_serial
    (found,) = authenticode.verify(signed_by(twin, image), [db.certificate])
    assert found.anchor is None


def trusts(data: bytes, certificate: Certificate) -> bool:
    try:
        return any(found.anchor for found in authenticode.verify(data, [certificate]))
    except Error:
        return False


def test_a_byte_changed_anywhere_in_the_image_is_refused(db: Pair, signed: bytes) -> None:
    """All of the headers, both ends of every section, and places between. The PE checksum is not covered: by design."""
    headers = pe.parse(signed)
    check_sum = headers.optional_header_offset + 64
    places = set(range(headers.optional_header.size_of_headers)) - set(range(check_sum, check_sum + 4))
    for section in headers.sections:
        start, size = section.pointer_to_raw_data, section.size_of_raw_data
        places |= {start, start + size // 2, start + size - 1}
    places |= set(range(0, len(signed), 1009)) - set(range(check_sum, check_sum + 4))
    certificate = db.certificate
    assert trusts(signed, certificate)
    assert [at for at in sorted(places) if trusts(flipped(signed, at), certificate)] == []
    assert trusts(flipped(signed, check_sum), certificate)


def test_a_byte_changed_anywhere_in_our_signature_is_refused(db: Pair, image: bytes, signed: bytes) -> None:
    """The one encoding of a signature is accepted, no other: nothing in it is left unlooked at."""
    certificate = db.certificate
    assert [at for at in range(len(image), len(signed)) if trusts(flipped(signed, at), certificate)] == []


def test_more_or_less_at_the_end_is_refused(signed: bytes) -> None:
    for changed in (signed + bytes(8), signed[:-8], signed + signed[-8:]):
        with pytest.raises(FormatError):
            authenticode.verify(changed)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_to_signatures_raises_only_our_errors(data: st.DataObject) -> None:
    shim = (package("shim-signed") / "usr/lib/shim/shimx64.efi.signed").read_bytes()
    start = pe.parse(shim).directories[pe.SECURITY_DIRECTORY].virtual_address
    damaged = bytearray(shim)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(start, len(shim) - 1))
        change = data.draw(st.binary(min_size=1, max_size=4))
        damaged[at : at + len(change)] = change
    with suppress(Error):
        authenticode.verify(bytes(damaged))


def with_directory(data: bytes, directory: pe.DataDirectory) -> bytes:
    headers = pe.parse(data)
    at = headers.optional_header_offset + 112 + 8 * pe.SECURITY_DIRECTORY
    return data[:at] + directory.pack() + data[at + 8 :]


def test_tables_that_are_elsewhere_than_at_the_end_are_refused(image: bytes, signed: bytes) -> None:
    start, size = len(image), len(signed) - len(image)
    for directory in (
        pe.DataDirectory(start - 8, size + 8),
        pe.DataDirectory(start + 4, size - 4),
        pe.DataDirectory(start, size - 8),
        pe.DataDirectory(start, 0xFFFFFFF8),
        pe.DataDirectory(start, 0),
    ):
        with pytest.raises(FormatError):
            authenticode.verify(with_directory(signed, directory))


def test_entries_that_leave_their_table_are_refused(image: bytes, signed: bytes) -> None:
    at = len(image)
    for length in (0, 4, 8, 0xFFFFFFFF, len(signed) - at + 8):
        with pytest.raises(FormatError):
            authenticode.verify(signed[:at] + length.to_bytes(4, "little") + signed[at + 4 :])


def test_more_signatures_than_anyone_makes_are_refused(image: bytes, signed: bytes) -> None:
    table = signed[len(image) :] * (authenticode.MAX_SIGNATURES + 1)
    with pytest.raises(LimitError):
        authenticode.verify(with_directory(image, pe.DataDirectory(len(image), len(table))) + table)


def test_bytes_between_sections_are_refused(image: bytes) -> None:
    """No signature covers them, and firmware hashes others in their place."""
    headers = pe.parse(image)
    last = headers.sections[-1]
    moved = replace(last, pointer_to_raw_data=last.pointer_to_raw_data + 512).pack()
    at = headers.section_table_offset + (len(headers.sections) - 1) * len(moved)
    gapped = image[:at] + moved + image[at + len(moved) :] + bytes(512)
    with pytest.raises(FormatError, match="between"):
        authenticode.image_hash(gapped)


def test_a_signature_of_another_image_is_refused(image: bytes, signed: bytes) -> None:
    other = image[:-1] + b"x"
    moved = other + signed[len(image) :]
    with pytest.raises(SignatureError, match="changed"):
        authenticode.verify(with_directory(moved, pe.parse(signed).directories[pe.SECURITY_DIRECTORY]))


def test_a_signature_by_another_key_is_not_attached(db: Pair, image: bytes, folder: Path) -> None:
    stranger = make(folder, "stranger")
    tbs = authenticode.to_be_signed(authenticode.image_hash(image))
    for signature in (stranger.sign(tbs), db.sign(tbs + b"x"), b"", bytes(256)):
        with pytest.raises(SignatureError, match="CN=db"):
            authenticode.attach(image, db.certificate, signature)


@pytest.mark.parametrize(
    ("words", "why"),
    [(("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"), "no RSA key"), (("-newkey", "rsa:1024"), "1024 bits")],
)
def test_keys_that_firmware_does_not_take_are_refused(words: tuple[str, ...], why: str, folder: Path) -> None:
    with pytest.raises(SignatureError, match=why):
        make(folder, "weak", *words).certificate.public_key()


def test_bytes_that_are_no_certificate_are_refused(db: Pair) -> None:
    encoded = db.certificate.der
    pem = db.path.read_bytes()
    for bad in (
        b"", b"\x30", encoded[:-1], encoded + b"\0", b"\x30\x84\xff\xff\xff\xff", pem.replace(b"MII", b"!!!"),
        pem.replace(b"MII", b"MI="), b"\x30\x03\x30\x01\x00",
    ):  # fmt: skip
        with pytest.raises(FormatError):
            read_certificates(bad)
    with pytest.raises(LimitError):
        read_certificates(pem * 65)
    assert read_certificates(encoded) == read_certificates(pem) == [db.certificate]
    assert read_certificates(pem * 2) == [db.certificate] * 2


def test_the_size_of_a_signed_image_is_a_multiple_of_eight(db: Pair, image: bytes) -> None:
    assert {len(signed_by(db, image + bytes(extra))) % 8 for extra in range(9)} == {0}
