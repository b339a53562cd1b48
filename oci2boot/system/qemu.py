"""A virtual machine under QEMU: UEFI firmware, one disk, its serial ports as text.

Firmware is found by QEMU's firmware descriptors (docs/interop/firmware.json). Units and kernel arguments are passed in
as SMBIOS type 11 strings (systemd.system-credentials(7), systemd-stub(7)), so the disk under test stays as it is.
"""

import json
import os
import re
import shutil
import subprocess
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from oci2boot.errors import ToolError
from oci2boot.system.run import Argv, find_program

QEMU = "qemu-system-x86_64"
DESCRIPTORS = (Path("/etc/qemu/firmware"), Path("/usr/share/qemu/firmware"))
CONSOLE_LIMIT = 16 << 20
"""Bytes of one serial port that are looked at."""

Accelerator = Literal["kvm", "tcg"]
Port = Literal["console", "report"]

KVM_PROBE_SECONDS = 1.5
"""After these the firmware is past the code that a KVM without full emulation fails in."""


@dataclass(frozen=True, slots=True)
class Firmware:
    """UEFI for x86-64: the code, shared by all machines, and the variables that each machine copies."""

    code: Path
    variables: Path
    secure: bool = False
    """Does Secure Boot, which needs system management mode; its variable store is in Setup Mode as delivered."""


@dataclass(frozen=True, slots=True)
class DirectBoot:
    """What QEMU hands to the firmware to start, as a boot loader of the board would; the disk brings none of it."""

    kernel: Path
    initramfs: Path
    cmdline: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VirtualMachine:
    """What to boot. The disk file is not written unless `keep_writes`."""

    disk: Path
    firmware: Firmware
    accelerator: Accelerator = "tcg"
    memory: int = 768
    """MiB. TCG needs real memory on the host for what the guest touches."""
    smbios: tuple[str, ...] = ()
    """Strings of SMBIOS type 11, as `kernel_arguments` and `credential` make them."""
    keep_writes: bool = False
    may_reboot: bool = False
    """Else a guest that reboots ends the machine: that is how a refused boot shows."""
    ssh_port: int | None = None
    """Port of the host's loopback that leads to port 22 of the guest; without it there is no network."""
    tpm: Path | None = None
    """Socket of a running swtpm."""
    monitor: Path | None = None
    """Socket to be made, for `qmp.save_screen`; the machine then has a graphics card."""
    second_disk: Path | None = None
    """A raw file, the guest's /dev/vdb; written under the same condition as `disk`."""
    registry_port: int | None = None
    """Port of the host's loopback that the guest reaches, and nothing else, as 10.0.2.100:5000; by socat."""
    optical: bool = False
    """The disk is a DVD in a SATA drive."""
    direct: DirectBoot | None = None


def find_firmware(*, secure: bool = False, descriptors: tuple[Path, ...] = DESCRIPTORS) -> Firmware:
    """Return UEFI firmware for q35, without enrolled keys; a file in an earlier folder hides its namesake."""
    files: dict[str, Path] = {}
    for folder in reversed(descriptors):
        files |= {file.name: file for file in folder.glob("*.json")}
    for name in sorted(files):
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            firmware = _read_descriptor(json.loads(files[name].read_bytes()))
            if firmware is not None and firmware.secure == secure and firmware.code.is_file():
                return firmware
    raise ToolError("no UEFI firmware for QEMU found", hint="install the package ovmf (Debian), edk2-ovmf (others)")


def _read_descriptor(descriptor: dict[str, Any]) -> Firmware | None:
    machines = [
        name for target in descriptor["targets"] if target["architecture"] == "x86_64" for name in target["machines"]
    ]
    features = descriptor["features"]
    mapping = descriptor["mapping"]
    if not any(name.startswith("pc-q35") for name in machines) or "uefi" not in descriptor["interface-types"]:
        return None
    if "enrolled-keys" in features or mapping["device"] != "flash" or mapping["executable"]["format"] != "raw":
        return None
    return Firmware(
        Path(mapping["executable"]["filename"]),
        Path(mapping["nvram-template"]["filename"]),
        secure="requires-smm" in features,
    )


