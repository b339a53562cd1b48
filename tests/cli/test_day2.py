"""The commands of a machine that lives on, in plain directories. Witness: jsonschema, by the published schema."""

import json
import subprocess
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args

import jsonschema
import pytest

from oci2boot.formats.bls import EntryName
from oci2boot.formats.fsverity import measure
from oci2boot.store.images import Flow
from tests.cli.conftest import Run
from tests.status_schema import check_status
from tests.store.stored import everything
from tests.witness import program
from tests.workflows.machines import SECOND, Machine, make_machine
from tests.workflows.sealable import add_image, tar


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return make_machine(tmp_path)


def places(machine: Machine) -> list[str | Path]:
    return ["--sysroot", machine.root, "--esp", machine.esp]


def status(run: Run, machine: Machine) -> Any:
    """Return what `status --json` says, after it was held against the schema."""
    code, out, _ = run("status", "--json", *places(machine))
    assert code == 0
    return check_status(json.loads(out))


def test_status_follows_its_schema_through_a_life(run: Run, machine: Machine) -> None:
    """P.11: text, and JSON with a schema."""
    (first,) = status(run, machine)["deployments"]
    assert first["states"] == ["next"]
    assert first["source"] == str(machine.source)
    assert first["verity"] == "optional"
    machine.release(SECOND)
    assert run("upgrade", "--download-only", *places(machine), "-q")[0] == 0
    assert status(run, machine)["downloaded"][0]["image"] == "demo"
    code, out, _ = run("upgrade", *places(machine), "-q")
    assert code == 0
    assert "the next boot takes it" in out
    assert run("pin", first["digest"][:8], *places(machine))[0] == 0
    found = status(run, machine)
    assert [one["states"] for one in found["deployments"]] == [["next"], ["pinned"]]
    foreign = machine.root / "state/deploy" / ("cd" * 32)
    foreign.mkdir()
    assert status(run, machine)["problems"] == [
        f"deployment {'cd' * 32}: its rootfs image is not in the repository",
        f"deployment {'cd' * 32}: no boot entry starts it",
    ]
    _, out, _ = run("status", *places(machine))
    assert "pinned" in out
    assert first["digest"][:12] in out


@pytest.mark.parametrize(
    ("change", "at"),
    [
        ({"states": ["confused"]}, "deployments"),
        ({"id": "abcd"}, "deployments"),
        ({"digest": None}, "deployments"),
        ({"flow": "guessed"}, "deployments"),
        ({"mode": "slots"}, None),
        ({"mode": "verity"}, None),
        ({"fsverity": None}, None),
        ({"esp": None}, None),
    ],
)
def test_the_schema_refuses_what_it_does_not_know(
    run: Run, machine: Machine, change: dict[str, Any], at: str | None
) -> None:
    found = status(run, machine)
    (found[at][0] if at else found).update(change)
    with pytest.raises(jsonschema.ValidationError):
        check_status(found)


def test_the_schema_knows_every_flow() -> None:
    schema = json.loads(files("oci2boot").joinpath("schema/status.json").read_text())
    assert {*schema["$defs"]["deployment"]["properties"]["flow"]["enum"]} == {*get_args(Flow), None}


def test_a_life_on_the_command_line(run: Run, machine: Machine) -> None:
    """P.11, D.20: check, upgrade, roll back, delete, collect."""
    first = status(run, machine)["next"]
    assert json.loads(run("upgrade", "--check", "--json", *places(machine))[1])["outcome"] == "up to date"
    machine.release(SECOND)
    assert "there is a newer image: 1 layers" in run("upgrade", "--check", *places(machine))[1]
    done = json.loads(run("upgrade", "--json", "-q", *places(machine))[1])
    assert done["outcome"] == "deployed"
    second = done["image"]["rootfs"]
    assert json.loads(run("rollback", "--dry-run", "--json", *places(machine))[1])["digest"] == first
    assert status(run, machine)["next"] == second
    assert f"{first} boots next" in run("rollback", *places(machine))[1]
    assert status(run, machine)["next"] == first
    assert "was rolled back" in run("upgrade", "-q", *places(machine))[1]
    assert run("rollback", second[:8], *places(machine))[0] == 0
    assert run("delete", first[:8], *places(machine))[0] == 0
    freed = json.loads(run("gc", "--json", *places(machine))[1])
    assert first in freed["objects"]
    assert json.loads(run("fsck", "--json", "--sysroot", machine.root)[1])["ok"] is True
    assert [one["digest"] for one in status(run, machine)["deployments"]] == [second]


