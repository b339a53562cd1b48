"""Signature lists and signed variables, held to openssl, sbvarsign and virt-firmware. UEFI 2.10, 32.4.1 and 8.2.2."""

import subprocess
import uuid
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from oci2boot.errors import Error, FormatError, LimitError, SignatureError
from oci2boot.formats import esl
from oci2boot.formats.esl import AuthenticatedVariable, EfiTime, Entry
from tests.keys import Pair, make, openssl
from tests.witness import program

OWNER = uuid.UUID("77fa9abd-0359-4d32-bd60-28f4e78f784b")
MOMENT = 1700000000  # 2023-11-14 22:13:20 UTC, by date(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys")


@pytest.fixture(scope="module")
def db(folder: Path) -> Pair:
    return make(folder, "db")


@pytest.fixture(scope="module")
def kek(folder: Path) -> Pair:
    return make(folder, "KEK")


@pytest.fixture(scope="module")
def lists(db: Pair, kek: Pair) -> bytes:
    entries = [Entry(esl.X509, OWNER, pair.certificate.der) for pair in (db, kek)]
    return esl.pack_esl([*entries, Entry(esl.SHA256, OWNER, bytes(range(32)))])


@pytest.fixture(scope="module")
def signed(lists: bytes, kek: Pair) -> AuthenticatedVariable:
    time = EfiTime.of(MOMENT)
    signature = kek.sign(esl.variable_to_be_signed("db", lists, time))
    return AuthenticatedVariable.of(time, lists, kek.certificate, signature)


def test_lists_are_read_by_virt_firmware_and_back(lists: bytes, folder: Path, db: Pair, kek: Pair) -> None:
    path = folder / "db.esl"
    path.write_bytes(lists)
    said = subprocess.run([program("virt-fw-sigdb"), "-p", "-i", path], check=True, capture_output=True, text=True)
    shown = said.stdout + said.stderr
    assert [line.split()[1] for line in shown.splitlines() if "subject" in line] == ["CN=db", "CN=KEK"]
    assert bytes(range(32)).hex() in shown
    entries = esl.parse_esl(lists)
    assert esl.certificates(entries) == [db.certificate, kek.certificate]
    assert esl.pack_esl(entries) == lists


def test_one_list_may_hold_several_entries() -> None:
    hashes = [bytes([number]) * 32 for number in range(3)]
    body = b"".join(OWNER.bytes_le + one for one in hashes)
    header = esl.SignatureListHeader(esl.SHA256.bytes_le, 28 + len(body), 0, 48).pack()
    assert esl.parse_esl(header + body) == [Entry(esl.SHA256, OWNER, one) for one in hashes]


def test_openssl_accepts_the_signature_of_a_variable(signed: AuthenticatedVariable, folder: Path, kek: Pair) -> None:
    """What is signed is written out here by hand, as the specification lists it."""
    time = bytes.fromhex("e7070b0e160d1400") + bytes(8)
    assert signed.pack()[:16] == time
    database = uuid.UUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f")
    content = "db".encode("utf-16-le") + database.bytes_le + b"\x27\0\0\0" + time + signed.content
    pkcs7, data = folder / "db.p7", folder / "db.data"
    pkcs7.write_bytes(signed.signed_data.pack_content_info())
    data.write_bytes(content)
    openssl(
        "smime", "-verify", "-inform", "DER", "-in", pkcs7, "-binary", "-content", data, "-CAfile", kek.path,
        "-purpose", "any",
    )  # fmt: skip


def test_variables_that_sbvarsign_signed_are_read(lists: bytes, folder: Path, kek: Pair) -> None:
    source, target = folder / "in.esl", folder / "out.auth"
    source.write_bytes(lists)
    attributes = "NON_VOLATILE,BOOTSERVICE_ACCESS,RUNTIME_ACCESS,TIME_BASED_AUTHENTICATED_WRITE_ACCESS"
    subprocess.run(
        [
            program("sbvarsign"), "--key", kek.key, "--cert", kek.path, "--attr", attributes,
            "--output", target, "db", source,
        ],
        check=True,
        capture_output=True,
    )  # fmt: skip
    found = AuthenticatedVariable.parse(target.read_bytes())
    assert found.content == lists
    assert found.pack() == target.read_bytes()
    # sbvarsign 0.9.4 writes the month of localtime(3), which counts from 0, and signs it so.
    found.check("db", [kek.certificate])


def test_a_variable_is_for_one_name_and_by_one_of_its_writers(
    signed: AuthenticatedVariable, db: Pair, kek: Pair
) -> None:
    signed.check("db", [db.certificate, kek.certificate])
    with pytest.raises(SignatureError):
        signed.check("KEK", [kek.certificate])
    with pytest.raises(SignatureError, match="not signed by a key that may write it"):
        signed.check("db", [db.certificate])
    for other in (
        replace(signed, content=signed.content[:-1] + b"x"),
        replace(signed, time=replace(signed.time, second=21)),
    ):
        with pytest.raises(SignatureError):
            other.check("db", [kek.certificate])


def test_packing_is_the_inverse_of_parsing(signed: AuthenticatedVariable) -> None:
    assert AuthenticatedVariable.parse(signed.pack()) == signed


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 4000), change=st.binary(min_size=1, max_size=4), cut=st.integers(0, 4000))
def test_damage_raises_only_our_errors(
    signed: AuthenticatedVariable, kek: Pair, at: int, change: bytes, cut: int
) -> None:
    data = bytearray(signed.pack())
    data[at : at + len(change)] = change
    with suppress(Error):
        found = AuthenticatedVariable.parse(bytes(data[:cut]) if cut % 2 else bytes(data))
        found.check("db", [kek.certificate])
        esl.certificates(esl.parse_esl(found.content))


def header(list_size: int, header_size: int, entry_size: int) -> bytes:
    return esl.SignatureListHeader(esl.SHA256.bytes_le, list_size, header_size, entry_size).pack()


@pytest.mark.parametrize(
    "data",
    [
        b"\0" * 27, header(0, 0, 48), header(27, 0, 48), header(76, 0, 48), header(28, 0xFFFFFFFF, 48),
        header(76, 0, 0) + bytes(48), header(76, 0, 16) + bytes(48), header(76, 0, 47) + bytes(48),
    ],
)  # fmt: skip
def test_lists_whose_sizes_do_not_fit_are_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        esl.parse_esl(data)


def test_lists_are_bounded() -> None:
    with pytest.raises(LimitError):
        esl.parse_esl(bytes(esl.MAX_ESL + 1))
    body = bytes(17 * 5000)
    with pytest.raises(LimitError):
        esl.parse_esl(header(28 + len(body), 0, 17) + body)


def test_times_that_firmware_cannot_hold_are_refused() -> None:
    with pytest.raises(FormatError):
        EfiTime.of(10**12)
