"""What an initramfs of systemd makes of the device that holds the root file system, under each shell. C.36, B.12"""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.initramfs.scripts import SCRIPTS, SHELLS, needed_by, shell

CHECK = SCRIPTS / "check-verity"
HASH = "c0ffee" * 10 + "0042"
OTHER = "bad0" * 16
# kernel documentation, admin-guide/device-mapper/verity.rst: "Example", with what dmsetup puts before a table
TABLE = f"0 417792 verity 1 254:3 254:4 4096 4096 52224 1 sha256 {HASH} 1234000000"
SIGNED = f"{TABLE} 2 root_hash_sig_key_desc cryptsetup:1"


def check(name: str, promise: str | None, table: str, folder: Path) -> tuple[int, str]:
    file = folder / "root-hash"
    if promise is not None:
        file.write_text(promise)
    argv = [*shell(name), str(CHECK), "table", str(file), table]
    done = subprocess.run(argv, check=False, capture_output=True, text=True, env={})
    return done.returncode, done.stderr


@pytest.mark.parametrize("name", SHELLS)
@pytest.mark.parametrize(
    ("promise", "table"),
    [
        (f"{HASH}\n", TABLE),
        (f"{HASH}\n", SIGNED),
        (f"{HASH} signed\n", SIGNED),
        (f"{HASH}\n", f"{TABLE} 1 restart_on_corruption"),
        (f"{HASH}\n", f"{TABLE} 2 ignore_zero_blocks check_at_most_once"),
    ],
)
def test_the_promised_root_is_taken(name: str, promise: str, table: str, tmp_path: Path) -> None:
    assert check(name, promise, table, tmp_path) == (0, "")


@pytest.mark.parametrize("name", SHELLS)
@pytest.mark.parametrize(
    ("promise", "table", "said"),
    [
        (f"{HASH}\n", TABLE.replace(HASH, OTHER), f"promised is the root hash {HASH}, found is {OTHER}"),
        (f"{HASH}\n", f"{TABLE} 1 ignore_corruption", "ignore what does not verify"),
        (f"{HASH} signed\n", f"{SIGNED} ignore_corruption", "ignore what does not verify"),
        (f"{HASH} signed\n", TABLE, "not checked for a signature"),
        (f"{HASH}\n", "0 417792 linear 254:3 0", "not under dm-verity"),
        (f"{HASH}\n", "0 1 crypt " + " ".join("x" * 20), "not under dm-verity, but under crypt"),
        (f"{HASH}\n", "", "not under dm-verity"),
        ("", TABLE, "nothing in the initramfs says"),
        ("\n", TABLE, "nothing in the initramfs says"),
        (f"{HASH[:-1]}*\n", TABLE, "nothing in the initramfs says"),
        (None, TABLE, "nothing in the initramfs says"),
    ],
)
def test_another_root_stops_the_boot(name: str, promise: str | None, table: str, said: str, tmp_path: Path) -> None:
    """C.36, B.12: root=, roothash= and systemd.verity_root_options= can be appended under Secure Boot, too."""
    code, words = check(name, promise, table, tmp_path)
    assert (code, "FATAL" in words, said in words) == (1, True, True), words


@pytest.mark.parametrize("name", SHELLS)
def test_corruption_may_be_ignored_where_the_builder_says_so(name: str, tmp_path: Path) -> None:
    """K1.21: by a file beside the script, and never where a signature is demanded."""
    for script in needed_by("check-verity"):
        shutil.copy(SCRIPTS / script, tmp_path)
    (tmp_path / "verity-debug").touch()
    for promise, code in ((HASH, 0), (f"{HASH} signed", 1)):
        (tmp_path / "promise").write_text(f"{promise}\n")
        table = f"{SIGNED} ignore_corruption"
        argv = [*shell(name), str(tmp_path / "check-verity"), "table", str(tmp_path / "promise"), table]
        assert subprocess.run(argv, check=False, capture_output=True, env={}).returncode == code
