"""P.7: keys from their making to an ESP and to OVMF's variables, read by openssl, mtools and virt-firmware."""

import json
import subprocess
import uuid
from pathlib import Path

import pytest

from oci2boot.errors import Error, FormatError, SignatureError, TargetError, ToolError
from oci2boot.formats.x509 import read_certificates
from oci2boot.workflows.keys import generate as workflow
from oci2boot.workflows.keys.executables import sign, verify
from oci2boot.workflows.keys.generate import GenerateRequest, enroll_in_firmware, enroll_on_esp, generate
from oci2boot.workflows.keys.signing import read_trusted
from oci2boot.workflows.progress import silent
from oci2boot.workflows.requests import SigningOptions
from tests.boot.debian import package
from tests.flips import flipped
from tests.keys import make, openssl
from tests.witness import program
from tests.workflows.sealable import kernel

NAMES = ["PK", "KEK", "db"]
OWNER = uuid.UUID("77fa9abd-0359-4d32-bd60-28f4e78f784b")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "keys"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOURCE_DATE_EPOCH", "1700000000")
        generate(GenerateRequest(folder=folder, name="Demo", owner=OWNER))
    return folder


def test_keys_are_for_their_owner_alone(keys: Path) -> None:
    assert [(keys / f"{name}.key").stat().st_mode & 0o777 for name in NAMES] == [0o600] * 3
    assert keys.stat().st_mode & 0o777 == 0o700


def test_openssl_reads_keys_and_certificates(keys: Path) -> None:
    for name in NAMES:
        assert openssl("verify", "-CAfile", keys / f"{name}.crt", keys / f"{name}.crt").endswith(b"OK\n")
        public = openssl("x509", "-in", keys / f"{name}.crt", "-noout", "-pubkey")
        assert openssl("pkey", "-in", keys / f"{name}.key", "-pubout") == public
    text = openssl("x509", "-in", keys / "db.crt", "-noout", "-text").decode()
    assert "Public-Key: (2048 bit)" in text
    assert "Subject: CN = Demo db" in text or "Subject: CN=Demo db" in text
    assert "Not Before: Nov 14 22:13:20 2023 GMT" in text


def test_the_signed_variables_depend_on_keys_and_time_alone(keys: Path, tmp_path: Path) -> None:
    """Signed again by hand from the keys: the same bytes."""
    for name, writer in (("PK", "PK"), ("KEK", "PK"), ("db", "KEK")):
        signed = (keys / f"{name}.auth").read_bytes()
        lists = (keys / f"{name}.esl").read_bytes()
        assert signed.endswith(lists)
        vendor = {"db": "d719b2cb-3d3a-4596-a3bc-dad00e67656f"}.get(name, "8be4df61-93ca-11d2-aa0d-00e098032b8c")
        content = name.encode("utf-16-le") + uuid.UUID(vendor).bytes_le + b"\x27\0\0\0" + signed[:16] + lists
        (tmp_path / "content").write_bytes(content)
        assert openssl("dgst", "-sha256", "-sign", keys / f"{writer}.key", tmp_path / "content") in signed


def test_keys_are_never_replaced(keys: Path) -> None:
    before = {path.name: path.read_bytes() for path in keys.iterdir()}
    with pytest.raises(TargetError, match="holds keys already"):
        generate(GenerateRequest(folder=keys))
    assert {path.name: path.read_bytes() for path in keys.iterdir()} == before


def test_keys_may_be_encrypted(tmp_path: Path) -> None:
    (tmp_path / "pass").write_text("se cret\n")
    generate(GenerateRequest(folder=tmp_path / "keys", passphrase=tmp_path / "pass"))
    key = tmp_path / "keys/db.key"
    assert key.read_text().startswith("-----BEGIN ENCRYPTED PRIVATE KEY-----")
    openssl("pkey", "-in", key, "-passin", "pass:se cret", "-noout")
    (tmp_path / "pass").write_text("\n")
    with pytest.raises(SignatureError, match="no passphrase"):
        generate(GenerateRequest(folder=tmp_path / "others", passphrase=tmp_path / "pass"))