def choose_accelerator(firmware: Firmware) -> Accelerator:
    """Return kvm where it is there and the firmware runs by it.

    KVM inside some virtual machines makes a machine, but has no SMM, or stops at an instruction it does not know.
    """
    program = find_program(QEMU)
    if program is None or not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg"
    argv = [
        program,
        *_base_words(firmware, "kvm"),
        "-m", "256",
        "-monitor", "stdio",
    ]  # fmt: skip
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as probe:
        try:
            probe.wait(KVM_PROBE_SECONDS)
        except subprocess.TimeoutExpired:
            try:
                said, _ = probe.communicate(b"info status\nquit\n", timeout=10)
                return "kvm" if b"VM status: running" in said else "tcg"
            except subprocess.TimeoutExpired:
                probe.kill()
    return "tcg"


def kernel_arguments(text: str) -> str:
    """Make the SMBIOS string that systemd-stub (from 254 on) appends to the kernel command line."""
    return f"io.systemd.stub.kernel-cmdline-extra={text}"


def credential(name: str, value: bytes) -> str:
    """Make the SMBIOS string by which systemd takes a credential."""
    return f"io.systemd.credential.binary:{name}={b64encode(value).decode()}"


def unit_credentials(unit: str, text: str, wanted_by: str) -> tuple[str, ...]:
    """Make the SMBIOS strings that add a unit for one boot. systemd 256 and newer."""
    return (
        credential(f"systemd.extra-unit.{unit}", text.encode()),
        credential(f"systemd.unit-dropin.{wanted_by}~{unit.partition('.')[0]}", f"[Unit]\nWants={unit}\n".encode()),
    )


def _value(text: str | Path) -> str:
    return str(text).replace(",", ",,")


def _base_words(firmware: Firmware, accelerator: Accelerator) -> list[str]:
    words = [
        "-machine", "q35,smm=on" if firmware.secure else "q35",
        "-accel", accelerator,
        # qemu64 is 40 % faster than max under TCG, one processor faster than two (no barriers between them)
        # QEMU 7.2's cmpxchg16b leaves its operand in EFLAGS, and an interrupt right after it brings the kernel down
        "-cpu", "host" if accelerator == "kvm" else "qemu64,-cx16",
        "-smp", "1",
        "-nodefaults", "-no-user-config", "-display", "none",
        "-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={_value(firmware.code)}",
    ]  # fmt: skip
    if firmware.secure:
        words += ["-global", "driver=cfi.pflash01,property=secure,value=on", "-global", "ICH9-LPC.disable_s3=1"]
    return words


def qemu_argv(machine: VirtualMachine, variables: Path, ports: tuple[Path, ...] | Literal["stdio"]) -> Argv:
    """Return the command; each path of `ports` takes what the guest writes to ttyS0, ttyS1 and so on."""

    snapshot = "" if machine.keep_writes else ",snapshot=on"
    argv = [
        QEMU,
        *_base_words(machine.firmware, machine.accelerator),
        "-m", str(machine.memory),
        "-drive", f"if=pflash,unit=1,format=raw,file={_value(variables)}",
        "-drive", f"if=none,id=disk,format=raw,file={_value(machine.disk)}"
        + (",media=cdrom,readonly=on" if machine.optical else snapshot),
        "-device", f"{'ide-cd' if machine.optical else 'virtio-blk-pci'},drive=disk,bootindex=1",
        "-device", "virtio-rng-pci",
    ]  # fmt: skip
    if not machine.may_reboot:
        argv += ["-no-reboot"]
    if direct := machine.direct:
        argv += ["-kernel", str(direct.kernel), "-initrd", str(direct.initramfs), "-append", direct.cmdline]
    if machine.second_disk is not None:
        argv += ["-drive", f"if=none,id=second,format=raw,file={_value(machine.second_disk)}{snapshot}"]
        argv += ["-device", "virtio-blk-pci,drive=second"]
    network = []
    if machine.ssh_port is not None:
        network.append(f"hostfwd=tcp:127.0.0.1:{machine.ssh_port}-:22")
    if machine.registry_port is not None:
        # By a command: a character device would serve one connection in all.
        relay = f"socat STDIO TCP4:127.0.0.1:{machine.registry_port}"
        network.append(f"guestfwd=tcp:10.0.2.100:5000-cmd:{relay}")
    if network:
        argv += ["-netdev", ",".join(["user,id=net,restrict=on", *network])]
        argv += ["-device", "virtio-net-pci,netdev=net"]
    if machine.tpm is not None:
        argv += ["-chardev", f"socket,id=tpm,path={_value(machine.tpm)}"]
        argv += ["-tpmdev", "emulator,id=tpm0,chardev=tpm", "-device", "tpm-tis,tpmdev=tpm0"]
    if machine.monitor is not None:
        argv += ["-device", "VGA", "-qmp", f"unix:{_value(machine.monitor)},server=on,wait=off"]
    for text in machine.smbios:
        argv += ["-smbios", f"type=11,value={_value(text)}"]
    if ports == "stdio":
        return [*argv, "-chardev", "stdio,id=console,mux=on,signal=off", "-serial", "chardev:console"]
    return [*argv, *(word for port in ports for word in ("-serial", f"file:{_value(port)}"))]


