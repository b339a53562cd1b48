"""Keys that can sign and keys that cannot; requests that leave the machine. P.7, B.5"""

import base64
import json
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from oci2boot.boot.sign import (
    KeySigner,
    ResponseSigner,
    SignRequest,
    SignResponse,
    check_key_name,
    check_signed,
    load_key,
    sign_image,
    sign_tool_argv,
)
from oci2boot.errors import Error, FormatError, LimitError, SignatureError
from oci2boot.formats import authenticode
from tests.boot.debian import package
from tests.keys import Pair, make, openssl


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys")


@pytest.fixture(scope="module")
def db(folder: Path) -> Pair:
    return make(folder, "db")


@pytest.fixture(scope="module")
def other(folder: Path) -> Pair:
    return make(folder, "other")


@pytest.fixture(scope="module")
def image() -> bytes:
    return (package("systemd-boot-efi") / "usr/lib/systemd/boot/efi/addonx64.efi.stub").read_bytes()


# Every form that openssl writes a key in.
@pytest.mark.parametrize(
    "words",
    [
        ("rsa", "-traditional"),
        ("pkcs8", "-topk8", "-nocrypt"),
        ("pkcs8", "-topk8", "-nocrypt", "-outform", "DER"),
        ("pkcs8", "-topk8", "-passout", "pass:se cret", "-v2", "aes-256-cbc"),
        ("rsa", "-traditional", "-aes128", "-passout", "pass:se cret"),
    ],
)
def test_keys_are_read_in_every_form(words: tuple[str, ...], db: Pair) -> None:
    data = openssl(*words, "-in", db.key)
    encrypted = "pass:se cret" in words
    key = load_key(data, b"se cret" if encrypted else None)
    assert KeySigner(db.certificate, key).sign(b"text") == db.sign(b"text")
    if encrypted:
        with pytest.raises(SignatureError, match="is encrypted") as caught:
            load_key(data)
        assert "passphrase" in str(caught.value.hint)
        with pytest.raises(SignatureError, match="the wrong passphrase") as caught:
            load_key(data, b"guess")
        assert "guess" not in str(caught.value)
        assert caught.value.__cause__ is None
    else:
        with pytest.raises(SignatureError, match="not encrypted"):
            load_key(data, b"se cret")


def test_a_key_of_another_certificate_is_refused(db: Pair, other: Pair) -> None:
    with pytest.raises(SignatureError, match="does not belong to the certificate of CN=db"):
        KeySigner(db.certificate, load_key(other.key.read_bytes()))


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("EC", "-pkeyopt", "ec_paramgen_curve:P-256"), "not an RSA key"),
        (("ED25519",), "not an RSA key"),
        (("RSA", "-pkeyopt", "rsa_keygen_bits:1024"), "1024 bits, at least 2048 are needed"),
    ],
)
def test_keys_that_firmware_cannot_check_are_refused(words: tuple[str, ...], why: str) -> None:
    with pytest.raises(SignatureError, match=why):
        load_key(openssl("genpkey", "-algorithm", *words))


@pytest.mark.parametrize("data", [b"", b"-----BEGIN PRIVATE KEY-----\nMII=\n-----END PRIVATE KEY-----\n", b"\x30\x00"])
def test_bytes_that_are_no_key_are_refused(data: bytes) -> None:
    with pytest.raises(SignatureError, match="cannot be read"):
        load_key(data)


def test_a_key_does_not_show(db: Pair) -> None:
    assert "key" not in repr(db.signer).partition("certificate")[2].replace("Certificate", "")


def test_an_image_is_signed_once_by_each(db: Pair, other: Pair, image: bytes) -> None:
    once = sign_image(image, db.signer)
    assert sign_image(once, db.signer) == once
    twice = sign_image(once, other.signer)
    assert [found.signer for found in authenticode.verify(twice)] == [db.certificate, other.certificate]


def test_what_comes_back_from_elsewhere_is_checked(db: Pair, other: Pair, image: bytes) -> None:
    check_signed(image, sign_image(image, db.signer), db.certificate)
    for wrong in (image, sign_image(image, other.signer), sign_image(image + bytes(8), db.signer)):
        with pytest.raises(SignatureError, match="came back"):
            check_signed(image, wrong, db.certificate)


# ---- offline


def by_hand(request: bytes, pair: Pair) -> bytes:
    """Answer a request with nothing but JSON and openssl."""
    signatures = []
    for item in json.loads(request)["items"]:
        words: list[str | Path] = ["pkeyutl", "-sign", "-inkey", pair.key, "-pkeyopt", "digest:sha256"]
        signature = openssl(*words, data=bytes.fromhex(item["digest"]))
        signatures.append({"digest": item["digest"], "signature": base64.b64encode(signature).decode()})
    return json.dumps({"format": "oci2boot.sign-response.v1", "signatures": signatures}).encode()


