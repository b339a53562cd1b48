"""The first image of a machine takes over what its user names of the system that was there. O.1"""

import json
import os
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from oci2boot.cli.main import app
from oci2boot.errors import Error, FormatError, TargetError
from oci2boot.sysroot.accounts import read_accounts, with_people
from oci2boot.sysroot.machine import Sysroot
from oci2boot.sysroot.transition import RECORD, read_before
from oci2boot.workflows.install.takeover import ITEMS, Asked, find_old, parse_items
from oci2boot.workflows.machine.deploy import SysrootPlan
from oci2boot.workflows.machine.transition import end_transition
from tests.oci.layouts import Layout
from tests.sysroot import bootctl
from tests.witness import program
from tests.workflows.machines import ANY_FILE_SYSTEM, Machine, upper

MACHINE_ID = "0123456789abcdef0123456789abcdef"
HOST_KEY = b"-----BEGIN OPENSSH PRIVATE KEY-----\nold\n"
IMAGE: dict[str, bytes | Path] = {
    "etc/passwd": b"root:x:0:0:root:/root:/bin/bash\ndaemon:x:1:1::/:/usr/sbin/nologin\n"
    b"img:x:1001:1001::/home/img:/bin/sh\n",
    "etc/shadow": b"root:*:19000:0:99999:7:::\ndaemon:*:19000:0:99999:7:::\nimg:!:19000:0:99999:7:::\n",
    "etc/group": b"root:x:0:\nsudo:x:27:\nimg:x:1001:\n",
    "etc/gshadow": b"root:*::\nsudo:*::\n",
    "usr/bin/bash": b"bash" * 50,
    "usr/bin/sh": b"sh" * 50,
    "bin": Path("usr/bin"),
    "home": Path("var/home"),
    "srv/": b"",
    "usr/bin/sshd": b"x" * 99,
    "etc/ssh/sshd_config": b"Include /etc/ssh/sshd_config.d/*.conf\n",
}
OLD: dict[str, bytes] = {
    "etc/os-release": b'ID=debian\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n',
    "etc/passwd": b"root:x:0:0:root:/root:/bin/bash\nme:x:1000:1000:Me:/home/me:/bin/zsh\n"
    b"twin:x:1001:1002::/home/twin:/bin/bash\nsvc:x:105:110::/:/usr/sbin/nologin\n",
    "etc/shadow": b"root:$6$roothash:19500:0:99999:7:::\nme:$6$mine:19500:0:99999:7:::\nsvc:!:1::::::\n",
    "etc/group": b"root:x:0:\nsudo:x:27:me\nme:x:1000:\ndocker:x:118:me\nsvc:x:110:\n",
    "etc/gshadow": b"root:*::\nsudo:*::me\nme:!::\n",
    "etc/subuid": b"me:100000:65536\n",
    "etc/hostname": b"# the name\noldbox\n",
    "etc/machine-id": f"{MACHINE_ID}\n".encode(),
    "etc/ssh/ssh_host_ed25519_key": HOST_KEY,
    "etc/ssh/ssh_host_ed25519_key.pub": b"ssh-ed25519 AAAA old\n",
    "etc/ssh/sshd_config": b"not taken\n",
    "etc/fstab": b"# old\nUUID=3f1b / ext4 defaults 0 1\nUUID=AA-BB /boot/efi vfat umask=0077 0 1\n"
    b"UUID=d00d /srv xfs defaults,noatime 0 2\nUUID=beef /data ext4 defaults 0 2\n/swapfile none swap sw 0 0\n"
    b"UUID=5a none swap sw 0 0\nUUID=1 /usr/local ext4 defaults 0 0\nnonsense\n",
    "root/.ssh/authorized_keys": b"ssh-ed25519 " + b"A" * 60 + b" root@old\n",
    "home/me/letter": b"Dear reader\n",
    "var/lib/dpkg/status": b"Package: dpkg\n",
    "var/lib/postgresql/data": b"rows\n",
    "var/www/index.html": b"<p>hello\n",
    "usr/bin/something": b"#!/bin/sh\n",
}
ESP: dict[str, bytes] = {
    "EFI/debian/shimx64.efi": b"Debian's shim",
    "EFI/debian/grubx64.efi": b"Debian's GRUB",
    "EFI/BOOT/BOOTX64.EFI": b"Debian's shim",
}