def prepare_variables(machine: VirtualMachine, folder: Path) -> Path:
    """Return the machine's own UEFI variables in `folder`, those of the last run when there are."""
    folder.mkdir(parents=True, exist_ok=True)
    variables = folder / "variables.fd"
    if not variables.exists():
        shutil.copyfile(machine.firmware.variables, variables)
    return variables


def clean_console(raw: bytes) -> str:
    """Return what a terminal's reader would see: without escape sequences and carriage returns."""
    text = raw.decode(errors="replace")
    text = re.sub(r"\x1b\][^\x07\x1b]*(\x07|\x1b\\)", "", text)  # operating system commands: titles, colours
    text = re.sub(r"\x1b(\[[0-9;?=]*[ -/]*[@-~]|[()][0-9A-B]|[ -/]*[0-~])", "", text)
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f]", "", text)


_KERNEL_LINE = re.compile(r"\[ *\d+\.\d{6}\] [^\n]*(?:\n|$)")


def find_words(pattern: str, text: str) -> re.Match[str] | None:
    """Search a console; where the kernel wrote into the middle of a line, also the line as it would stand without."""
    return re.search(pattern, text) or re.search(pattern, _KERNEL_LINE.sub("", text))


@dataclass(slots=True)
class Running:
    """A started machine. `console` is ttyS0, `report` ttyS1: after the firmware, only what the caller sends there."""

    process: subprocess.Popen[bytes]
    folder: Path
    started: float = field(default_factory=time.monotonic)

    @property
    def console(self) -> str:
        return self._read("console")

    @property
    def report(self) -> str:
        return self._read("report")

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def _read(self, port: str) -> str:
        with (self.folder / port).open("rb") as file:
            return clean_console(file.read(CONSOLE_LIMIT))

    def wait_for(self, pattern: str, timeout: float, *, port: Port | Literal["any"] = "console") -> re.Match[str]:
        """Wait until a serial port has text that matches. Raises `ToolError` when the machine ends or time is up."""
        ports: tuple[Port, ...] = ("console", "report") if port == "any" else (port,)
        where = "ports" if port == "any" else port
        deadline = time.monotonic() + timeout
        while True:
            ended = self.process.poll() is not None
            for one in ports:
                if match := find_words(pattern, self._read(one)):
                    return match
            if ended:
                raise self._failure(f"the machine ended without {pattern!r} on its {where}")
            if "Kernel panic - not syncing" in self.console:
                raise self._failure(f"the guest's kernel gave up before {pattern!r}")
            if time.monotonic() > deadline:
                raise self._failure(f"the machine did not show {pattern!r} on its {where} within {timeout:.0f} seconds")
            time.sleep(0.25)

    def wait_end(self, timeout: float) -> None:
        """Wait until the guest powers off or, where it may not, reboots."""
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise self._failure(f"the machine did not end within {timeout:.0f} seconds") from None

    def _failure(self, message: str) -> ToolError:
        words = self._read("messages").strip()
        last = "\n".join(self.console.splitlines()[-15:])
        return ToolError(f"{message}; its last words:\n{words}\n{last}")

    def end(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    @classmethod
    def start(cls, machine: VirtualMachine, folder: Path) -> Self:
        """Start the machine with its variables and serial ports in `folder`."""
        program = find_program(QEMU)
        if program is None:
            raise ToolError(f"{QEMU} is not installed", hint="install the package qemu-system-x86")
        variables = prepare_variables(machine, folder)
        ports = (folder / "console", folder / "report")
        for port in ports:
            port.write_bytes(b"")
        argv = qemu_argv(machine, variables, ports)
        with (folder / "messages").open("wb") as messages:
            process = subprocess.Popen(
                [program, *map(str, argv[1:])],
                stdin=subprocess.DEVNULL,
                stdout=messages,
                stderr=messages,
            )
        return cls(process, folder)


@contextmanager
def boot(machine: VirtualMachine, folder: Path) -> Iterator[Running]:
    """Run a machine for as long as the block lasts."""
    running = Running.start(machine, folder)
    try:
        yield running
    finally:
        running.end()