def test_a_machines_store_is_not_collected_without_its_esp(run: Run, machine: Machine) -> None:
    code, _, errors = run("gc", "--repo", machine.root / "composefs")
    assert code == 1
    assert "--esp DIR" in errors
    assert run("gc", "--dry-run", "--repo", machine.root / "composefs", "--esp", machine.esp)[0] == 0


def test_switch_follows_another_image(run: Run, machine: Machine) -> None:
    machine.release({"usr/bin/other": b"another system" * 50}, name="w")
    words = ["switch", f"oci:{machine.layout.path}:w", "--name", "other", "--allow-missing-verity", "-q", "--json"]
    code, out, _ = run(*words, *places(machine))
    assert code == 0
    assert json.loads(out)["image"]["name"] == "other"
    found = status(run, machine)
    assert [one["image"] for one in found["deployments"]] == ["other", "demo"]
    assert json.loads(run("upgrade", "--check", "--json", *places(machine))[1])["news"]["source"].endswith(":w")


def test_a_switch_is_planned_before_it_is_made(run: Run, machine: Machine) -> None:
    """P.11: what would be fetched, and once it is here what would change; nothing is written."""
    machine.release({"usr/bin/other": b"another system" * 50, "etc/motd": b"another\n"}, name="w")
    words = ["switch", f"oci:{machine.layout.path}:w", "--name", "other", "--allow-missing-verity", "-q"]
    before = everything(machine.root), everything(machine.esp)
    planned = json.loads(run(*words, "--dry-run", "--json", *places(machine))[1])
    assert (planned["outcome"], planned["news"]["fetch"]["layers"], planned["plan"]) == ("available", 1, None)
    assert "there is a newer image: 1 layers" in run(*words, "--dry-run", *places(machine))[1]
    assert (everything(machine.root), everything(machine.esp)) == before
    assert run(*words, "--download-only", *places(machine))[0] == 0
    before = everything(machine.root), everything(machine.esp)
    planned = json.loads(run(*words, "--dry-run", "--json", *places(machine))[1])
    assert planned["outcome"] == "planned"
    assert any("write" in step for step in planned["plan"]["boot"]["steps"])
    assert (everything(machine.root), everything(machine.esp)) == before
    done = json.loads(run(*words, "--json", *places(machine))[1])
    assert done["image"]["rootfs"] == planned["image"]["rootfs"]


def test_status_says_in_one_line_what_boots_next(run: Run, machine: Machine) -> None:
    """P.11"""
    first = status(run, machine)["next"][:12]
    assert f"\n{first} boots next\n" in run("status", *places(machine))[1]
    machine.release(SECOND)
    run("upgrade", "-q", *places(machine))
    second = status(run, machine)["next"][:12]
    run("rollback", *places(machine))
    _, out, _ = run("status", *places(machine))
    assert f"\n{first} boots next\n" in out
    (line,) = (line for line in out.splitlines() if second in line)
    assert line.endswith("put back")
    code, _, errors = run("pin", second[:3], *places(machine))
    assert code == 1
    assert "4 digits" in errors
    for words, says in ((("--soft-reboot",), "--apply"), (("--apply",), "restarts this machine")):
        code, _, errors = run("upgrade", *words, *places(machine))
        assert code == 1
        assert says in errors


def test_finalize_on_the_command_line(run: Run, machine: Machine) -> None:
    """P.10"""
    first = status(run, machine)["next"]
    machine.release(SECOND)
    run("upgrade", "-q", "--etc", "stop", *places(machine))
    etc = machine.root / "state/deploy" / first / "etc/upper"
    (etc / "hostname").write_text("box\n")
    code, out, _ = run("finalize", "--dry-run", "--sysroot", machine.root)
    assert code == 0
    assert "/etc/hostname" in out
    (one,) = json.loads(run("finalize", "--json", "--sysroot", machine.root)[1])["deployments"]
    assert (one["origin"], one["outcome"]) == (first, "merged")
    (etc / "motd").write_text("mine\n")
    code, out, errors = run("finalize", "--sysroot", machine.root)
    assert code == 1
    assert "/etc/motd" in errors
    assert "finalize --etc" in errors
    assert "left as it was" in out


