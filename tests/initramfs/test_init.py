"""What the first program of a built-in initramfs makes of its command line, under each shell."""

import base64
import json
import random
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from oci2boot.boot.roothash import pack_partition, parse_partition, sign_root_hash
from oci2boot.digest import RootHash
from oci2boot.rootfs.dmverity import Overlay
from oci2boot.workflows.trial.guarded import UNSIGNED
from tests.initramfs.scripts import SCRIPTS, SHELLS, needed_by, shell
from tests.keys import make

INIT, SETUP_OVERLAYS = SCRIPTS / "init", SCRIPTS / "setup-overlays"
HASH = "00112233445566778899aabbccddeeff" * 2
LONG = "00112233445566778899aabbccddeeff" * 3 + "fedcba9876543210" * 2
# UAPI group, Discoverable Partitions Specification: the first and the last 128 bits of the root hash.
FIRST = "PARTUUID=00112233-4455-6677-8899-aabbccddeeff"
LAST = "PARTUUID=fedcba98-7654-3210-fedc-ba9876543210"


def plan(name: str, mode: str, line: str, folder: Path, veritytab: str | None = None) -> tuple[int, str, str]:
    (folder / "cmdline").write_text(line + "\n")
    table = folder / "veritytab"
    table.unlink(missing_ok=True)
    if veritytab is not None:
        table.write_text(veritytab)
    argv = [*shell(name), str(INIT), "plan", mode, str(folder / "cmdline"), str(table)]
    done = subprocess.run(argv, check=False, capture_output=True, text=True, env={})
    return done.returncode, done.stdout.strip(), done.stderr.strip()


@pytest.mark.parametrize("name", SHELLS)
@pytest.mark.parametrize(
    ("line", "said"),
    [
        (f"roothash={HASH}", f"{FIRST} {FIRST} {HASH} init="),
        (f'ro "roothash={LONG}" init=/sbin/other', f"{FIRST} {LAST} {LONG} init=/sbin/other"),
        (
            (
                f"roothash={HASH} systemd.verity_root_data=/dev/vda2 systemd.verity_root_hash=LABEL=tree "
                "systemd.verity_root_options=panic-on-corruption,hash-offset=4096"
            ),
            f"/dev/vda2 LABEL=tree {HASH} --panic-on-corruption --hash-offset=4096 init=",
        ),
        (
            (
                f'roothash={HASH} x="roothash={LONG} y" '
                "systemd.verity_root_options=root-hash-signature=/a,check-at-most-once"
            ),
            f"{FIRST} {FIRST} {HASH} --check-at-most-once signature=/a init=",
        ),
    ],
)
def test_what_is_opened_under_dm_verity(name: str, line: str, said: str, tmp_path: Path) -> None:
    """K1.6, K1.7, K1.8"""
    assert plan(name, "verity", line, tmp_path) == (0, said, "")


@pytest.mark.parametrize("name", SHELLS)
def test_a_veritytab_says_it_instead(name: str, tmp_path: Path) -> None:
    """K1.20"""
    table = f"# what is guarded\nother /dev/a /dev/b {LONG}\nroot {FIRST} {LAST} {HASH} restart-on-corruption\n"
    assert plan(name, "verity", "root=/dev/mapper/root", tmp_path, table) == (
        0,
        f"{FIRST} {LAST} {HASH} --restart-on-corruption init=",
        "",
    )
    code, _, words = plan(name, "verity", f"roothash={HASH}", tmp_path, table)
    assert (code, "both the command line and veritytab" in words) == (1, True)


