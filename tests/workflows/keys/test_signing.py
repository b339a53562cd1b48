"""Every way to a private key gives a signature that sbverify accepts, and a bad one gives one sentence. P.7, B.5"""

import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from oci2boot.errors import Error, SignatureError, SourceError
from oci2boot.formats import authenticode
from oci2boot.oci.reference import Reference
from oci2boot.workflows.keys import signing as workflow
from oci2boot.workflows.keys.signing import sign_files
from oci2boot.workflows.make.convert import convert
from oci2boot.workflows.progress import Event, Warned, silent
from oci2boot.workflows.requests import BootOptions, ConvertRequest, SigningOptions
from tests.boot.debian import package
from tests.keys import Pair, make, openssl
from tests.witness import program

NAME = "EFI/Linux/a.efi"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys")


@pytest.fixture(scope="module")
def db(folder: Path) -> Pair:
    return make(folder, "db")


@pytest.fixture(scope="module")
def image() -> bytes:
    return (package("systemd-boot-efi") / "usr/lib/systemd/boot/efi/systemd-bootx64.efi").read_bytes()


@pytest.fixture(scope="module")
def inline(db: Pair, image: bytes) -> bytes:
    return sign_files({NAME: image}, SigningOptions(certificate=db.path, key=str(db.key)), silent)[NAME]


def test_executables_are_signed_and_nothing_else_is_touched(db: Pair, image: bytes, inline: bytes) -> None:
    files = {NAME: image, "EFI/BOOT/BOOTX64.EFI": image, "loader/loader.conf": b"timeout 3\n"}
    signed = sign_files(files, SigningOptions(certificate=db.path, key=str(db.key)), silent)
    assert list(signed.items()) == [
        (NAME, inline), ("EFI/BOOT/BOOTX64.EFI", inline), ("loader/loader.conf", b"timeout 3\n"),
    ]  # fmt: skip


def test_a_command_signs_with_the_same_result(db: Pair, image: bytes, inline: bytes) -> None:
    options = SigningOptions(certificate=db.path, command=f"openssl dgst -sha256 -sign {db.key}")
    assert sign_files({NAME: image}, options, silent)[NAME] == inline


def test_request_and_response_give_the_same_result(db: Pair, image: bytes, inline: bytes, tmp_path: Path) -> None:
    request, response = tmp_path / "request.json", tmp_path / "response.json"
    events: list[Event] = []
    options = SigningOptions(certificate=db.path, request=request)
    assert sign_files({NAME: image}, options, events.append) == {NAME: image}
    assert any(isinstance(event, Warned) and "nothing is signed yet" in event.text for event in events)
    workflow.answer(request, db.key, None, response)
    assert sign_files({NAME: image}, replace(options, request=None, response=response), silent)[NAME] == inline


@pytest.mark.parametrize("tool", ["sbsign", "osslsigncode"])
def test_tools_sign(tool: str, db: Pair, image: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    options = SigningOptions(certificate=db.path, key=str(db.key), tool=tool)  # type: ignore[arg-type]
    path = tmp_path / "signed.efi"
    path.write_bytes(sign_files({NAME: image}, options, silent)[NAME])
    subprocess.run([program("sbverify"), "--cert", db.path, path], check=True, capture_output=True)
    if tool == "osslsigncode":
        assert path.read_bytes() == sign_files({NAME: image}, options, silent)[NAME]


@pytest.fixture(scope="module")
def token(db: Pair, folder: Path) -> Iterator[tuple[str, Path]]:
    """Give the URI of the key in a SoftHSM token, its PIN in a file, and the library that reaches it."""
    (folder / "tokens").mkdir()
    (folder / "pin").write_text("1234")
    (folder / "softhsm.conf").write_text(f"directories.tokendir = {folder / 'tokens'}\n")
    openssl("pkcs8", "-topk8", "-nocrypt", "-in", db.key, "-out", folder / "db.pkcs8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOFTHSM2_CONF", str(folder / "softhsm.conf"))
        for words in (
            ["--init-token", "--free", "--label", "boot", "--so-pin", "5678"],
            ["--import", folder / "db.pkcs8", "--token", "boot", "--label", "db", "--id", "01"],
        ):
            argv: list[str | Path] = [program("softhsm2-util"), "--pin", "1234", *words]
            subprocess.run(argv, check=True, capture_output=True)
        library = next(path for path in Path("/usr/lib").rglob("libsofthsm2.so"))
        yield f"pkcs11:token=boot;object=db;type=private?pin-source=file:{folder / 'pin'}", library


@pytest.mark.parametrize("tool", ["sbsign", "osslsigncode"])
def test_keys_in_tokens_sign(tool: str, token: tuple[str, Path], db: Pair, image: bytes, tmp_path: Path) -> None:
    """P.7: the key never leaves the token."""
    uri, library = token
    options = SigningOptions(certificate=db.path, key=uri, tool=tool, pkcs11_module=library)  # type: ignore[arg-type]
    path = tmp_path / "signed.efi"
    path.write_bytes(sign_files({NAME: image}, options, silent)[NAME])
    subprocess.run([program("sbverify"), "--cert", db.path, path], check=True, capture_output=True)


def test_a_passphrase_comes_from_a_file(db: Pair, image: bytes, inline: bytes, tmp_path: Path) -> None:
    key, passphrase = tmp_path / "encrypted.key", tmp_path / "passphrase"
    openssl("pkcs8", "-topk8", "-in", db.key, "-out", key, "-passout", "pass:ünder cover")
    passphrase.write_text("ünder cover\n")
    options = SigningOptions(certificate=db.path, key=str(key), passphrase=passphrase)
    assert sign_files({NAME: image}, options, silent)[NAME] == inline
    passphrase.write_text("another\n")
    with pytest.raises(SignatureError, match="wrong passphrase"):
        sign_files({NAME: image}, options, silent)


# One sentence each, with no traceback of the library's behind it.
@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("false", "false failed"),
        ("sh -c 'echo the token is locked >&2; exit 3'", "the token is locked"),
        ("echo hello", "wrote 6 bytes, a signature by this certificate has 256"),
        ("head -c 256 /dev/zero", "not by the key of CN=db"),
        ("no-such-program", "not installed"),
        ("'unclosed", "not a command"),
        (" ", "empty"),
    ],
)
def test_a_command_that_fails_is_one_sentence(command: str, why: str, db: Pair, image: bytes) -> None:
    with pytest.raises(SignatureError, match=why) as caught:
        sign_files({NAME: image}, SigningOptions(certificate=db.path, command=command), silent)
    assert caught.value.message.startswith(f"{NAME} cannot be signed: ")
    assert "\n" not in caught.value.message


