"""A machine without a key, on the command line: what others signed follows its image. Judge: sbverify."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.keys import Pair, make
from tests.oci.layouts import Layout
from tests.oci.registries import authfile, basic, docker_registry, htpasswd
from tests.witness import program
from tests.workflows.machines import FIRST, SECOND, Machine

ASKED = ("--allow-missing-verity", "-q")


@pytest.fixture
def db(tmp_path: Path) -> Pair:
    return make(tmp_path, "db")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """Give one that has nothing yet, and an image for it."""
    made = Machine(Layout(tmp_path / "layout"), tmp_path / "repo", tmp_path / "root", tmp_path / "esp")
    for folder in (made.root, made.esp):
        folder.mkdir()
    made.release(FIRST)
    return made


def places(machine: Machine) -> list[str | Path]:
    return ["--sysroot", machine.root, "--esp", machine.esp]


def asked_for(run: Run, machine: Machine, db: Pair, folder: Path) -> list[str | Path]:
    """Have the signatures made that the image needs now: by someone with its source, and by someone with the key."""
    request, response = folder / "request.json", folder / "response.json"
    words = ["--repo", folder / "builder", "--sign-request", request, "--secureboot-certificate", db.path, *ASKED]
    assert run("convert", machine.source, *words)[0] == 0
    assert run("keys", "answer", request, "--key", db.key, "--output", response)[0] == 0
    return ["--sign-request", request, "--sign-response", response]


def signed(machine: Machine, db: Pair) -> set[str]:
    """Return the programs of the ESP that sbverify accepts; all are looked at."""
    found = set()
    for path in machine.esp.rglob("*"):
        words: list[str | Path] = [program("sbverify"), "--cert", db.path, path]
        if path.suffix.lower() == ".efi" and subprocess.run(words, check=False, capture_output=True).returncode == 0:
            found.add(str(path.relative_to(machine.esp)))
    return found


def programs(machine: Machine) -> set[str]:
    return {str(path.relative_to(machine.esp)) for path in machine.esp.rglob("*") if path.suffix.lower() == ".efi"}


def installed(run: Run, machine: Machine, db: Pair, folder: Path) -> None:
    """Attach what the first image needs, and install it with a certificate."""
    code, out, _ = run("attach", machine.source, *asked_for(run, machine, db, folder), "--json")
    assert (code, json.loads(out)["written"]) == (0, True)
    words = ["convert", machine.source, "--repo", machine.repo, "--name", "demo", "--db", db.path, *ASKED]
    assert run(*words)[0] == 0
    words = ["install", "demo", "--repo", machine.repo, "--target", machine.root, "--esp", machine.esp, *ASKED]
    assert run(*words)[0] == 0
    assert signed(machine, db) == programs(machine)


def test_signatures_follow_an_upgrade(run: Run, machine: Machine, db: Pair, tmp_path: Path) -> None:
    """C.25, D.20: without them the upgrade is refused, and the machine stays as it is; with them it is signed."""
    installed(run, machine, db, tmp_path)
    before = machine.entries()
    machine.release(SECOND)
    code, _, errors = run("upgrade", *places(machine), "-q")
    assert code == 1
    assert "none by --db is beside the image" in " ".join(errors.split())
    assert machine.entries() == before
    assert run("attach", machine.source, *asked_for(run, machine, db, tmp_path))[0] == 0
    assert json.loads(run("upgrade", *places(machine), "-q", "--json")[1])["outcome"] == "deployed"
    assert len(machine.entries()) == 2
    assert signed(machine, db) == programs(machine)


def test_what_was_signed_on_the_spot_follows_what_is_signed_elsewhere(
    run: Run, machine: Machine, db: Pair, tmp_path: Path
) -> None:
    """C.25: with neither a key nor a certificate the upgrade is refused, as ever."""
    key = ["--secureboot-key", db.key, "--secureboot-certificate", db.path]
    words = ["convert", machine.source, "--repo", machine.repo, "--name", "demo", *key, *ASKED]
    assert run(*words)[0] == 0
    words = ["install", "demo", "--repo", machine.repo, "--target", machine.root, "--esp", machine.esp, *ASKED]
    assert run(*words)[0] == 0
    machine.release(SECOND)
    assert run("attach", machine.source, *asked_for(run, machine, db, tmp_path))[0] == 0
    code, _, errors = run("upgrade", *places(machine), "-q")
    assert code == 1
    assert "its next version would not boot without a signature" in " ".join(errors.split())
    assert run("upgrade", *places(machine), "-q", "--db", db.path)[0] == 0
    assert len(machine.entries()) == 2
    assert signed(machine, db) == programs(machine)


def test_an_answer_can_be_given_to_an_upgrade(run: Run, machine: Machine, db: Pair, tmp_path: Path) -> None:
    """C.25, B.5: in a file, where no registry is between; one to another request is refused."""
    installed(run, machine, db, tmp_path)
    old = (tmp_path / "response.json").read_bytes()
    machine.release(SECOND)
    _, _, _, response = asked_for(run, machine, db, tmp_path)
    given = ["--sign-response", response, "--secureboot-certificate", db.path]
    (tmp_path / "old.json").write_bytes(old)
    code, _, errors = run("upgrade", *places(machine), "-q", *given[2:], "--sign-response", tmp_path / "old.json")
    assert code == 1
    assert "the response holds no signature" in " ".join(errors.split())
    assert json.loads(run("upgrade", *places(machine), "-q", "--json", *given)[1])["outcome"] == "deployed"
    assert signed(machine, db) == programs(machine)


def test_a_plan_says_what_would_be_attached(run: Run, machine: Machine, db: Pair, tmp_path: Path) -> None:
    before = (machine.layout.path / "index.json").read_bytes()
    words = ["attach", machine.source, *asked_for(run, machine, db, tmp_path)]
    planned = json.loads(run(*words, "--dry-run", "--json")[1])
    assert (machine.layout.path / "index.json").read_bytes() == before
    assert planned["written"] is False
    assert "EFI/Linux/debian_20261121100000.efi" in [one["name"] for one in planned["signatures"]]
    made = json.loads(run(*words, "--json")[1])
    assert {**made, "written": False} == planned
    assert planned["artifact"] in " ".join(run(*words)[1].split())


@pytest.fixture
def closed(tmp_path: Path) -> Iterator[str]:
    path = htpasswd(tmp_path / "htpasswd", "ann", "secret")
    with docker_registry(tmp_path / "storage", f"auth:\n  htpasswd:\n    realm: r\n    path: {path}\n") as address:
        yield address


def test_upgrade_and_switch_take_credentials(
    run: Run, machine: Machine, db: Pair, closed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P.1: by a file that is named; without it the registry refuses."""
    for name in ("HOME", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "DOCKER_CONFIG"):
        monkeypatch.setenv(name, str(tmp_path / "nobody"))
    installed(run, machine, db, tmp_path)
    auth = authfile(tmp_path / "auth.json", {closed: basic("ann", "secret")})
    machine.release(SECOND)
    name = f"docker://{closed}/os/demo:v"
    copy = [program("skopeo"), "copy", "--insecure-policy", "--preserve-digests", "--dest-tls-verify=false"]
    subprocess.run([*copy, f"--dest-authfile={auth}", str(machine.source), name], check=True, capture_output=True)
    assert run("attach", name, *asked_for(run, machine, db, tmp_path), "--tls-verify=false", "--authfile", auth)[0] == 0
    switch = ["switch", name, "--tls-verify=false", "--allow-missing-verity", "-q", *places(machine)]
    assert run(*switch)[0] == 1
    assert run(*switch, "--authfile", auth)[0] == 0
    check = ["upgrade", "--check", "--json", *places(machine)]
    assert run(*check)[0] == 1
    assert json.loads(run(*check, "--authfile", auth)[1])["outcome"] == "up to date"
