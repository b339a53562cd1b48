"""One boot in a virtual machine, and what the machine said: on its console, and in a report that a unit sends."""

import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from oci2boot.digest import RootHash, VerityDigest
from oci2boot.errors import Error, ToolError
from oci2boot.formats.cmdline import find_root_hashes
from oci2boot.formats.png import lit_lines
from oci2boot.system.files import write_atomically
from oci2boot.system.qemu import Running, VirtualMachine, boot, credential, find_words, unit_credentials
from oci2boot.system.qmp import save_screen
from oci2boot.system.run import run
from oci2boot.system.swtpm import check_socket, software_tpm
from oci2boot.workflows.progress import Report, Warned
from oci2boot.workflows.trial.reading import read_again
from oci2boot.workflows.trial.tamper import Tampering

LOGIN: Final = r"\S login: ?"
"""Not to the end of the line: systemd may write about a unit behind it."""
SECURE: Final = r"(?i:secure ?boot[^\n]*enabled)"
END: Final = r"(?m:^oci2boot-end=)"
UP: Final = f"{LOGIN}|{END}"
PATIENCE: Final = 120.0
"""Seconds from the login prompt to the end of the report; systemd before 256 sends none."""

VERITY_DEVICE: Final = "/dev/mapper/root"

SCREEN_SECONDS: Final = 180.0
"""For which an empty screen is waited on."""
TEXT_LINES: Final = 8
"""Lines of pixels that a word lights, and a cursor alone does not."""

UNIT: Final = """\
[Unit]
After=multi-user.target
[Service]
Type=oneshot
LoadCredential=oci2boot.report
ExecStart=/bin/sh ${CREDENTIALS_DIRECTORY}/oci2boot.report
"""
SCRIPT: Final = rb"""
exec >/dev/ttyS1 2>/dev/null
say() { echo "oci2boot-$1=$2"; }
echo
read -r line </proc/cmdline && say cmdline "$line"
say secure-boot $(od -An -tu1 -j4 -N1 /sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c)
for number in 4 7 11 12; do
    file=/sys/class/tpm/tpm0/pcr-sha256/$number
    [ -r $file ] && read -r line <$file && say pcr-$number "$line"
done
say root "$(findmnt -no FSTYPE,SOURCE /)"
say dm-verity "$(veritysetup status root | tr '\n' ' ')"
for stamp in InitRD Userspace; do
    say $stamp "$(systemctl show --value --property=${stamp}TimestampMonotonic)"
done
read -r line _ </proc/uptime && say uptime "$line"
"""
LAST: Final = b"say end\n"


@dataclass(frozen=True, slots=True)
class Case:
    """One question, and what the machine said to it."""

    name: str
    ok: bool
    evidence: str
    seconds: float
    skipped: bool = False
    """It could not be asked; `ok` then says nothing."""