@pytest.mark.parametrize(
    "request_",
    [
        GenerateRequest(folder=Path("k"), bits=1024),
        GenerateRequest(folder=Path("k"), bits=16384),
        GenerateRequest(folder=Path("k"), bits=2049),
        GenerateRequest(folder=Path("k"), name=""),
        GenerateRequest(folder=Path("k"), name="a\nb"),
        GenerateRequest(folder=Path("k"), name="x" * 80),
        GenerateRequest(folder=Path("k"), days=10**9),
        GenerateRequest(folder=Path("k"), days=-1),
    ],
)
def test_keys_that_cannot_be_are_refused(
    request_: GenerateRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Error):
        generate(request_)
    assert list(tmp_path.iterdir()) == []


def test_an_esp_that_is_mounted_gets_the_variables(keys: Path, tmp_path: Path) -> None:
    """Where systemd-boot looks: systemd-boot(7), "loader/keys/NAME/"."""
    for _ in range(2):
        enroll_on_esp(keys, tmp_path)
        found = {path.name: path.read_bytes() for path in (tmp_path / "loader/keys/auto").iterdir()}
        assert found == {f"{name}.auth": (keys / f"{name}.auth").read_bytes() for name in NAMES}


def test_mok_manager_finds_the_certificate(keys: Path, tmp_path: Path) -> None:
    """P.7: shim's MokManager lists `.cer` files, and takes DER."""
    assert enroll_on_esp(keys, tmp_path, mok=True) == ["db.cer"]
    assert (tmp_path / "db.cer").read_bytes() == openssl("x509", "-in", keys / "db.crt", "-outform", "DER")
    assert [path.name for path in tmp_path.iterdir()] == ["db.cer"]
    mok_manager = package("shim-unsigned") / "usr/lib/shim/mmx64.efi"
    assert ".cer".encode("utf-16-le") in mok_manager.read_bytes()


def disk_image(path: Path) -> Path:
    with path.open("wb") as file:
        file.truncate(80 << 20)
    table = "label: gpt\nstart=2048, size=131072, type=U\n"
    subprocess.run([program("sfdisk"), "-q", path], input=table, text=True, check=True, capture_output=True)
    argv: list[str | Path] = [program("mkfs.vfat"), "-F", "32", "--offset", "2048", path, "65536"]
    subprocess.run(argv, check=True, capture_output=True)
    subprocess.run([program("mmd"), "-i", f"{path}@@1M", "::/loader"], check=True)
    return path


def test_a_disk_image_gets_the_variables(keys: Path, tmp_path: Path) -> None:
    disk = disk_image(tmp_path / "disk.raw")
    for _ in range(2):
        enroll_on_esp(keys, disk)
        for name in NAMES:
            argv = [program("mcopy"), "-i", f"{disk}@@1M", f"::/loader/keys/auto/{name}.auth", "-"]
            found = subprocess.run(argv, check=True, capture_output=True).stdout
            assert found == (keys / f"{name}.auth").read_bytes()


