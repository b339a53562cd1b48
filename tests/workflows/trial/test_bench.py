"""What a bench makes of a machine's words, which stand in files here: OVMF's, systemd-stub's, Linux's and our own.

The boots themselves: tests/integration.
"""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from oci2boot.digest import VerityDigest
from oci2boot.system.qemu import Firmware, Running, VirtualMachine
from oci2boot.workflows.progress import silent
from oci2boot.workflows.trial.report import Bench, Case
from oci2boot.workflows.trial.tamper import FIRMWARE, NO_PROMISE, STUB, Tampering

DIGEST = VerityDigest.parse("9dd069e6f08c6ac875197af0b47db4f28dbc71b9943ca290392c1c28f84f3d98")
UP = f"[    0.000000] Command line: rw composefs={DIGEST}\ndemo login: "
DENIED = "boot.c:2576@image_start: Error loading \\EFI\\Linux\\os.efi: Access denied\n"
DROPPED = "stub.c:597@load_addons: Failed to read 'a.addon.efi', ignoring: Access denied\n"
FATAL = "setup-root[211]: oci2boot: FATAL: no composefs argument on the command line\n"

Booting = Callable[..., Bench]


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Booting:
    def make(console: str, report: str = "oci2boot-end=\n", *, secure: bool = False, ends: bool = False) -> Bench:
        """Return a bench whose machines say this, and then wait or end."""

        @contextmanager
        def boot(machine: VirtualMachine, folder: Path) -> Iterator[Running]:
            assert machine.disk.read_bytes() == (b"intact" if folder.name == "intact" else b"changed")
            folder.mkdir(exist_ok=True)
            for port, text in (("console", console), ("report", report), ("messages", "")):
                (folder / port).write_text(text)
            process = subprocess.Popen(["/bin/true"] if ends else ["/bin/sleep", "600"])
            if ends:
                process.wait()
            running = Running(process, folder)
            try:
                yield running
            finally:
                running.end()

        monkeypatch.setattr("oci2boot.workflows.trial.report.boot", boot)
        disk = tmp_path / "disk.raw"
        disk.write_bytes(b"intact")
        machine = VirtualMachine(disk=disk, firmware=Firmware(disk, disk, secure=secure))
        return Bench(machine=machine, folder=tmp_path, sockets=tmp_path, digest=DIGEST, timeout=0.1, report=silent)

    return make


def tampered(bench: Bench, *evidence: str, ignored: str | None = None) -> Case:
    case = bench.tampered(Tampering("a change", _change, evidence, ignored))
    assert sorted(path.name for path in bench.folder.iterdir()) == ["disk.raw"], "the copy is gone"
    assert bench.machine.disk.read_bytes() == b"intact"
    return case


def _change(disk: Path) -> None:
    disk.write_bytes(b"changed")


def test_a_machine_that_says_why_has_refused(bench: Booting) -> None:
    """K0.9"""
    case = tampered(bench(DENIED, ""), FIRMWARE)
    assert (case.ok, case.evidence) == (True, DENIED.strip())
    assert tampered(bench(DROPPED + FATAL, ""), STUB, NO_PROMISE).ok


@pytest.mark.parametrize(
    ("console", "evidence", "said"),
    [
        (UP, (FIRMWARE,), "it came up as if nothing had happened"),
        (DENIED + UP, (FIRMWARE,), "Access denied"),
        (FATAL, (STUB, NO_PROMISE), "but nothing on the console is like"),
    ],
    ids=["came up", "came up all the same", "said half of it"],
)
def test_a_machine_that_comes_up_or_says_too_little_has_not(
    bench: Booting, console: str, evidence: tuple[str, ...], said: str
) -> None:
    """K0.9"""
    case = tampered(bench(console, ""), *evidence)
    assert not case.ok
    assert said in case.evidence


def test_silence_is_no_refusal(bench: Booting) -> None:
    """K0.9: neither in a machine that waits, nor in one that ends."""
    assert "did not show" in tampered(bench("", ""), FIRMWARE).evidence
    assert not tampered(bench("", ""), FIRMWARE).ok
    case = tampered(bench("", "", ends=True), FIRMWARE)
    assert (case.ok, "the machine ended without" in case.evidence) == (False, True)


def test_the_report_of_a_machine_says_too_that_it_is_up(bench: Booting) -> None:
    assert not tampered(bench(DENIED), FIRMWARE).ok


@pytest.mark.parametrize(
    ("console", "ok", "said"),
    [
        (DROPPED + UP, True, "without debug"),
        (UP, False, "does not say that it ignored anything"),
        (DROPPED + UP.replace("rw", "rw debug"), False, "came up with debug"),
        (DROPPED + UP.replace(str(DIGEST), "ab" * 32), False, "shows no a command line"),
        (DROPPED, False, "did not show"),
    ],
    ids=["ignored", "not said", "taken", "another root", "not up"],
)
def test_what_is_ignored_is_said_and_lacks(bench: Booting, console: str, ok: bool, said: str) -> None:
    """C.36"""
    report = "oci2boot-end=\n" if "login" in console else ""
    case = tampered(bench(console, report), STUB, ignored="debug")
    assert case.ok is ok
    assert said in case.evidence


def test_an_intact_disk_comes_up_on_its_digest(bench: Booting) -> None:
    case, booted = bench(UP).intact()
    assert case.ok
    assert booted
    case, booted = bench(UP.replace(str(DIGEST), "ab" * 32)).intact()
    assert (case.ok, booted is not None) == (False, True)
    assert "shows no a command line with" in case.evidence


def test_secure_boot_is_seen_where_it_was_asked_for(bench: Booting) -> None:
    case, _ = bench(UP, secure=True).intact()
    assert (case.ok, case.evidence) == (False, "it came up, but shows no Secure Boot")


def test_a_disk_that_does_not_come_up_has_failed(bench: Booting) -> None:
    for ends in (False, True):
        case, booted = bench(DENIED, "", ends=ends).intact()
        assert (case.ok, booted) == (False, None)
