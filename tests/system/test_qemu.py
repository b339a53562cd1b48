"""The machine's command line, its console as text, and how its firmware is found."""

import json
import struct
from pathlib import Path

import pytest

from oci2boot.errors import ToolError
from oci2boot.system.qemu import (
    DirectBoot,
    Firmware,
    VirtualMachine,
    boot,
    choose_accelerator,
    clean_console,
    credential,
    find_firmware,
    find_words,
    kernel_arguments,
    qemu_argv,
    unit_credentials,
)
from oci2boot.system.qmp import save_screen
from tests.witness import program

FIRMWARE = Firmware(Path("code.fd"), Path("vars.fd"))


def words(machine: VirtualMachine) -> list[str]:
    return [str(word) for word in qemu_argv(machine, Path("own.fd"), (Path("console"), Path("report")))]


def test_the_disk_is_not_written_unless_wanted() -> None:
    drive = "if=none,id=disk,format=raw,file=a,,b.raw"
    assert f"{drive},snapshot=on" in words(VirtualMachine(disk=Path("a,b.raw"), firmware=FIRMWARE))
    assert drive in words(VirtualMachine(disk=Path("a,b.raw"), firmware=FIRMWARE, keep_writes=True))


def test_a_dvd_is_only_read() -> None:
    argv = words(VirtualMachine(disk=Path("a.iso"), firmware=FIRMWARE, optical=True, keep_writes=True))
    assert "if=none,id=disk,format=raw,file=a.iso,media=cdrom,readonly=on" in argv
    assert "ide-cd,drive=disk,bootindex=1" in argv


def test_a_guest_that_reboots_ends_the_machine_unless_it_may() -> None:
    assert "-no-reboot" in words(VirtualMachine(disk=Path("d"), firmware=FIRMWARE))
    assert "-no-reboot" not in words(VirtualMachine(disk=Path("d"), firmware=FIRMWARE, may_reboot=True))


def test_a_kernel_may_come_from_elsewhere_than_the_disk() -> None:
    direct = DirectBoot(Path("k,1"), Path("i"), "a=b,c d")
    argv = words(VirtualMachine(disk=Path("d"), firmware=FIRMWARE, direct=direct))
    assert argv[argv.index("-kernel") :][:6] == ["-kernel", "k,1", "-initrd", "i", "-append", "a=b,c d"]


def test_secure_firmware_gets_system_management_mode() -> None:
    """Without SMM the guest could write the variables that Secure Boot trusts."""
    argv = words(VirtualMachine(disk=Path("d"), firmware=Firmware(Path("c"), Path("v"), secure=True)))
    assert "q35,smm=on" in argv
    assert "driver=cfi.pflash01,property=secure,value=on" in argv


def test_strings_for_the_guest_keep_their_commas() -> None:
    argv = words(VirtualMachine(disk=Path("d"), firmware=FIRMWARE, smbios=(kernel_arguments("console=ttyS0,115200"),)))
    assert "type=11,value=io.systemd.stub.kernel-cmdline-extra=console=ttyS0,,115200" in argv


def test_credentials_follow_systemd() -> None:
    """systemd.system-credentials(7): the value in Base64, units as systemd.extra-unit and systemd.unit-dropin."""
    assert credential("a", b"\0\xff") == "io.systemd.credential.binary:a=AP8="
    unit, dropin = unit_credentials("proof.service", "[Service]\n", wanted_by="multi-user.target")
    assert unit.startswith("io.systemd.credential.binary:systemd.extra-unit.proof.service=")
    assert dropin.startswith("io.systemd.credential.binary:systemd.unit-dropin.multi-user.target~proof=")


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"\x1b[2J\x1b[01;01H\x1b[=3h\x1b[0m\x1b[35mBdsDxe\x1b[0m: starting\r\n", "BdsDxe: starting\n"),
        (b"[\x1b[0;32m  OK  \x1b[0m] Reached\r\n", "[  OK  ] Reached\n"),
        (b"\x1b]0;title\x07demo\x1b]8;;http://x\x1b\\ login: ", "demo login: "),
        (b"\x1b(B\x1b7\x1b[r\x1b[999;999H\x1b[6n\x1b8ok\xff", "ok\N{REPLACEMENT CHARACTER}"),
    ],
)
def test_the_console_reads_as_on_a_screen(raw: bytes, text: str) -> None:
    assert clean_console(raw) == text


@pytest.mark.parametrize(
    "console",
    [
        "demo login: ",
        "demo login: [   47.061388] powernow_k8: Power state transitions not supported",
        "demo lo[   47.061388] powernow_k8: Power state transitions not supported\ngin: ",
    ],
)
def test_a_prompt_is_seen_with_a_kernel_message_in_it(console: str) -> None:
    found = find_words(r"(?m:^.*\blogin: *$)", f"Debian GNU/Linux 13 demo ttyS0\n\n{console}")
    assert found is not None
    assert found[0] == "demo login: "