def test_install_takes_directories(run: Run, machine: Machine, tmp_path: Path) -> None:
    """P.8: file systems that somebody else mounted, or a boot directory alone."""
    for name in ("root2", "esp2", "esp3"):
        (tmp_path / name).mkdir()
    words = ["install", "demo", "--repo", machine.repo, "--json", "-q"]
    target = ["--target", tmp_path / "root2", "--esp", tmp_path / "esp2", "--allow-missing-verity", "--hostname", "box"]
    planned = json.loads(run(*words, *target, "--dry-run")[1])
    assert planned["written"] is False
    assert list((tmp_path / "root2").iterdir()) == list((tmp_path / "esp2").iterdir()) == []
    done = json.loads(run(*words, *target)[1])
    assert done["objects"] == planned["objects"]
    (deployed,) = (tmp_path / "root2/state/deploy").iterdir()
    assert (deployed / "etc/upper/hostname").read_text() == "box\n"
    assert run(*words, "--target", tmp_path / "root2")[0] == 1
    assert run(*words, "--esp", tmp_path / "esp3")[0] == 0
    names = [path.name for path in (tmp_path / "esp3/EFI/Linux").iterdir()]
    assert [EntryName.parse(name).suffix for name in names] == [".efi"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "esp",
        "esp2",
        "esp3",
        "layout",
        "repo",
        "root",
        "root2",
    ]
    # Its promise alone keeps the rootfs image in the store that it is for.
    assert run("images", "--remove", "demo", "--repo", machine.repo)[0] == 0
    for where, freed in (([], True), (["--esp", tmp_path / "esp3"], False)):
        found = json.loads(run("gc", "--dry-run", "--json", "--repo", machine.repo, *where)[1])
        assert (done["image"]["rootfs"] in found["objects"]) is freed


def test_conflicts_in_etc_are_shown_and_a_policy_decides(run: Run, machine: Machine) -> None:
    """P.10: the plan before, conflicts by name."""
    first = status(run, machine)["next"]
    (machine.root / "state/deploy" / first / "etc/upper/motd").write_text("ours\n")
    machine.release(SECOND)
    run("upgrade", "--download-only", "-q", *places(machine))
    (row,) = json.loads(run("upgrade", "--dry-run", "--json", *places(machine))[1])["plan"]["etc"]["rows"]
    assert row["path"] == "/etc/motd"
    assert row["conflict"]
    code, _, errors = run("upgrade", "-q", "--etc", "stop", *places(machine))
    assert code == 1
    assert "/etc/motd" in errors
    assert status(run, machine)["next"] == first
    assert run("upgrade", "-q", "--etc", "/etc/motd=theirs", *places(machine))[0] == 0
    second = status(run, machine)["next"]
    assert not (machine.root / "state/deploy" / second / "etc/upper/motd").exists()


def test_a_factory_reset_is_the_first_day(run: Run, machine: Machine) -> None:
    """D.25: /etc and /var as the image has them; with --full every object is read, and fetched where it is broken."""

    def state(root: Path) -> dict[str, bytes]:
        files = [path for path in (root / "state").rglob("*") if path.is_file() and path.name != "lock"]
        return {str(path.relative_to(root)): path.read_bytes() for path in files if path.name != "oci2boot.json"}

    first = status(run, machine)["next"]
    new = state(machine.root)
    (machine.root / "state/deploy" / first / "etc/upper/hostname").write_text("box\n")
    (machine.root / "state/os/default/var/log").write_text("much\n")
    victim = machine.root / "composefs/objects" / measure(b"one" * 100).path
    content = victim.read_bytes()
    victim.write_bytes(content + b"!")
    assert run("reset", "-q", *places(machine))[0] == 1
    assert json.loads(run("reset", "--dry-run", "--json", *places(machine))[1])["deployments"] == [first]
    assert (machine.root / "state/os/default/var/log").exists()
    assert run("reset", "--yes", "--full", "-q", *places(machine))[0] == 0
    assert state(machine.root) == new
    assert victim.read_bytes() == content
    assert status(run, machine)["next"] == first
    assert not list((machine.root / "state").rglob(".*"))