def test_a_command_that_hangs_is_ended_with_all_it_started(
    db: Pair, image: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(workflow, "SIGN_SECONDS", 2)
    pid = tmp_path / "pid"
    command = f"sh -c 'sleep 60 & echo $! >{pid}; wait'"
    before = time.monotonic()
    with pytest.raises(SignatureError, match="did not end within"):
        sign_files({NAME: image}, SigningOptions(certificate=db.path, command=command), silent)
    assert time.monotonic() - before < 30
    state = Path(f"/proc/{pid.read_text().strip()}/stat")
    for _ in range(100):
        if not state.exists() or state.read_text().split()[2] == "Z":
            return
        time.sleep(0.1)
    pytest.fail("what the command started still runs")


def test_an_expired_certificate_signs_with_a_warning(image: bytes, tmp_path: Path) -> None:
    """Firmware does not look at the time: UEFI 2.10, 32.5.3.3."""
    key, csr, crt = tmp_path / "old.key", tmp_path / "old.csr", tmp_path / "old.crt"
    openssl("req", "-new", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=old", "-keyout", key, "-out", csr)
    openssl("x509", "-req", "-in", csr, "-key", key, "-days", "-1", "-out", crt)
    events: list[Event] = []
    signed = sign_files({NAME: image}, SigningOptions(certificate=crt, key=str(key)), events.append)[NAME]
    assert any(isinstance(event, Warned) and "CN=old expired" in event.text for event in events)
    (found,) = authenticode.verify(signed, [Pair(key, crt).certificate])
    assert found.anchor


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({}, "one way"),
        ({"key": "KEY", "command": "true"}, "one way"),
        ({"command": "true", "response": Path("r")}, "one way"),
        ({"tool": "sbsign"}, "needs a key"),
        ({"key": "pkcs11:object=db"}, "needs a tool"),
        ({"key": "pkcs11:object=db?pin-value=1", "tool": "sbsign"}, "holds the PIN"),
        ({"key": "/nowhere/key"}, "no such file"),
        ({"response": Path("/nowhere/response")}, "no such file"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, object], why: str, db: Pair, image: bytes) -> None:
    with pytest.raises(Error, match=why):
        sign_files({NAME: image}, SigningOptions(certificate=db.path, **options), silent)  # type: ignore[arg-type]


def test_several_certificates_in_the_file_are_refused(db: Pair, image: bytes, tmp_path: Path) -> None:
    both = tmp_path / "both.crt"
    both.write_bytes(db.path.read_bytes() * 2)
    with pytest.raises(SignatureError, match="2 certificates"):
        sign_files({NAME: image}, SigningOptions(certificate=both, key=str(db.key)), silent)


def test_a_tool_that_signs_nothing_is_found_out(
    db: Pair, image: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It exits 0 and writes the image as it was."""
    false_sbsign = tmp_path / "sbsign"
    false_sbsign.write_text('#!/bin/sh\nfor last; do :; done\ncp "$last" "$6"\n')
    false_sbsign.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert shutil.which("sbsign") == str(false_sbsign)
    with pytest.raises(SignatureError, match="came back"):
        sign_files({NAME: image}, SigningOptions(certificate=db.path, key=str(db.key), tool="sbsign"), silent)


def test_a_key_that_is_not_there_is_noticed_before_any_work(tmp_path: Path) -> None:
    """K1.2: nothing is fetched, no store is made."""
    source = Reference.parse(f"oci:{tmp_path}/nothing")
    signing = SigningOptions(certificate=tmp_path / "db.crt", key=str(tmp_path / "db.key"))
    request = ConvertRequest(source=source, repo=tmp_path / "repo", boot=BootOptions(signing=signing))
    with pytest.raises(SourceError, match=r"cannot read .*db\.crt"):
        convert(request, silent)
    assert not (tmp_path / "repo").exists()