def test_a_kernel_message_is_found_as_it_stands() -> None:
    assert find_words(r"FILE CORRUPTED", "[   47.061388] fs-verity (vda2): FILE CORRUPTED!\n")
    assert find_words(r"login: *$", "[   47.061388] fs-verity (vda2): FILE CORRUPTED!\n") is None


def descriptor(folder: Path, name: str, features: list[str], *, device: str = "flash") -> None:
    (folder / f"{name}.code").touch()
    (folder / f"{name}.json").write_text(
        json.dumps(
            {
                "interface-types": ["uefi"],
                "mapping": {
                    "device": device,
                    "executable": {"filename": str(folder / f"{name}.code"), "format": "raw"},
                    "nvram-template": {"filename": str(folder / f"{name}.vars"), "format": "raw"},
                },
                "targets": [{"architecture": "x86_64", "machines": ["pc-q35-*"]}],
                "features": features,
            }
        )
    )


def test_firmware_is_the_first_descriptor_that_fits(tmp_path: Path) -> None:
    (tmp_path / "10-broken.json").write_text("{")
    (tmp_path / "11-odd.json").write_text("[1]")
    descriptor(tmp_path, "20-enrolled", ["secure-boot", "enrolled-keys", "requires-smm"])
    descriptor(tmp_path, "30-memory", [], device="memory")
    descriptor(tmp_path, "40-secure", ["secure-boot", "requires-smm"])
    descriptor(tmp_path, "50-plain", [])
    assert find_firmware(descriptors=(tmp_path,)).code.name == "50-plain.code"
    assert find_firmware(secure=True, descriptors=(tmp_path,)).variables.name == "40-secure.vars"


def test_the_administrators_descriptor_hides_the_distributions(tmp_path: Path) -> None:
    """docs/interop/firmware.json: an empty namesake in /etc masks."""
    etc, usr = tmp_path / "etc", tmp_path / "usr"
    etc.mkdir()
    usr.mkdir()
    descriptor(usr, "50-plain", [])
    (etc / "50-plain.json").touch()
    with pytest.raises(ToolError, match="no UEFI firmware"):
        find_firmware(descriptors=(etc, usr))


def test_this_machine_has_firmware_of_both_kinds() -> None:
    assert find_firmware().code.exists()
    assert find_firmware(secure=True).variables.exists()


def test_the_accelerator_is_one_that_runs() -> None:
    assert choose_accelerator(find_firmware()) in ("kvm", "tcg")


@pytest.mark.boot
def test_a_machine_without_anything_to_boot_shows_its_firmware_and_is_ended(tmp_path: Path) -> None:
    """The harness itself, on an empty disk: ports, patterns, time limits, a picture, and no process left."""
    disk = tmp_path / "empty.raw"
    disk.write_bytes(bytes(1 << 20))
    monitor, picture = tmp_path / "monitor", tmp_path / "screen.png"
    with boot(
        VirtualMachine(disk=disk, firmware=find_firmware(), memory=256, monitor=monitor), tmp_path / "vm"
    ) as running:
        running.wait_for("UEFI Interactive Shell", 600)
        running.wait_for("UEFI Interactive Shell", 600, port="any")
        save_screen(monitor, picture)
        # PNG, 5.2 and 11.2: signature, then the header's width and height.
        assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        assert min(struct.unpack(">II", picture.read_bytes()[16:24])) >= 480
        with pytest.raises(ToolError, match="gave no picture"):
            save_screen(monitor, tmp_path / "absent" / "screen.png")
        with pytest.raises(ToolError, match="within 0 seconds"):
            running.wait_for("login:", 0)
        with pytest.raises(ToolError, match="did not end"):
            running.wait_end(0)
    assert running.process.returncode is not None
    with pytest.raises(ToolError, match="ended without"):
        running.wait_for("login:", 60)
    with pytest.raises(ToolError, match="gave no picture"):
        save_screen(monitor, picture)
    assert "UEFI Interactive Shell" in running.report, "the firmware writes to both ports"


def test_what_qemu_says_is_in_the_error(tmp_path: Path) -> None:
    program("qemu-system-x86_64")
    machine = VirtualMachine(disk=tmp_path / "absent", firmware=find_firmware())
    with boot(machine, tmp_path / "vm") as running, pytest.raises(ToolError, match=r"Could not open '.*absent'"):
        running.wait_for("never", 30)


def test_a_guest_reaches_the_registry_and_nothing_else(tmp_path: Path) -> None:
    machine = VirtualMachine(
        disk=tmp_path / "disk", firmware=Firmware(tmp_path, tmp_path), registry_port=4321, second_disk=tmp_path / "b"
    )
    words = list(map(str, qemu_argv(machine, tmp_path / "vars", "stdio")))
    (network,) = (words[at + 1] for at, word in enumerate(words) if word == "-netdev")
    assert network == "user,id=net,restrict=on,guestfwd=tcp:10.0.2.100:5000-cmd:socat STDIO TCP4:127.0.0.1:4321"
    assert words.index("virtio-blk-pci,drive=disk,bootindex=1") < words.index("virtio-blk-pci,drive=second")