@pytest.mark.parametrize("name", SHELLS)
@pytest.mark.parametrize(
    ("mode", "line", "why"),
    [
        ("verity", "quiet", "no roothash="),
        ("verity", f"roothash={HASH} roothash={HASH}", "more than one roothash="),
        ("verity", f'roothash={HASH} "roothash={LONG}"', "more than one roothash="),
        ("verity", f"roothash={HASH[:-1]}", "not a root hash"),
        ("verity", f"roothash={HASH[:-1]}X", "not a root hash"),
        ("verity", f'roothash="{HASH[:32]} {HASH[32:]}"', "malformed"),
        ("verity", "roothash=", "malformed"),
        ("verity", f"roothash={HASH} root=/dev/vda2", "not what dm-verity verifies"),
        ("verity", f"roothash={HASH} init=/a init=/b", "more than one init="),
        ("verity", f"roothash={HASH} systemd.verity_root_options=superblock=no", "does not know"),
        ("verity", f"roothash={HASH} systemd.verity_root_options=hash-offset=1x", "malformed"),
        ("verity", f"roothash={HASH} composefs={'ab' * 32}", "for dm-verity"),
        ("erofs", f"root=LABEL=x roothash={HASH}", "does not verify"),
        ("erofs", f"root=LABEL=x composefs={'ab' * 32}", "does not verify"),
        ("erofs", "quiet", "no root="),
        ("composefs", f"composefs={'ab' * 32} roothash={HASH}", "for composefs"),
        ("composefs", "root=LABEL=a root=LABEL=b", "more than one root="),
        ("other", "root=LABEL=a", "does not know"),
    ],
)
def test_what_is_refused(name: str, mode: str, line: str, why: str, tmp_path: Path) -> None:
    """K1.6, K1.18: addons and the host of a VM can append to the command line, not choose another mode."""
    code, said, words = plan(name, mode, line, tmp_path)
    assert (code, said) == (1, "")
    assert words.startswith("oci2boot: FATAL: ")
    assert why in words


@pytest.mark.parametrize("name", SHELLS)
def test_the_signature_is_found_in_its_partition(name: str, tmp_path: Path) -> None:
    """K1.1: what the partition holds is what systemd-repart writes; the kernel checks it."""
    key = make(tmp_path, "key")
    root_hash = RootHash.parse(HASH)
    signature = sign_root_hash(root_hash, key.signer)
    partition = pack_partition(root_hash, signature, key.certificate)
    spaced = json.dumps(json.loads(partition.rstrip(b"\0")), indent=2).encode().ljust(16384, b"\0")
    argv = [*shell(name), str(INIT), "signature"]
    path = {"PATH": "/usr/bin:/bin"}
    for content in (partition, spaced):
        done = subprocess.run([*argv, HASH], input=content, check=True, capture_output=True, env=path)
        assert done.stdout == parse_partition(partition)[1] == signature
    for content, wanted in ((partition, LONG), (b"\0" * 16384, HASH), (base64.b64encode(random.randbytes(99)), HASH)):
        done = subprocess.run([*argv, wanted], input=content, check=False, capture_output=True, env=path)
        assert (done.returncode, done.stdout) == (1, b"")


OPENED = """
. "$0"
wait_for() { node=$1; }
veritysetup() { case $1 in open) echo "$@" ;; status) echo "$said" ;; esac; }
mount() { echo "mount $*"; }
open_verity
"""
"""`$0` is init, as it would be by itself; the devices and what opens them are ours."""
GOOD = "status: verified"
NO_SIGNATURE = "there is no signature of the root hash: neither in /none nor in a partition"


def opened(
    name: str, options: str, folder: Path, *, required: bool, said: str = GOOD, debug: bool = False
) -> tuple[int, str, str]:
    for script in needed_by("init"):
        shutil.copy(SCRIPTS / script, folder)
    if required:
        (folder / "verity-signature-required").touch()
    if debug:
        (folder / "verity-debug").touch()
    line = f"roothash={HASH} systemd.verity_root_data=/dev/none systemd.verity_root_options={options or '-'}"
    (folder / "cmdline").write_text(line)
    argv = [*shell(name), "-c", OPENED, str(folder / "init"), "plan", "verity", str(folder / "cmdline"), "/none"]
    done = subprocess.run(argv, check=False, capture_output=True, text=True, env={"said": said})
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("name", SHELLS)
def test_what_is_signed_is_opened_with_its_signature(name: str, tmp_path: Path) -> None:
    """K1.1"""
    (tmp_path / "signature").write_bytes(b"DER")
    code, done, words = opened(name, f"root-hash-signature={tmp_path}/signature", tmp_path, required=True)
    assert code == 0, words
    assert f"open --root-hash-signature={tmp_path}/signature /dev/none root {FIRST} {HASH}\n" in done
    assert "mount -t erofs -o ro /dev/mapper/root /sysroot\n" in done


