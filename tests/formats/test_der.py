"""ITU-T X.690 against openssl, and the encodings that BER has but DER has not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oci2boot.errors import FormatError
from oci2boot.formats import der
from tests.keys import openssl


def test_what_is_encoded_openssl_reads() -> None:
    data = der.encode(
        der.SEQUENCE,
        der.oid("1.2.840.113549.1.7.2"),
        der.oid("2.16.840.1.101.3.4.2.1"),
        der.integer(0),
        der.integer(127),
        der.integer(128),
        der.integer(65537),
        der.set_of(der.integer(300), der.integer(2)),
        der.encode(der.OCTET_STRING, bytes(300)),
    )
    shown = openssl("asn1parse", "-inform", "DER", data=data).decode().splitlines()
    assert [line.rpartition(":")[2] for line in shown[1:7]] == [
        "pkcs7-signedData", "sha256", "00", "7F", "80", "010001",
    ]  # fmt: skip
    assert [line.rpartition(":")[2] for line in shown[8:10]] == ["02", "012C"]
    assert "l= 300 prim: OCTET STRING" in shown[10]


@given(st.lists(st.binary(max_size=200), max_size=5))
def test_reading_is_the_inverse_of_writing(parts: list[bytes]) -> None:
    data = der.encode(der.SEQUENCE, *(der.encode(der.OCTET_STRING, part) for part in parts))
    reader = der.Reader.within(data, der.SEQUENCE, "it")
    assert [reader.take(der.OCTET_STRING, "a part").content for _ in parts] == parts
    reader.end("it")


# Each would have a shorter or other encoding, X.690 section 10.1, or is cut short.
@pytest.mark.parametrize(
    "data",
    [
        "", "04", "0481", "048101", "04810100", "0481050102030405", "04820001ff", "0480ff0000", "04850000000001ff",
        "04847fffffff", "0402ff", "1f8100", "04830000ff",
    ],
)  # fmt: skip
def test_other_encodings_are_refused(data: str) -> None:
    with pytest.raises(FormatError):
        der.Reader.within(bytes.fromhex(data), der.OCTET_STRING, "it")


def test_what_follows_or_is_of_another_kind_is_refused() -> None:
    with pytest.raises(FormatError, match="followed by 1 bytes"):
        der.Reader.within(der.integer(1) + b"\0", der.INTEGER, "it")
    with pytest.raises(FormatError, match="tag"):
        der.Reader.within(der.integer(1), der.OCTET_STRING, "it")
    with pytest.raises(FormatError, match="not the one expected"):
        der.Reader(der.integer(1)).expect(der.integer(2), "it")