def write(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def machine_on(folder: Path, root: Path) -> Machine:
    made = Machine(Layout(folder / "layout"), folder / "repo", root, folder / "esp")
    write(made.esp, ESP)
    made.release(IMAGE)
    made.convert()
    return made


@pytest.fixture
def debian(tmp_path: Path) -> Machine:
    write(tmp_path / "root", OLD)
    return machine_on(tmp_path, tmp_path / "root")


def take_over(machine: Machine, words: str) -> SysrootPlan:
    old = find_old(machine.root)
    assert old
    return machine.install(replace(ANY_FILE_SYSTEM, take_over=Asked(old=old, items=parse_items(words))))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_what_was_named_is_in_the_new_etc_and_var(debian: Machine) -> None:
    """O.1: of users, their groups and passwords; names, keys and what is mounted; data by copy, or shared."""
    plan = take_over(debian, "all")
    etc = contents(upper(debian, plan.bootable.root.image.hex))
    lines = {name: etc[name].decode().splitlines() for name in ("passwd", "shadow", "group", "gshadow", "fstab")}
    assert lines["passwd"][-1] == "me:x:1000:1000:Me:/home/me:/bin/bash"  # it has no zsh
    assert len(lines["passwd"]) == 4
    assert "root:$6$roothash:19500:0:99999:7:::" in lines["shadow"]
    assert "me:$6$mine:19500:0:99999:7:::" in lines["shadow"]
    assert {"sudo:x:27:me", "me:x:1000:"} <= set(lines["group"])
    assert not any(line.startswith(("docker", "svc")) for line in lines["group"])
    assert etc["subuid"] == OLD["etc/subuid"]
    assert (etc["hostname"], etc["machine-id"]) == (b"oldbox\n", OLD["etc/machine-id"])
    assert etc["ssh/ssh_host_ed25519_key"] == HOST_KEY
    assert etc["ssh/authorized_keys.d/root"] == OLD["root/.ssh/authorized_keys"]
    assert "ssh/sshd_config" not in etc
    assert lines["fstab"] == [
        "UUID=d00d /srv xfs defaults,noatime,nofail 0 2",
        "UUID=5a none swap sw,nofail 0 0",
        "/sysroot/home /var/home none bind,rw,exec,nosuid,nodev,nofail 0 0",
    ]
    var = contents(debian.root / "state/os/default/var")
    assert (var["lib/postgresql/data"], var["www/index.html"]) == (b"rows\n", b"<p>hello\n")
    assert not any(name.startswith("lib/dpkg") for name in var)
    notes = "\n".join(plan.takeover.notes if plan.takeover else ())
    for words in ("twin: the image has another account with the number 1001", "no group docker", "/data", "/usr/local",
                  "swap in a file", "no /bin/zsh"):  # fmt: skip
        assert words in notes, words
    assert OLD.items() <= contents(debian.root).items()


def test_secrets_are_roots_alone(debian: Machine) -> None:
    plan = take_over(debian, "ssh,users")
    etc = upper(debian, plan.bootable.root.image.hex)
    assert stat.S_IMODE((etc / "ssh/ssh_host_ed25519_key").stat().st_mode) == 0o600
    assert stat.S_IMODE((etc / "ssh/ssh_host_ed25519_key.pub").stat().st_mode) == 0o644
    image = stat.S_IMODE((etc / "passwd").stat().st_mode)
    assert image == 0o644
    assert set(contents(etc)) == {
        "passwd", "shadow", "group", "gshadow", "subuid", "ssh/ssh_host_ed25519_key", "ssh/ssh_host_ed25519_key.pub",
        "ssh/authorized_keys.d/root", "ssh/sshd_config.d/10-oci2boot.conf",
    }  # fmt: skip
    assert not (debian.root / "state/os/default/var/www").exists()


def test_the_old_system_stays_in_the_menu_until_it_is_removed(debian: Machine) -> None:
    """O.1: by an entry for its boot loader, where the menu had none; bootctl lists it."""
    take_over(debian, "home")
    first, second = bootctl.listed(debian.esp)
    assert (first["isDefault"], second["title"]) == (True, "Debian GNU/Linux 12 (bookworm)")
    assert (debian.esp / "loader/entries/oci2boot-before.conf").read_text().splitlines()[
        1
    ] == "efi /EFI/debian/shimx64.efi"
    sysroot = Sysroot(debian.root, debian.esp)
    planned = end_transition(sysroot, dry_run=True)
    assert OLD.items() <= contents(debian.root).items()
    assert {name for name, _ in planned.names} == {"etc", "root", "usr", "var"}
    assert planned.freed > 0
    assert end_transition(sysroot, dry_run=False).names == planned.names
    assert sorted(path.name for path in debian.root.iterdir()) == ["composefs", "home", "state"]
    assert (debian.root / "home/me/letter").read_bytes() == OLD["home/me/letter"]
    assert [one["type"] for one in bootctl.listed(debian.esp)] == ["type2"]
    with pytest.raises(TargetError, match="nothing is known"):
        end_transition(sysroot, dry_run=False)


@pytest.mark.parametrize(
    ("names", "entries"),
    [
        (["../outside", "composefs", "state", ".", "..", "", "usr/bin"], []),
        ([], ["../outside/file", "loader/entries/../../../outside/file"]),
    ],
)
def test_a_record_removes_nothing_else(names: list[str], entries: list[str], debian: Machine, tmp_path: Path) -> None:
    """The record lies where nothing verifies it."""
    take_over(debian, "hostname")
    write(tmp_path, {"outside/file": b"mine"})
    before = contents(debian.root / "composefs")
    record = {"title": "x", "names": names, "kept": [], "entries": entries}
    (debian.root / RECORD).write_text(json.dumps(record))
    end_transition(Sysroot(debian.root, debian.esp), dry_run=False)
    assert (tmp_path / "outside/file").read_bytes() == b"mine"
    assert contents(debian.root / "composefs") == before
    assert (debian.root / "usr/bin/something").exists()


def test_a_record_that_cannot_be_read_is_an_error(debian: Machine) -> None:
    take_over(debian, "hostname")
    for text in ("{", "[]", '{"title": "x"}', '{"title": "x", "names": 1, "kept": [], "entries": []}'):
        (debian.root / RECORD).write_text(text)
        with pytest.raises(TargetError, match="cannot be read"):
            read_before(Sysroot(debian.root, debian.esp))
    (debian.root / RECORD).unlink()
    (debian.root / RECORD).symlink_to("/etc/passwd")
    assert read_before(Sysroot(debian.root, debian.esp)) is None


def test_what_is_no_file_of_the_old_system_is_not_read(debian: Machine, tmp_path: Path) -> None:
    """A symlink leads elsewhere, a FIFO waits for ever, and a file may have no end."""
    write(tmp_path, {"secret": HOST_KEY})
    (debian.root / "etc/machine-id").unlink()
    (debian.root / "etc/machine-id").symlink_to(tmp_path / "secret")
    (debian.root / "etc/hostname").unlink()
    os.mkfifo(debian.root / "etc/hostname")
    key = debian.root / "etc/ssh/ssh_host_ed25519_key"
    key.unlink()
    key.symlink_to(tmp_path / "secret")
    (debian.root / "etc/fstab").write_bytes(b"x" * (2 << 20))
    (debian.root / "etc/passwd").unlink()
    (debian.root / "etc/passwd").mkdir()
    (debian.root / "root/.ssh/authorized_keys").unlink()
    plan = take_over(debian, "users,machine-id,hostname,ssh,fstab")
    assert plan.takeover
    assert [item for item, _ in plan.takeover.shown] == ["users", "ssh"]  # root's password, and the public key
    assert "ssh/ssh_host_ed25519_key" not in contents(upper(debian, plan.bootable.root.image.hex))


@pytest.mark.parametrize("keys", [b"ssh-ed25519 short\n", HOST_KEY, b"\xff\n"])
def test_keys_that_no_server_takes_stay_behind(keys: bytes, debian: Machine) -> None:
    """They are of one item among others: the machine is taken over all the same."""
    (debian.root / "root/.ssh/authorized_keys").write_bytes(keys)
    plan = take_over(debian, "users,hostname")
    assert plan.takeover
    assert any(note.startswith("root's authorized_keys: ") for note in plan.takeover.notes)
    assert "ssh/authorized_keys.d/root" not in contents(upper(debian, plan.bootable.root.image.hex))


@pytest.mark.parametrize("name", ["old box", "-x", "a" * 65])
def test_a_name_that_is_none_stays_behind(name: str, debian: Machine) -> None:
    (debian.root / "etc/hostname").write_text(f"{name}\n")
    plan = take_over(debian, "hostname")
    assert plan.takeover
    assert any("host name" in note for note in plan.takeover.notes)


def test_a_machine_that_has_an_image_takes_nothing_over(debian: Machine) -> None:
    take_over(debian, "hostname")
    debian.release(IMAGE, {"usr/bin/more": b"more" * 99})
    debian.convert()
    with pytest.raises(TargetError, match="has an image already"):
        take_over(debian, "users")


def test_items_are_parsed() -> None:
    assert parse_items("all") == ITEMS
    assert parse_items("none") == ()
    assert parse_items("ssh, users") == ("users", "ssh")
    with pytest.raises(FormatError, match="'keys'"):
        parse_items("users,keys")


def test_accounts_of_others_are_lines_or_nothing() -> None:
    """passwd(5): a line of another width is none; a number that is none is nobody's."""
    image = read_accounts({"passwd": b"root:x:0:0::/:/bin/sh\n", "shadow": b"root:!:1::::::\n"})
    old = read_accounts(
        {
            "passwd": b"a:x:1000\nb:x:0x3e8:1000::/:/bin/sh\nc:x:-1:1::/:/bin/sh\nd:x:99999999999:1::/:/bin/sh\n"
            b"\xff:x:1000:1::/:/bin/sh\ne:x:61000:1::/:/bin/sh\nroot:x:1000:1::/:/bin/sh\nok:x:1000:1000::/:/bin/sh\n",
            "shadow": b"root::1::::::\nok:x\n",
        }
    )
    made = with_people(image, old, ["/bin/sh"])
    assert made.names == ["ok"]
    assert made.write()["shadow"] == b"root:!:1::::::\n"  # root without a password gives none away


@pytest.fixture
def ostree(tmp_path: Path) -> Iterator[Machine]:
    """A physical root with a deployment, made by Debian's ostree."""
    tree, root = tmp_path / "tree", tmp_path / "sysroot"
    write(
        tree,
        {
            **{f"usr/{name}": data for name, data in OLD.items() if name.startswith("etc/") and "ssh_host" not in name},
            "usr/lib/modules/6.1/vmlinuz": b"kernel",
            "usr/lib/modules/6.1/initramfs.img": b"initramfs",
        },
    )
    ostree = program("ostree")

    def run(*words: str | Path) -> None:
        done = subprocess.run([ostree, *words], check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    root.mkdir()
    run("admin", "init-fs", root)
    run("admin", "os-init", "fedora", "--sysroot", root)
    repo = f"--repo={root}/ostree/repo"
    run(repo, "commit", "--branch=os", f"--tree=dir={tree}", "--owner-uid=0", "--owner-gid=0")
    run("admin", "deploy", "--sysroot", root, "--os=fedora", "os")
    (deployment,) = root.glob("ostree/deploy/fedora/deploy/*.0")
    write(deployment, {"etc/ssh/ssh_host_ed25519_key": HOST_KEY})
    write(root / "ostree/deploy/fedora/var", {"home/me/letter": b"Dear\n", "lib/thing": b"state\n", "cache/x": b"\n"})
    yield machine_on(tmp_path, root)
    # ostree makes the directories of its deployments immutable, and pytest removes old folders.
    subprocess.run([program("chattr"), "-R", "-f", "-i", root], check=False)


def test_a_deployment_of_ostree_is_taken_over(ostree: Machine) -> None:
    """O.1: its /etc is the deployment's, its /var the stateroot's; ostree still knows its own."""
    plan = take_over(ostree, "users,hostname,ssh,home,var")
    etc = contents(upper(ostree, plan.bootable.root.image.hex))
    assert etc["ssh/ssh_host_ed25519_key"] == HOST_KEY
    assert etc["hostname"] == b"oldbox\n"
    assert b"me:x:1000" in etc["passwd"]
    var = contents(ostree.root / "state/os/default/var")
    assert (var["home/me/letter"], var["lib/thing"]) == (b"Dear\n", b"state\n")
    assert "cache/x" not in var
    argv = [program("ostree"), "admin", "status", "--sysroot", str(ostree.root)]
    assert "fedora" in subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    removed = end_transition(Sysroot(ostree.root, ostree.esp), dry_run=False)
    assert "ostree" in {name for name, _ in removed.names}
    assert sorted(path.name for path in ostree.root.iterdir()) == ["composefs", "state"]


def test_of_two_deployments_none_is_guessed(ostree: Machine) -> None:
    argv = [program("ostree"), "admin", "deploy", "--sysroot", str(ostree.root), "--os=fedora", "os"]
    subprocess.run(argv, check=True, capture_output=True)
    with pytest.raises(TargetError, match="2 deployments"):
        find_old(ostree.root)


def test_the_command_shows_the_plan_and_asks_nobody_who_is_not_there(debian: Machine) -> None:
    run = CliRunner()
    words = ["install", "demo", "--repo", str(debian.repo), "--target", str(debian.root), "--esp", str(debian.esp)]
    words += ["--allow-missing-verity"]
    done = run.invoke(app, [*words, "--take-over", "users,ssh", "--dry-run"])
    assert done.exit_code == 0, done.output
    assert "TAKEN OVER" in done.stdout
    assert "root, me" in done.stdout
    assert "stays behind: twin" in done.stdout
    assert not (debian.root / "state").exists()
    done = run.invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "--take-over all" in " ".join(done.output.split())
    done = run.invoke(app, [*words, "--take-over", "all"])
    assert isinstance(done.exception, Error)
    assert "first image" in done.exception.message
    place = ["--sysroot", str(debian.root), "--esp", str(debian.esp)]
    assert run.invoke(app, ["gc", "--transition", *place]).exit_code != 0
