"""Does a disk boot what it promises, is it measured, and is tampering caught? A virtual machine answers."""

import os
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Final, Literal

from oci2boot.boot.sign import sign_image
from oci2boot.digest import RootHash, VerityDigest
from oci2boot.errors import DigestError, Error, FormatError
from oci2boot.formats.iso9660 import read_volume
from oci2boot.system.files import plain_errors, write_atomically
from oci2boot.system.qemu import Accelerator, DirectBoot, Firmware, VirtualMachine, choose_accelerator, find_firmware
from oci2boot.system.swtpm import has_swtpm
from oci2boot.target.opened import as_raw, open_disk
from oci2boot.workflows.keys.generate import enroll_in_firmware
from oci2boot.workflows.keys.signing import open_key, read_certificate
from oci2boot.workflows.make.loose import ReadFiles, read_loose
from oci2boot.workflows.options import Option
from oci2boot.workflows.progress import Report, Step, Warned
from oci2boot.workflows.trial.guarded import device_tamperings, image_tamperings
from oci2boot.workflows.trial.measured import compare
from oci2boot.workflows.trial.reading import image_times, way_of
from oci2boot.workflows.trial.report import PATIENCE, Bench, Booted, Case
from oci2boot.workflows.trial.tamper import Sign, Subject, Tampering, look_at, tamperings
from oci2boot.workflows.verify.esp import esp_of_fat
from oci2boot.workflows.verify.promises import Promised, find_promise

MACHINES: Final = 2
"""Virtual machines at a time; each takes a processor, and a gigabyte and a half of memory."""

UseTpm = Literal["auto", "yes", "no"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BootTestRequest:
    disk: Annotated[Path, Option("DISK", "a disk image that `install` wrote")]
    keys: Annotated[
        Path | None, Option("--keys", "folder of `keys generate`: boot under Secure Boot, with these keys")
    ] = None
    """Without, the firmware starts anything."""
    files: Annotated[
        Path | None,
        Option(
            "--files",
            "start the disk by the kernel and initramfs that convert --flow files or aboot wrote to this folder",
        ),
    ] = None
    tamper: Annotated[bool, Option("--tamper", "boot tampered copies too; each must be refused")] = False
    tpm: Annotated[UseTpm, Option("--tpm", "compare what a TPM measures; auto: if swtpm is installed")] = "auto"
    """auto: a machine that takes no notice of it does not fail for that."""
    timeout: Annotated[float, Option("--timeout", "most seconds that one boot may take")] = 600
    junit: Annotated[Path | None, Option("--junit", "write a JUnit report to this file, for build services")] = None
    screenshot: Annotated[
        Path | None, Option("--screenshot", "write a PNG of the screen once the machine is up, or has failed")
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tested:
    disk: Path
    digest: VerityDigest | RootHash
    secure_boot: bool
    accelerator: Accelerator
    cases: tuple[Case, ...]
    boot_seconds: Mapping[str, float]
    """From the kernel's start, as `Booted.times` says."""
    read: str | None
    """How the initramfs had the rootfs image verified."""
    image_seconds: Mapping[str, float]
    """To verify the rootfs image, as `reading.image_times` says."""
    pcrs: Mapping[str, str]
    """What the machine read of its TPM (bank sha256), by number."""

    @property
    def ok(self) -> bool:
        return not self.failed

    @property
    def failed(self) -> list[Case]:
        return [case for case in self.cases if not case.ok and not case.skipped]

    def to_json(self) -> dict[str, object]:
        return {
            "disk": str(self.disk),
            "digest": str(self.digest),
            "secure_boot": self.secure_boot,
            "accelerator": self.accelerator,
            "ok": self.ok,
            "boot_seconds": dict(self.boot_seconds),
            "read": self.read,
            "image_seconds": dict(self.image_seconds),
            "pcrs": dict(self.pcrs),
            "cases": [asdict(case) for case in self.cases],
        }

    def to_junit(self) -> bytes:
        """Return the cases as JUnit's XML, which build services read."""
        suite = ET.Element(
            "testsuite",
            name=f"oci2boot {self.disk.name}",
            tests=str(len(self.cases)),
            failures=str(len(self.failed)),
            skipped=str(sum(case.skipped for case in self.cases)),
            time=f"{sum(case.seconds for case in self.cases):.1f}",
        )
        for case in self.cases:
            element = ET.SubElement(suite, "testcase", name=case.name, time=f"{case.seconds:.1f}")
            first = case.evidence.partition("\n")[0]
            if case.skipped:
                ET.SubElement(element, "skipped", message=first)
            elif case.ok:
                ET.SubElement(element, "system-out").text = case.evidence
            else:
                ET.SubElement(element, "failure", message=first).text = case.evidence
        return bytes(ET.tostring(suite, encoding="utf-8", xml_declaration=True))


def try_disk(request: BootTestRequest, report: Report) -> Tested:
    """Boot the disk, and with `tamper` copies of it that must not come up. The disk itself is only read."""
    with as_raw(request.disk) as raw:
        tested = replace(_try_raw(replace(request, disk=raw), report), disk=request.disk)
    if request.junit:
        with plain_errors(Error, f"write {request.junit}"):
            write_atomically(request.junit, tested.to_junit())
    return tested


def _try_raw(request: BootTestRequest, report: Report) -> Tested:
    secure = request.keys is not None
    if request.files and (secure or request.tamper):
        raise FormatError("--files goes without --keys and --tamper: nothing on the disk starts it, or is checked")
    promised = find_promise(request.disk)
    if secure and promised.uki is None:
        raise FormatError(
            f"{promised.path} is a type 1 entry: Secure Boot does not cover its initramfs and command line",
            hint="leave out --keys",
        )
    if promised.verity and promised.verity.signed and not secure:
        report(Warned("the kernel will demand a signature of the root hash: --keys gives it the keys"))
    loose = read_loose(request.files) if request.files else None
    if loose and loose.digest != promised.digest:
        raise DigestError(f"the boot files promise {loose.digest}, the disk has {promised.digest}")
    firmware = find_firmware(secure=secure)
    with ExitStack() as stack:
        folder, sockets = (
            Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="oci2boot-test-", dir=place)))
            for place in (request.disk.absolute().parent, None)
        )
        if request.keys is not None:
            variables = folder / "enrolled.fd"
            enroll_in_firmware(request.keys, variables, firmware.variables)
            firmware = Firmware(firmware.code, variables, secure=True)
        machine = VirtualMachine(
            disk=request.disk,
            firmware=firmware,
            accelerator=choose_accelerator(firmware),
            optical=_is_iso(request.disk),
            direct=_direct(loose, folder) if loose else None,
        )
        bench = Bench(
            machine=machine,
            folder=folder,
            sockets=sockets,
            digest=promised.digest,
            timeout=request.timeout,
            report=report,
        )
        tpm = request.tpm == "yes" or (request.tpm == "auto" and has_swtpm())
        patience = request.timeout if request.tpm == "yes" else min(request.timeout, PATIENCE)
        changes: list[Tampering] = []
        if request.tamper:
            changes = list(_changes(request, promised, report))
        pool = ThreadPoolExecutor(min(MACHINES, os.cpu_count() or 1))
        stack.callback(pool.shutdown, cancel_futures=True)
        first = pool.submit(bench.intact, tpm=tpm, patience=patience, screenshot=request.screenshot)
        others = [pool.submit(bench.tampered, change) for change in changes]
        case, booted = first.result()
        cases = [case]
        if tpm and booted:
            cases.append(_measured(request, promised, booted))
        for case in cases:
            _tell(case, report)
        for other in others:
            cases.append(other.result())
            _tell(cases[-1], report)
    return Tested(
        disk=request.disk,
        digest=promised.digest,
        secure_boot=secure,
        accelerator=machine.accelerator,
        cases=tuple(cases),
        boot_seconds=booted.times() if booted else {},
        read=way_of(booted.console) if booted else None,
        image_seconds=image_times(booted.console, booted.report) if booted else {},
        pcrs=booted.pcrs if booted else {},
    )


