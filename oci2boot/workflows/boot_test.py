"""Does a disk boot what it promises, and is tampering caught? Asked of a virtual machine, answered by its console."""

import os
import re
import tempfile
import time
import xml.etree.ElementTree as ET
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from oci2boot.digest import VerityDigest
from oci2boot.errors import Error, FormatError, ToolError
from oci2boot.system.files import write_atomically
from oci2boot.system.qemu import Accelerator, Firmware, Machine, boot, choose_accelerator, find_firmware, find_words
from oci2boot.system.run import run
from oci2boot.target.opened import open_disk
from oci2boot.workflows.esp import esp_of_fat, find_ukis
from oci2boot.workflows.events import Report, Step
from oci2boot.workflows.keys import enroll_in_firmware
from oci2boot.workflows.tamper import Subject, Tampering, look_at, tamperings

LOGIN: Final = r"(?m:^.*\blogin: *$)"
SECURE: Final = r"(?i:secure ?boot[^\n]*enabled)"
MACHINES: Final = 2
"""Virtual machines at a time; each takes a processor, and a gigabyte and a half of memory."""


@dataclass(frozen=True, slots=True)
class BootTestRequest:
    disk: Path
    keys: Path | None = None
    """What `keys generate` made: Secure Boot with these keys enrolled. Without, the firmware starts anything."""
    tamper: bool = False
    timeout: float = 300
    """Seconds for one boot."""
    junit: Path | None = None


@dataclass(frozen=True, slots=True)
class Case:
    """One boot, and what the machine said to it."""

    name: str
    ok: bool
    evidence: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Tested:
    disk: Path
    digest: VerityDigest
    secure_boot: bool
    accelerator: Accelerator
    cases: tuple[Case, ...]

    @property
    def ok(self) -> bool:
        return all(case.ok for case in self.cases)

    def to_json(self) -> dict[str, Any]:
        return {
            "disk": str(self.disk),
            "digest": str(self.digest),
            "secure_boot": self.secure_boot,
            "accelerator": self.accelerator,
            "ok": self.ok,
            "cases": [asdict(case) for case in self.cases],
        }

    def to_junit(self) -> bytes:
        """Return the cases as JUnit's XML, which build services read."""
        suite = ET.Element(
            "testsuite",
            name=f"oci2boot {self.disk.name}",
            tests=str(len(self.cases)),
            failures=str(sum(not case.ok for case in self.cases)),
            time=f"{sum(case.seconds for case in self.cases):.1f}",
        )
        for case in self.cases:
            element = ET.SubElement(suite, "testcase", name=case.name, time=f"{case.seconds:.1f}")
            if case.ok:
                ET.SubElement(element, "system-out").text = case.evidence
            else:
                ET.SubElement(element, "failure", message=case.evidence.splitlines()[0] if case.evidence else "")
        return bytes(ET.tostring(suite, encoding="utf-8", xml_declaration=True))


def try_disk(request: BootTestRequest, report: Report) -> Tested:
    """Boot the disk, and with `tamper` copies of it that must not come up. The disk itself is only read."""
    uki, digest = _promise(request.disk)
    secure = request.keys is not None
    firmware = find_firmware(secure=secure)
    accelerator = choose_accelerator(firmware)
    with tempfile.TemporaryDirectory(prefix="oci2boot-test-", dir=request.disk.absolute().parent) as name:
        folder = Path(name)
        if request.keys is not None:
            variables = folder / "enrolled.fd"
            enroll_in_firmware(request.keys, variables, firmware.variables)
            firmware = Firmware(firmware.code, variables, secure=True)
        bench = _Bench(request, firmware, accelerator, folder, digest)
        cases = [bench.intact()]
        report(Step(cases[0].name, finished=True, note=_verdict(cases[0])))
        if request.tamper:
            subject = look_at(request.disk, digest, uki)
            _check_signed(subject, secure)
            changes = list(tamperings(subject, secure_boot=secure))
            with ThreadPoolExecutor(min(MACHINES, os.cpu_count() or 1)) as pool:
                for case in pool.map(bench.tampered, changes):
                    cases.append(case)
                    report(Step(case.name, finished=True, note=_verdict(case)))
    tested = Tested(request.disk, digest, secure, accelerator, tuple(cases))
    if request.junit:
        write_atomically(request.junit, tested.to_junit())
    return tested


