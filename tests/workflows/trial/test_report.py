"""What a machine said, read: lines as OVMF, systemd-stub, Debian's kernel and systemd wrote them on a serial port."""

import pytest

from oci2boot.digest import RootHash, VerityDigest
from oci2boot.system.qemu import find_words
from oci2boot.workflows.trial.reading import image_times, way_of
from oci2boot.workflows.trial.report import LOGIN, UP, Booted, words_of
from oci2boot.workflows.trial.tamper import FIRMWARE, STUB, TWO_PROMISES

DIGEST = VerityDigest.parse("9dd069e6f08c6ac875197af0b47db4f28dbc71b9943ca290392c1c28f84f3d98")
LINE = f"console=ttyS0 rw composefs={DIGEST}"
CONSOLE = f"""\
EFI stub: UEFI Secure Boot is enabled.
[    0.000000] Linux version 6.12.107+deb13-cloud-amd64
[    0.000000] Command line: {LINE}
[   14.703712] setup-root[211]: oci2boot: root is the image sha256:{DIGEST}
demo login: """
DROPPED = (
    "../src/boot/stub.c:597@load_addons: Failed to read 'zz.addon.efi' from "
    r"'\EFI\Linux\os.efi.extra.d\zz.addon.efi', ignoring: Access denied"
)


def booted(console: str = CONSOLE, **report: str) -> Booted:
    return Booted(console, report, 42.0)


@pytest.mark.parametrize(
    "prompt",
    [
        "demo login: ",
        "demo login: [  OK  ] Finished oci2boot-report.service.",
        "demo lo[   47.061388] powernow_k8: Power state transitions not supported\ngin: ",
        "oci2boot-end=",
    ],
)
def test_a_machine_is_up_whoever_else_writes(prompt: str) -> None:
    assert find_words(UP, f"Debian GNU/Linux 13 demo ttyS0\n\n{prompt}")


def test_what_only_speaks_of_logins_is_no_prompt() -> None:
    said = "         Starting systemd-logind.service - User Login Management...\nelogin: 3\n"
    assert find_words(LOGIN, said) is None


def test_the_machines_own_word_on_its_command_line_counts() -> None:
    assert booted().arguments == LINE.split()
    assert booted(cmdline=f"{LINE} debug").arguments[-1] == "debug"
    assert booted("no word of it").arguments == []


def test_what_a_machine_does_not_show_it_lacks() -> None:
    assert booted().lacks(DIGEST, secure=True) == []
    assert booted("demo login: ", cmdline=LINE, **{"secure-boot": "1"}).lacks(DIGEST, secure=True) == []
    assert booted(CONSOLE.replace("enabled", "disabled")).lacks(DIGEST, secure=False) == []
    missing = booted("demo login: ", cmdline="rw", **{"secure-boot": "0"}).lacks(DIGEST, secure=True)
    assert missing == [f"a command line with {DIGEST}", "Secure Boot"]


ROOT_HASH = RootHash.parse("3e3cfc9b264cbf9daf5df97c9ae7ca52e15a423ff35171eba428f4950c3af8b2")
SALT = "11e301a9412e8474a61ae52e8b97be9edd6c9c10313fbfc41cc08726fe21ccc2"
STATUS = (
    "/dev/mapper/root is active and is in use.   type:        VERITY   status:      verified (with signature)"
    f"   hash type:   1   salt:        {SALT}   mode:        readonly   root hash:   {ROOT_HASH}"
)


def lacks_verity(cmdline: str, root: str = "erofs /dev/mapper/root", status: str = "") -> list[str]:
    found = booted("", cmdline=cmdline, root=root, **{"dm-verity": status})
    return found.lacks(ROOT_HASH, secure=False)


def test_a_machine_under_dm_verity_shows_its_root_hash_and_device() -> None:
    """K0.1: as veritysetup 2.7 and findmnt say it."""
    assert lacks_verity(f"ro roothash={ROOT_HASH}") == []
    assert lacks_verity(f"ro roothash={ROOT_HASH}", status=STATUS) == []
    assert lacks_verity("ro", status=STATUS) == [], "a table in the initramfs"
    lacking = [f"root hash {ROOT_HASH}"]
    assert lacks_verity("ro") == lacking
    assert lacks_verity(f"ro roothash={SALT}") == lacking
    assert lacks_verity(f"ro roothash={SALT}", status=STATUS) == lacking
    assert lacks_verity(f"ro roothash={ROOT_HASH} roothash={SALT}") == lacking
    assert lacks_verity("ro", status=STATUS.replace(str(ROOT_HASH), "none")) == lacking
    for root in ("", "ext4 /dev/mapper/root", "erofs /dev/vda2"):
        assert lacks_verity(f"roothash={ROOT_HASH}", root) == ["EROFS on /dev/mapper/root as its root"]
    corrupted = lacks_verity("ro", status=STATUS.replace("verified (with signature)", "corrupted"))
    assert corrupted == ["word that dm-verity has found no fault"]


def test_times_are_in_the_order_of_the_boot() -> None:
    """C.20"""
    times = booted(InitRD="4900123", Userspace="16000001", uptime="48.21").times()
    assert list(times.items()) == [("initramfs", 4.9), ("composefs", 14.7), ("switch_root", 16.0), ("up", 48.2)]
    assert booted("", InitRD="0", Userspace="no", uptime="").times() == {}


def test_pcrs_are_those_that_the_machine_read() -> None:
    assert booted(**{"pcr-11": "AB" * 32, "cmdline": "rw"}).pcrs == {"11": "ab" * 32}
    assert booted().pcrs == {}


def test_a_dropped_addon_is_read_off_the_stubs_line() -> None:
    said = words_of(f"Boot in 1 s.\n{DROPPED}\nEFI stub: UEFI Secure Boot is enabled.\n", STUB)
    assert said.endswith("ignoring: Access denied")
    assert words_of("Error loading EFI\\Linux\\os.efi: Access denied", STUB) == ""


def test_a_long_line_is_shown_whole_and_a_menu_is_not() -> None:
    reason = f"more than one composefs argument on the command line: composefs={DIGEST} and composefs={'ab' * 32}"
    line = f"[   14.703712] setup-root[211]: oci2boot: FATAL: {reason}"
    assert words_of(f"before\n{line}\nafter", TWO_PROMISES).endswith(f"oci2boot: FATAL: {reason}")
    assert len(words_of(f"{'menu ' * 1000}Error loading os.efi: Access denied\n", FIRMWARE)) <= 200


VERIFIED = "[   33.1] setup-root[208]: oci2boot: the image is verified, %s, from 9.81 to 10.32 s\n"


def test_how_the_image_was_read_comes_from_the_initramfs_and_the_other_way_from_the_machine() -> None:
    """C.20, D.5"""
    again = {"image": "80.00 80.02 80.40"}
    for way, took in (("ahead", {"ahead": 0.51, "on-demand": 0.02}), ("on-demand", {"ahead": 0.4, "on-demand": 0.51})):
        assert (way_of(VERIFIED % way), image_times(VERIFIED % way, again)) == (way, took)
    assert (way_of(CONSOLE), image_times(CONSOLE, {})) == (None, {})
    assert image_times(CONSOLE, {"image": "80.00 soon 80.40"}) == {}