@dataclass(frozen=True, slots=True)
class Booted:
    """A machine that came up: what was on its ports, by then."""

    console: str
    report: Mapping[str, str]
    seconds: float

    @property
    def arguments(self) -> list[str]:
        """The kernel's command line, which the kernel itself writes to the console, if it is not quiet."""
        line = self.report.get("cmdline")
        if line is None:
            found = find_words(r"Command line: ([^\n]*)", self.console)
            line = found[1] if found else ""
        return line.split()

    @property
    def pcrs(self) -> dict[str, str]:
        """Return what the TPM holds in its bank sha256, by number; nothing where the machine shows none."""
        names = ((key.removeprefix("pcr-"), key) for key in self.report if key.startswith("pcr-"))
        return {number: self.report[key].lower() for number, key in names}

    def lacks(self, digest: VerityDigest | RootHash, *, secure: bool) -> list[str]:
        """Return what there is no sign of."""
        if isinstance(digest, RootHash):
            missing = list(self._lacks_verity(digest))
        elif not any(word.startswith("composefs") and digest.hex in word for word in self.arguments):
            missing = [f"a command line with {digest}"]
        else:
            missing = []
        if secure and self.report.get("secure-boot") != "1" and not find_words(SECURE, self.console):
            missing.append("Secure Boot")
        return missing

    def _lacks_verity(self, root_hash: RootHash) -> Iterator[str]:
        """Yield what there is no sign of; where a table in the initramfs has the root hash, the kernel alone tells."""
        status = self.report.get("dm-verity", "")
        told = {str(found) for found in find_root_hashes(self.arguments)}
        if told.union(re.findall(r"root hash: +([0-9a-f]+)", status)) != {str(root_hash)}:
            yield f"root hash {root_hash}"
        if "root" in self.report and self.report["root"].split() != ["erofs", VERITY_DEVICE]:
            yield f"EROFS on {VERITY_DEVICE} as its root"
        if status and "verified" not in status.split():
            yield "word that dm-verity has found no fault"

    def evidence(self, digest: VerityDigest | RootHash) -> str:
        """Return what shows that the root file system is the one that is promised."""
        if isinstance(digest, RootHash):
            root = self.report.get("root", "")
            shown = f"{' on '.join(root.split())}, root hash {digest}" if root else ""
            signed = "with signature" in self.report.get("dm-verity", "")
            return f"{shown}, verified with its signature" if shown and signed else shown
        return words_of(self.console, rf"root is the image [^\n]*{digest}")

    def times(self) -> dict[str, float]:
        """Return seconds from the kernel's start: initramfs begun, composefs mounted, root switched to, machine up."""
        found: dict[str, float] = {}
        for name, key, unit in (("initramfs", "InitRD", 1e-6), ("switch_root", "Userspace", 1e-6), ("up", "uptime", 1)):
            text = self.report.get(key, "")
            if re.fullmatch(r"\d{1,15}(\.\d{1,6})?", text) and float(text):
                found[name] = round(float(text) * unit, 1)
        mounted = find_words(r"\[ *(\d+\.\d{6})\] [^\n]*root is the image ", self.console)
        if mounted:
            found["composefs"] = round(float(mounted[1]), 1)
        return dict(sorted(found.items(), key=lambda item: item[1]))