@pytest.mark.parametrize(
    "words",
    [
        ("status",),
        ("upgrade", "--check", "--apply"),
        ("rollback",),
        ("delete", "x"),
        ("pin", ""),
    ],
)
def test_mistakes_are_one_sentence(run: Run, machine: Machine, words: tuple[str, ...]) -> None:
    where = [] if words == ("status",) else places(machine)
    code, _, errors = run(*words, *where)
    assert code == 1
    assert errors.startswith("error: ")
    assert "Traceback" not in errors


def test_images_that_share_most_take_little_more(run: Run, tmp_path: Path) -> None:
    """D.21, C.34: measured in bytes of objects; the application images are plain ones."""
    machine = make_machine(tmp_path)
    big: dict[str, bytes | Path] = {f"usr/share/{number}": b"%d" % number * 40_000 for number in range(90)}
    repo = machine.root / "composefs"

    def stored() -> int:
        return sum(path.stat().st_size for path in (repo / "objects").glob("*/*"))

    layers = [tar(big), tar({f"usr/share/own{number}": b"own %d" % number * 13_000 for number in range(10)})]
    more = tar({f"usr/share/own{number}": b"app %d" % number * 13_000 for number in range(10)})
    add_image(machine.layout, layers, "app1")
    add_image(machine.layout, [layers[0], more], "app2")
    before = stored()
    words = ["convert", "--plain", "--repo", repo, "-q"]
    assert run(*words, f"oci:{machine.layout.path}:app1", "--name", "app1")[0] == 0
    first = stored() - before
    assert run(*words, f"oci:{machine.layout.path}:app2", "--name", "app2")[0] == 0
    second = stored() - before - first
    assert 0.05 * first < second < 0.15 * first
    freed = json.loads(run("gc", "--json", *places(machine))[1])
    assert freed["objects"] == []
    listed = subprocess.run(
        [program("cfsctl"), "--repo", repo, "oci", "images"], check=True, capture_output=True
    ).stdout
    assert b"app1" in listed
    assert run("images", "--remove", "app1", "--repo", repo)[0] == 0
    freed = json.loads(run("gc", "--json", *places(machine))[1])
    assert 0.05 * first < freed["freed_bytes"] < 0.15 * first
    assert json.loads(run("fsck", "--json", "--sysroot", machine.root)[1])["ok"] is True


def test_less_than_before_is_refused_with_the_way_out_and_said_by_status(run: Run, machine: Machine) -> None:
    """B.11"""
    (record,) = (machine.root / "state/deploy").glob("*/oci2boot.json")
    facts = json.loads(record.read_text())
    signer = {"subject": "CN=publisher", "key": "ab" * 32, "anchor": None}
    facts["options"]["outcome"] = {"kind": "sealed", "signers": [signer], "addon": [], "before": None}
    record.write_text(json.dumps(facts))
    assert "the next image must be sealed, signed by CN=publisher, too, and not older" in run(
        "status", *places(machine)
    )[1].replace("\n", " ")
    machine.release(SECOND)
    code, _, errors = run("upgrade", "-q", *places(machine))
    assert code == 1
    assert "is sealed, signed by CN=publisher; the new one is local, signed by nobody" in " ".join(errors.split())
    assert "--allow-unsealed accepts it" in errors
    assert run("upgrade", "-q", "--allow-unsealed", *places(machine))[0] == 0
    first = status(run, machine)["deployments"][0]
    assert first["outcome"]["given_up"] == "sealed, signed by CN=publisher"
    assert "it was sealed, signed by CN=publisher, until less was allowed" in " ".join(
        run("status", *places(machine))[1].split()
    )


def test_certificates_for_what_boots_are_no_use_without_it(run: Run, machine: Machine) -> None:
    """C.35: an option that would do nothing is not passed over in silence."""
    code, _, errors = run("convert", machine.source, "--no-boot", "--db", "db.crt", "--repo", machine.repo)
    assert code == 1
    assert "nothing that boots is made" in errors