def _verdict(case: Case) -> str:
    return f"{'as it must be' if case.ok else 'FAILED'}: {case.evidence.splitlines()[0] if case.evidence else ''}"


def _check_signed(subject: Subject, secure: bool) -> None:
    if secure and not subject.signed:
        raise FormatError("the UKI on the disk is not signed", hint="convert with --secureboot-key, and install again")


def _promise(disk: Path) -> tuple[str, VerityDigest]:
    """Return the one UKI of a disk and the digest that it promises."""
    with open_disk(disk) as opened:
        found = list(find_ukis(esp_of_fat(opened.esp())))
    for path, uki in found:
        if not isinstance(uki, Error) and uki.about_composefs:
            return path, uki.about_composefs[0].digest
    raise FormatError(f"no UKI on {disk} promises a composefs image")


def _words(console: str, pattern: str) -> str:
    """Return what the console says around a match: its line, or of a boot menu drawn into one, the end."""
    found = find_words(pattern, console)
    if found is None:
        return ""
    text = found.string
    line = text[text.rfind("\n", 0, found.start()) + 1 :].partition("\n")[0]
    end = line.find(found[0].partition("\n")[0]) + len(found[0])
    readable = re.sub(r"[^ -~]+", " ", line[max(end - 200, 0) : end + 200])
    return " ".join(readable.split())


@dataclass(frozen=True, slots=True)
class _Bench:
    request: BootTestRequest
    firmware: Firmware
    accelerator: Accelerator
    folder: Path
    digest: VerityDigest

    def intact(self) -> Case:
        """The machine has to come up, on this digest, and under Secure Boot if that was asked for."""
        started = time.monotonic()
        try:
            with boot(self._machine(self.request.disk), self.folder / "intact") as running:
                running.wait_for(LOGIN, self.request.timeout)
                console = running.console
        except ToolError as error:
            return Case("boots", False, error.message, time.monotonic() - started)
        wanted = [f"composefs[^ ]*{self.digest}", *([SECURE] if self.firmware.secure else [])]
        missing = [pattern for pattern in wanted if not find_words(pattern, console)]
        said = find_words(rf"[^\n]*root is the image [^\n]*{self.digest}[^\n]*", console)
        evidence = (
            f"the console lacks {', '.join(missing)}" if missing else (said[0].strip() if said else "login prompt")
        )
        return Case("boots", not missing, evidence, time.monotonic() - started)

    def tampered(self, change: Tampering) -> Case:
        """The machine must say why it refuses, and must not come up."""
        started = time.monotonic()
        name = re.sub(r"\W+", "-", change.name)
        disk = self.folder / f"{name}.raw"
        run(["cp", "--sparse=always", "--reflink=auto", self.request.disk, disk], package="coreutils")
        disk.chmod(0o600)
        try:
            change.apply(disk)
            with boot(self._machine(disk), self.folder / name) as running:
                running.wait_for(f"{change.evidence}|{LOGIN}", self.request.timeout)
                console = running.console
        except ToolError as error:
            return Case(change.name, False, error.message, time.monotonic() - started)
        finally:
            disk.unlink()
        said = _words(console, change.evidence)
        up = find_words(LOGIN, console)
        evidence = said or "it came up as if nothing had happened"
        return Case(change.name, bool(said) and up is None, evidence, time.monotonic() - started)

    def _machine(self, disk: Path) -> Machine:
        return Machine(disk, self.firmware, self.accelerator)