def test_a_disk_without_a_place_for_keys_is_refused(keys: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk.raw"
    disk.write_bytes(bytes(4 << 20))
    with pytest.raises(Error):
        enroll_on_esp(keys, disk)
    subprocess.run(
        [program("sfdisk"), "-q", disk], input="label: gpt\n,,L\n", text=True, check=True, capture_output=True
    )
    with pytest.raises(TargetError, match="no EFI system partition"):
        enroll_on_esp(keys, disk)


def test_ovmf_knows_the_keys(keys: Path, tmp_path: Path) -> None:
    store = tmp_path / "vars.fd"
    enroll_in_firmware(keys, store)
    said = tmp_path / "vars.json"
    subprocess.run([program("virt-fw-vars"), "-i", store, "--output-json", said], check=True, capture_output=True)
    variables = {one["name"]: bytes.fromhex(one["data"]) for one in json.loads(said.read_bytes())["variables"]}
    for name in NAMES:
        assert variables[name] == (keys / f"{name}.esl").read_bytes()
    assert variables["SecureBootEnable"] == b"\x01"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_db_trusts_a_vendor_too(tmp_path: Path) -> None:
    """P.7: in the signed variable, in OVMF's store and, as what --db takes, in the signature list."""
    vendor = make(tmp_path, "vendor")
    folder, store = tmp_path / "keys", tmp_path / "vars.fd"
    generate(GenerateRequest(folder=folder, db=(vendor.path,)))
    lists = (folder / "db.esl").read_bytes()
    (own,) = read_certificates((folder / "db.crt").read_bytes())
    assert read_trusted([folder / "db.esl"]) == [own, vendor.certificate]
    assert (folder / "db.auth").read_bytes().endswith(lists)
    enroll_in_firmware(folder, store)
    said = tmp_path / "vars.json"
    subprocess.run([program("virt-fw-vars"), "-i", store, "--output-json", said], check=True, capture_output=True)
    variables = {one["name"]: bytes.fromhex(one["data"]) for one in json.loads(said.read_bytes())["variables"]}
    assert variables["db"] == lists
    assert vendor.certificate.der not in variables["KEK"] + variables["PK"]


def test_signature_lists_are_taken_for_certificates(keys: Path, tmp_path: Path) -> None:
    """P.7: what was signed by a listed key verifies; damaged lists and lists of hashes are refused."""
    program_file, signed = tmp_path / "a.efi", tmp_path / "signed.efi"
    program_file.write_bytes(kernel())
    sign(program_file, signed, SigningOptions(certificate=keys / "db.crt", key=str(keys / "db.key")), silent)
    subprocess.run([program("sbverify"), "--cert", keys / "db.crt", signed], check=True, capture_output=True)
    for name in ("db.esl", "db.crt"):
        (found,) = verify(signed, [keys / name]).signatures
        assert found.trusted_by == "CN=Demo db"
    with pytest.raises(SignatureError, match="none of the certificates given"):
        verify(signed, [keys / "KEK.esl"])
    (tmp_path / "bad.esl").write_bytes((keys / "db.esl").read_bytes()[:-1])
    with pytest.raises(FormatError, match="sizes do not fit"):
        verify(signed, [tmp_path / "bad.esl"])
    # EFI_CERT_SHA256_GUID with one hash; UEFI 2.10, section 32.4.1
    hashes = uuid.UUID("c1c41626-504c-4092-aca9-41f936934328").bytes_le + bytes([76, 0, 0, 0, 0, 0, 0, 0, 48, 0, 0, 0])
    (tmp_path / "hashes.esl").write_bytes(hashes + bytes(48))
    with pytest.raises(FormatError, match="without a certificate"):
        verify(signed, [tmp_path / "hashes.esl"])


def test_a_missing_virt_firmware_is_named(keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workflow, "find_program", lambda _: None)
    with pytest.raises(ToolError, match="virt-fw-vars is not installed") as caught:
        enroll_in_firmware(keys, tmp_path / "vars.fd")
    assert "virt-firmware" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("db.auth", lambda data: flipped(data, -1)),
        ("KEK.auth", lambda data: flipped(data, 4)),
        ("PK.auth", lambda _: b""),
        ("db.crt", lambda _: b""),
        ("GUID.txt", lambda _: b"no guid"),
    ],
)
def test_keys_that_firmware_would_refuse_are_not_enrolled(
    file: str, change: object, keys: Path, tmp_path: Path
) -> None:
    folder, esp = tmp_path / "keys", tmp_path / "esp"
    folder.mkdir()
    esp.mkdir()
    for path in keys.iterdir():
        data = path.read_bytes()
        (folder / path.name).write_bytes(change(data) if path.name == file else data)  # type: ignore[operator]
    if file != "GUID.txt":
        with pytest.raises(Error):
            enroll_on_esp(folder, esp)
        assert list(esp.iterdir()) == []
    with pytest.raises(Error):
        enroll_in_firmware(folder, tmp_path / "vars.fd")


def test_certificates_and_variables_of_different_keys_are_refused(keys: Path, tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    folder.mkdir()
    for path in keys.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "db.crt").write_bytes((keys / "KEK.crt").read_bytes())
    with pytest.raises(SignatureError, match="different keys"):
        enroll_in_firmware(folder, tmp_path / "vars.fd")


def test_a_bad_time_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    with pytest.raises(FormatError, match="SOURCE_DATE_EPOCH"):
        generate(GenerateRequest(folder=tmp_path / "keys"))


def test_the_certificates_are_those_in_the_lists(keys: Path) -> None:
    for name in NAMES:
        (certificate,) = read_certificates((keys / f"{name}.crt").read_bytes())
        lists = (keys / f"{name}.esl").read_bytes()
        assert lists[28:44] == OWNER.bytes_le
        assert lists[44:] == certificate.der
