"""`oci2boot keys` and `oci2boot uki`, from the making of keys to a UKI that they vouch for. P.7"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.witness import program
from tests.workflows import sealable


@pytest.fixture
def keys(run: Run, tmp_path: Path) -> Path:
    folder = tmp_path / "keys"
    status, output, _ = run("keys", "generate", folder, "--json")
    assert status == 0
    assert json.loads(output)["folder"] == str(folder)
    return folder


@pytest.fixture
def uki(tmp_path: Path) -> Path:
    path = tmp_path / "uki.efi"
    path.write_bytes(sealable.uki(f"rw composefs={'ab' * 32}"))
    return path


def test_a_uki_is_signed_verified_and_shown(run: Run, keys: Path, uki: Path, tmp_path: Path) -> None:
    signed = tmp_path / "signed.efi"
    options = ["--secureboot-key", keys / "db.key", "--secureboot-certificate", keys / "db.crt"]
    assert run("uki", "sign", uki, "--output", signed, *options)[0] == 0
    subprocess.run([program("sbverify"), "--cert", keys / "db.crt", signed], check=True, capture_output=True)
    status, output, _ = run("uki", "verify", signed, "--db", keys / "db.crt")
    assert (status, output) == (0, "CN=oci2boot db: trusted by CN=oci2boot db\n")
    status, output, errors = run("uki", "verify", signed, "--db", keys / "PK.crt")
    assert (status, output) == (1, "")
    assert "by none of the certificates given" in errors
    assert run("uki", "verify", uki)[0] == 1
    shown = run("uki", "inspect", signed)[1]
    assert ".cmdline" in shown
    assert "CN=oci2boot db" in shown
    found = json.loads(run("uki", "inspect", signed, "--json")[1])
    assert found["composefs"] == [f"composefs={'ab' * 32}"]


def test_a_request_is_answered_where_the_key_is(run: Run, keys: Path, uki: Path, tmp_path: Path) -> None:
    """B.5"""
    request, response = tmp_path / "request.json", tmp_path / "response.json"
    inline, applied = tmp_path / "inline.efi", tmp_path / "applied.efi"
    certificate = ["--secureboot-certificate", keys / "db.crt"]
    assert run("uki", "sign", uki, "--sign-request", request, *certificate)[0] == 0
    status, output, _ = run("keys", "answer", request, "--key", keys / "db.key", "--output", response)
    assert (status, output.startswith("signed uki.efi: image ")) == (0, True)
    assert run("uki", "sign", uki, "-o", applied, "--sign-response", response, *certificate)[0] == 0
    assert run("uki", "sign", uki, "-o", inline, "--secureboot-key", keys / "db.key", *certificate)[0] == 0
    assert applied.read_bytes() == inline.read_bytes()


def test_keys_are_enrolled(run: Run, keys: Path, tmp_path: Path) -> None:
    esp = tmp_path / "esp"
    esp.mkdir()
    store = tmp_path / "vars.fd"
    assert run("keys", "enroll", keys, "--esp", esp, "--ovmf-vars", store)[0] == 0
    assert (esp / "loader/keys/auto/PK.auth").read_bytes() == (keys / "PK.auth").read_bytes()
    assert store.stat().st_size > 1 << 16


@pytest.mark.usefixtures("keys")
@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("uki sign uki.efi -o x", "who signs?"),
        ("uki sign uki.efi -o x --secureboot-key k", "a certificate is missing"),
        ("uki sign uki.efi --secureboot-certificate keys/db.crt", "where should the signed file go?"),
        ("uki sign uki.efi -o x --secureboot-certificate keys/db.crt", "one way to the private key"),
        (
            "uki sign uki.efi -o x --secureboot-certificate keys/PK.crt --secureboot-key keys/db.key",
            "does not belong to the certificate",
        ),
        ("keys enroll keys", "where should the keys go?"),
        ("keys generate keys", "holds keys already"),
        ("keys generate more --guid x", "not a GUID"),
        ("keys generate more --bits 1024", "keys of 1024 bits"),
        ("keys enroll nowhere --esp .", "no such file"),
    ],
)
def test_bad_input_is_one_sentence(
    words: str,
    why: str,
    run: Run,
    uki: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(uki.parent)
    before = sorted(uki.parent.rglob("*"))
    status, output, errors = run(*words.split())
    assert (status, output) == (1, "")
    assert why in errors
    assert "Traceback" not in errors
    assert sorted(uki.parent.rglob("*")) == before


def test_no_key_is_in_what_a_process_list_or_an_error_shows(
    run: Run,
    keys: Path,
    uki: Path,
    tmp_path: Path,
) -> None:
    """The command gets what it signs on standard input; the key's bytes are in no word and no message."""
    spy = tmp_path / "spy"
    spy.write_text(f'#!{sys.executable}\nimport sys\nopen("{tmp_path}/argv", "w").write(repr(sys.argv))\nsys.exit(1)\n')
    spy.chmod(0o755)
    status, _, errors = run(
        "uki", "sign", uki, "-o", uki, "--sign-command", str(spy), "--secureboot-certificate", keys / "db.crt"
    )
    assert status == 1
    assert (tmp_path / "argv").read_text() == repr([str(spy)])
    broken = tmp_path / "broken.key"
    broken.write_text((keys / "db.key").read_text().replace("MII", "M11", 1))
    status, _, more = run(
        "uki", "sign", uki, "-o", uki, "--secureboot-key", broken, "--secureboot-certificate", keys / "db.crt"
    )
    assert status == 1
    secret = (keys / "db.key").read_text().splitlines()[2]
    assert secret not in errors + more