@pytest.mark.parametrize("name", SHELLS)
@pytest.mark.parametrize(
    ("options", "required", "said", "why"),
    [
        ("", True, GOOD, "has no signature, and one is required"),
        ("root-hash-signature=/none", True, GOOD, NO_SIGNATURE),
        ("root-hash-signature=/none", False, GOOD, NO_SIGNATURE),
        ("ignore-corruption", True, GOOD, "would switch off the verification"),
        ("", False, "status: corrupted", "not verified"),
        ("", False, "/dev/mapper/root is inactive.", "not verified"),
    ],
)
def test_what_is_not_signed_or_not_verified_is_not_booted(
    name: str, options: str, required: bool, said: str, why: str, tmp_path: Path
) -> None:
    """K1.1, K1.18: the initramfs says whether a signature is required, not the command line."""
    code, done, words = opened(name, options, tmp_path, required=required, said=said)
    assert code == 1
    assert why in words
    assert ("open " in done) == (said != GOOD)
    # By these words `test --tamper` sees that a signature is missed.
    assert bool(re.search(UNSIGNED, words)) == ("signature" in why)


@pytest.mark.parametrize("name", SHELLS)
def test_corruption_may_be_ignored_where_the_builder_says_so(name: str, tmp_path: Path) -> None:
    """K1.21, C.36: not where a signature is required, nor by the word of a command line alone."""
    code, done, words = opened(name, "ignore-corruption", tmp_path, required=False)
    assert (code, "would switch off the verification" in words, "open" in done) == (1, True, False)
    code, done, _ = opened(name, "ignore-corruption", tmp_path, required=False, debug=True)
    assert code == 0
    assert "open --ignore-corruption /dev/none" in done
    code, _, words = opened(name, "ignore-corruption", tmp_path, required=True, debug=True)
    assert (code, "would switch off the verification" in words) == (1, True)


# ---- setup-overlays


def listed(name: str, text: str, folder: Path) -> tuple[int, str, str]:
    (folder / "overlays").write_text(text)
    argv = [*shell(name), str(SETUP_OVERLAYS), "list", str(folder / "overlays")]
    done = subprocess.run(argv, check=False, capture_output=True, text=True, env={})
    return done.returncode, done.stdout.strip(), done.stderr.strip()


@pytest.mark.parametrize("name", SHELLS)
def test_the_list_of_overlays(name: str, tmp_path: Path) -> None:
    """K0.3, K0.4"""
    assert listed(name, "", tmp_path) == (0, "", "")
    text = "/etc persistent\n\n/var/lib/x-1.2 tmpfs"
    assert listed(name, text, tmp_path) == (0, "/etc:persistent /var/lib/x-1.2:tmpfs", "")
    for place in ("/etc", "/home", "/var/lib/a_b"):
        assert listed(name, f"{Overlay.parse(place).path} tmpfs\n", tmp_path)[0] == 0


@pytest.mark.parametrize("name", SHELLS)
@pytest.mark.parametrize(
    "line",
    ["etc tmpfs", "/ tmpfs", "/../usr tmpfs", "/etc/. tmpfs", "//etc tmpfs", "/a,b tmpfs", "/a:b tmpfs", "/etc",
     "/etc kept", "/etc tmpfs more", "/etc/$x tmpfs"],
)  # fmt: skip
def test_a_line_that_is_no_overlay_stops_the_boot(name: str, line: str, tmp_path: Path) -> None:
    """K0.17"""
    code, said, words = listed(name, f"/var tmpfs\n{line}\n", tmp_path)
    assert (code, said) == (1, "")
    assert "FATAL" in words


@pytest.mark.parametrize("name", SHELLS)
def test_a_list_that_is_missing_stops_the_boot(name: str, tmp_path: Path) -> None:
    argv = [*shell(name), str(SETUP_OVERLAYS), "list", str(tmp_path / "none")]
    done = subprocess.run(argv, check=False, capture_output=True, text=True, env={})
    assert (done.returncode, "FATAL" in done.stderr) == (1, True)


MOUNTS = """
for name in mount umount mkdir chroot; do eval "$name() { echo $name \\"\\$*\\"; }"; done
. "$0"
"""
"""What a script does to the machine is told instead; `$0` is the script, as it would be by itself."""