def words_of(console: str, pattern: str) -> str:
    """Return what the console says around a match: its line, or of a boot menu drawn into one, the end."""
    found = find_words(pattern, console)
    if found is None:
        return ""
    text = found.string
    line = text[text.rfind("\n", 0, found.start()) + 1 :].partition("\n")[0]
    words = found[0].partition("\n")[0]
    begin = line.find(words)
    end = begin + len(words)
    readable = re.sub(r"[^ -~]+", " ", line[max(min(begin, end - 200), 0) : end + 200])
    return " ".join(readable.split())


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """Machines of one kind, each with a folder of its own below `folder`."""

    machine: VirtualMachine
    """The disk in it is the intact one."""
    folder: Path
    sockets: Path
    """A folder with a short name."""
    digest: VerityDigest | RootHash
    timeout: float
    report: Report = field(repr=False)

    def intact(
        self, *, tpm: bool = False, patience: float = PATIENCE, screenshot: Path | None = None
    ) -> tuple[Case, Booted | None]:
        """The machine has to come up, on this digest, and under Secure Boot if its firmware does that."""
        started = time.monotonic()
        try:
            with ExitStack() as stack:
                machine = self.machine
                if tpm:
                    machine = replace(machine, tpm=stack.enter_context(software_tpm(self.sockets)))
                if screenshot:
                    machine = replace(machine, monitor=self.sockets / "monitor")
                    check_socket(self.sockets / "monitor")
                with self._boot(machine, "intact") as running, self._pictured(machine.monitor, screenshot, running):
                    booted = self._wait_up(running, patience)
        except ToolError as error:
            return Case("boots", ok=False, evidence=error.message, seconds=time.monotonic() - started), None
        missing = booted.lacks(self.digest, secure=self.machine.firmware.secure)
        shown = booted.evidence(self.digest) or "login prompt"
        evidence = f"it came up, but shows no {', no '.join(missing)}" if missing else shown
        return Case("boots", not missing, evidence, booted.seconds), booted

    def tampered(self, change: Tampering) -> Case:
        """The machine must say why it refuses, and not come up; or say what it ignores, and come up without it."""
        started = time.monotonic()
        name = re.sub(r"\W+", "-", change.name)
        disk = self.folder / f"{name}.raw"
        run(["cp", "--sparse=always", "--reflink=auto", self.machine.disk, disk], package="coreutils")
        disk.chmod(0o600)
        try:
            change.apply(disk)
            with self._boot(replace(self.machine, disk=disk), name) as running:
                if change.ignored is None:
                    running.wait_for(f"{change.evidence[-1]}|{UP}", self.timeout, port="any")
                    ok, evidence = _refused(running, change)
                else:
                    ok, evidence = self._ignored(self._wait_up(running, PATIENCE), change.evidence, change.ignored)
        except ToolError as error:
            ok, evidence = False, error.message
        finally:
            disk.unlink()
            shutil.rmtree(self.folder / name, ignore_errors=True)
        return Case(change.name, ok, evidence, time.monotonic() - started)

    def _ignored(self, booted: Booted, patterns: tuple[str, ...], argument: str) -> tuple[bool, str]:
        said = [words_of(booted.console, pattern) for pattern in patterns]
        missing = booted.lacks(self.digest, secure=self.machine.firmware.secure)
        if missing:
            return False, f"it came up, but shows no {', no '.join(missing)}"
        if argument in booted.arguments:
            return False, f"it came up with {argument} on its command line"
        if not all(said):
            return False, f"it came up without {argument}, but the stub does not say that it ignored anything"
        return True, f"{'; '.join(said)}; it came up on {self.digest}, without {argument}"

    @contextmanager
    def _boot(self, machine: VirtualMachine, name: str) -> Iterator[Running]:
        smbios = (
            *unit_credentials("oci2boot-report.service", UNIT, wanted_by="multi-user.target"),
            credential("oci2boot.report", SCRIPT + read_again(self.digest) + LAST),
        )
        with boot(replace(machine, smbios=smbios), self.folder / name) as running:
            yield running

    def _wait_up(self, running: Running, patience: float) -> Booted:
        running.wait_for(UP, self.timeout, port="any")
        seconds = running.seconds
        try:
            running.wait_for(END, patience, port="report")
        except ToolError:
            if running.process.poll() is not None:
                raise
        pairs = re.findall(r"(?m)^oci2boot-([a-zA-Z0-9-]+)=([^\n]*)$", running.report)
        return Booted(running.console, {key: value.strip() for key, value in pairs}, seconds)

    @contextmanager
    def _pictured(self, monitor: Path | None, target: Path | None, running: Running) -> Iterator[None]:
        """Take a picture of the screen at the end, of a machine that failed too."""
        try:
            yield
        finally:
            if monitor and target:
                try:
                    if running.process.poll() is not None:
                        raise ToolError("there is no picture of the screen: the machine ended")
                    write_atomically(target, _picture(monitor, running.folder.resolve() / "screen.png"))
                except (Error, OSError) as error:
                    self.report(Warned(str(error)))


def _picture(monitor: Path, scratch: Path) -> bytes:
    """Return what the screen shows; the login prompt may come to it later than to the serial port."""
    deadline = time.monotonic() + SCREEN_SECONDS
    while True:
        save_screen(monitor, scratch)
        picture = scratch.read_bytes()
        if lit_lines(picture) >= TEXT_LINES or time.monotonic() > deadline:
            return picture
        time.sleep(1)


def _refused(running: Running, change: Tampering) -> tuple[bool, str]:
    console = running.console
    said = [words_of(console, pattern) for pattern in change.evidence]
    if find_words(UP, f"{console}\n{running.report}") or not said[-1]:
        return False, "; ".join(filter(None, said)) or "it came up as if nothing had happened"
    if not all(said):
        return False, f"{said[-1]}; but nothing on the console is like {change.evidence[said.index('')]!r}"
    return True, "; ".join(said)