def test_signing_elsewhere_gives_the_same_bytes(db: Pair, image: bytes) -> None:
    """B.5, C.25: the key's holder has openssl alone; the signature is attached to the image that is still here."""
    request = SignRequest.of({"a.efi": image, "same.efi": image, "b.efi": image + bytes(8)}, db.certificate)
    assert [item.name for item in request.items] == ["a.efi", "b.efi"]
    assert SignRequest.parse(request.pack()) == request
    response = SignResponse.parse(by_hand(request.pack(), db))
    assert sign_image(image, ResponseSigner(db.certificate, response)) == sign_image(image, db.signer)
    assert response == request.answer(db.signer) == SignResponse.parse(response.pack())


def test_what_is_signed_already_is_not_asked_for(db: Pair, image: bytes) -> None:
    assert SignRequest.of({"a.efi": sign_image(image, db.signer)}, db.certificate).items == ()


def test_an_answer_to_another_request_is_refused(db: Pair, other: Pair, image: bytes) -> None:
    request = SignRequest.of({"a.efi": image}, db.certificate)
    with pytest.raises(SignatureError, match="no signature for one of the images"):
        sign_image(image + bytes(8), ResponseSigner(db.certificate, request.answer(db.signer)))
    with pytest.raises(SignatureError, match="belongs to another"):
        request.answer(other.signer)
    wrong = SignResponse.parse(by_hand(request.pack(), other))
    with pytest.raises(SignatureError, match="not by the key of CN=db"):
        sign_image(image, ResponseSigner(db.certificate, wrong))


def test_a_request_for_two_certificates_is_refused(db: Pair, other: Pair, image: bytes) -> None:
    """Whose key is meant would depend on the reader."""
    honest = json.loads(SignRequest.of({"a.efi": image}, db.certificate).pack())
    both = honest["certificate"] + json.loads(SignRequest.of({}, other.certificate).pack())["certificate"]
    with pytest.raises(FormatError, match="for one certificate"):
        SignRequest.parse(json.dumps({**honest, "certificate": both}).encode())


def test_a_request_to_sign_something_else_is_refused(db: Pair, image: bytes) -> None:
    """The holder of the key looks at an image's hash; what is signed follows from it, and from nothing else."""
    honest = json.loads(SignRequest.of({"a.efi": image}, db.certificate).pack())
    for change in (
        {"image_sha256": "00" * 32},
        {"digest": "00" * 32},
        {"to_be_signed": base64.b64encode(b"I owe you").decode()},
    ):
        forged = {**honest, "items": [{**honest["items"][0], **change}]}
        with pytest.raises(SignatureError, match="something other"):
            SignRequest.parse(json.dumps(forged).encode())


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{", b"[]", b"{}", b"[" * 100_000, b'{"format": "oci2boot.sign-response.v1"}',
        b'{"format": "oci2boot.sign-response.v1", "signatures": [1]}',
        b'{"format": "oci2boot.sign-response.v1", "signatures": [{"digest": "zz", "signature": ""}]}',
        b'{"format": "oci2boot.sign-response.v1", "signatures": [{"digest": "00", "signature": "*"}]}',
        b'{"format": "oci2boot.sign-response.v1", "signatures": [{"digest": "00"}]}',
    ],
)  # fmt: skip
def test_bad_responses_are_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        SignResponse.parse(data)


def test_responses_are_bounded() -> None:
    with pytest.raises(LimitError):
        SignResponse.parse(b" " * (9 << 20))
    with pytest.raises(LimitError):
        SignResponse.parse(b'{"format": "oci2boot.sign-response.v1", "signatures": [' + b"{}," * 1024 + b"{}]}")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(at=st.integers(0, 2000), change=st.binary(min_size=1, max_size=3))
def test_damaged_requests_raise_only_our_errors(db: Pair, image: bytes, at: int, change: bytes) -> None:
    data = bytearray(SignRequest.of({"a.efi": image}, db.certificate).pack())
    data[at : at + len(change)] = change
    with suppress(Error):
        SignRequest.parse(bytes(data))


# ---- tools


def test_a_pin_does_not_go_where_others_see_it() -> None:
    check_key_name("pkcs11:token=boot;object=db?pin-source=file:/run/pin")
    with pytest.raises(SignatureError, match="other users"):
        check_key_name("pkcs11:token=boot;object=db?pin-value=1234")


def test_calls_of_the_tools() -> None:
    """The forms that were seen to work with a SoftHSM token."""
    token, cert, source, target = "pkcs11:object=db", Path("c"), Path("i"), Path("o")
    assert sign_tool_argv("sbsign", token, cert, source, target, 0) == [
        "sbsign", "--engine", "pkcs11", "--key", token, "--cert", cert, "--output", target, source,
    ]  # fmt: skip
    assert sign_tool_argv("systemd-sbsign", token, cert, source, target, 0)[2:5] == [
        "--private-key-source=provider:pkcs11", "--private-key", token,
    ]  # fmt: skip
    called = sign_tool_argv("osslsigncode", token, cert, source, target, 7, Path("m.so"))
    assert called[4:6] == ["-pkcs11module", Path("m.so")]
    assert called[called.index("-time") + 1] == "7"