def laid(name: str, root: Path, place: str, folder: Path) -> tuple[int, str, str]:
    for script in needed_by("setup-overlays"):
        shutil.copy(SCRIPTS / script, folder)
    (folder / "overlays").write_text(f"{place} tmpfs\n")
    argv = [*shell(name), "-c", MOUNTS, str(folder / "setup-overlays"), str(root)]
    done = subprocess.run(argv, check=False, capture_output=True, text=True, env={})
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("name", SHELLS)
def test_an_overlay_is_laid_on_a_directory_of_the_root_file_system(name: str, tmp_path: Path) -> None:
    """K0.3"""
    root = tmp_path / "root"
    (root / "var/lib").mkdir(parents=True)
    code, done, _ = laid(name, root, "/var/lib", tmp_path)
    assert code == 0
    assert f"lowerdir={root}/var/lib,upperdir=" in done
    assert f" oci2boot {root}/var/lib\n" in done


@pytest.mark.parametrize("name", SHELLS)
@pytest.mark.parametrize("place", ["/etc", "/var/lib", "/var/lib/below", "/none", "/file"])
def test_an_overlay_is_laid_nowhere_else(name: str, place: str, tmp_path: Path) -> None:
    """K0.17: in the initramfs a symlink of the root file system leads to a directory of the initramfs."""
    root = tmp_path / "root"
    (tmp_path / "outside/below").mkdir(parents=True)
    (root / "var").mkdir(parents=True)
    (root / "etc").symlink_to(tmp_path / "outside")
    (root / "var/lib").symlink_to(tmp_path / "outside")
    (root / "file").write_text("")
    code, done, words = laid(name, root, place, tmp_path)
    assert code == 1
    assert f"FATAL: the root file system has no directory {place} " in words
    assert "mount -t overlay" not in done


@pytest.mark.parametrize("name", SHELLS)
def test_programs_of_the_root_run_before_anything_lies_over_it(name: str, tmp_path: Path) -> None:
    """B.12: ld.so(8): an /etc that was kept may name in ld.so.preload what they load."""
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    (root / "var/lib").mkdir(parents=True)
    code, done, words = laid(name, root, "/etc tmpfs\n/var/lib", tmp_path)
    assert (code, "FATAL" in words) == (0, False)
    kinds = [
        "run" if line.startswith("chroot") else "lay"
        for line in done.splitlines()
        if "chroot" in line or "-t overlay" in line
    ]
    assert kinds == ["run", "run", "lay", "lay"]
    assert len(set(re.findall(r"upperdir=([^,]+)", done))) == 2
    for line in done.splitlines():
        if "-t overlay" in line:
            assert "rw,nosuid,nodev,lowerdir=" in line


@pytest.mark.parametrize("name", SHELLS)
@pytest.mark.parametrize(
    "place", ["", "/overlays", "/overlays/etc", "/overlays/etc/upper", "/overlays/var", "/overlays/var/lib"]
)
def test_no_symlink_of_the_state_partition_is_followed(name: str, place: str, tmp_path: Path) -> None:
    """B.12: the state partition is anybody's who had the disk."""
    kept, outside, root = tmp_path / "kept", tmp_path / "outside", tmp_path / "root"
    outside.mkdir()
    for path in ("etc", "var/lib"):
        (root / path).mkdir(parents=True)
    led = kept / f"state{place}"
    led.parent.mkdir(parents=True)
    led.symlink_to(outside)
    for script in needed_by("setup-overlays"):
        shutil.copy(SCRIPTS / script, tmp_path)
    for script, old, new in (
        ("setup-root", "work=/run/oci2boot\n", f"work={tmp_path}/work\n"),
        ("setup-overlays", "state_mount=$work/state\n", f"state_mount={kept}\n"),
        ("setup-overlays", "    wait_for_state\n", "    state_node=/dev/none\n"),
        ("setup-overlays", "*) keep_in_memory ;;", "*) ;;"),
    ):
        text = (tmp_path / script).read_text()
        assert text.count(old) == 1
        (tmp_path / script).write_text(text.replace(old, new))
    (tmp_path / "overlays").write_text("/etc persistent\n/var/lib persistent\n")
    argv = [*shell(name), "-c", MOUNTS.replace(" mkdir", ""), str(tmp_path / "setup-overlays"), str(root)]
    done = subprocess.run(argv, check=False, capture_output=True, text=True, env={})
    assert (done.returncode, "is a symlink" in done.stderr) == (1, True), done.stderr
    assert "-t overlay" not in done.stdout
    assert not list(outside.iterdir())