def _direct(loose: ReadFiles, folder: Path) -> DirectBoot:
    """Put the files where they stay as they were checked."""
    kernel, initramfs = folder / "kernel", folder / "initramfs"
    kernel.write_bytes(loose.kernel)
    initramfs.write_bytes(loose.initramfs)
    return DirectBoot(kernel, initramfs, loose.cmdline)


def _is_iso(disk: Path) -> bool:
    with open_disk(disk) as opened:
        return read_volume(lambda offset, size: os.pread(opened.fd, size, offset)) is not None


def _measured(request: BootTestRequest, promised: Promised, booted: Booted) -> Case:
    demanded = request.tpm == "yes"
    if promised.uki is None:
        evidence = "nothing says what a type 1 entry gives: each boot loader measures it in its own way"
        return Case("measured", ok=False, evidence=evidence, seconds=booted.seconds, skipped=not demanded)
    with open_disk(request.disk) as opened:
        esp = esp_of_fat(opened.esp())
        return compare(booted, esp, promised.path, secure_boot=request.keys is not None, demanded=demanded)


def _changes(request: BootTestRequest, promised: Promised, report: Report) -> Iterator[Tampering]:
    subject = look_at(request.disk, promised)
    sign = _signer(request.keys, subject, report)
    yield from tamperings(subject, secure_boot=request.keys is not None, sign=sign)
    if subject.init and isinstance(promised.digest, VerityDigest):
        yield from image_tamperings(request.disk, promised.digest, subject.init)
    if promised.verity:
        yield from device_tamperings(request.disk, promised.path, promised.verity, report)


def _tell(case: Case, report: Report) -> None:
    verdict = "not asked" if case.skipped else "as it must be" if case.ok else "FAILED"
    report(Step(case.name, finished=True, note=f"{verdict}: {case.evidence.partition(chr(10))[0]}"))


def _signer(keys: Path | None, subject: Subject, report: Report) -> Sign | None:
    """Return what signs as the disk's owner would, if there is something to sign and the key to do it."""
    if subject.addon_stub is None:
        report(Warned("no new addon is tried: nothing here can make one"))
    if keys is None:
        return None
    if not subject.signed:
        raise FormatError("the UKI on the disk is not signed", hint="convert with --secureboot-key, and install again")
    try:
        signer = open_key(keys / "db.key", None, read_certificate(keys / "db.crt"))
    except Error as error:
        report(Warned(f"no signed addon is tried: {error.message}"))
        return None
    return lambda addon: sign_image(addon, signer)
