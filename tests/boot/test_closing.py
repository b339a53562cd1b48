"""What keeps an initramfs of any kind from giving a shell."""

import re
import subprocess

import pytest

from oci2boot.boot import closing, glue
from oci2boot.boot.glue import Glue
from oci2boot.errors import ImageError
from oci2boot.formats import cpio
from tests.boot.initrds import INITRAMFS_TOOLS, SYSTEMD
from tests.witness import program

FUNCTIONS = b"# theirs\npanic() { sh; }\nother() { echo other; }\n"
MKINITCPIO = [cpio.directory(b"hooks"), cpio.file(b"init_functions", b"launch_interactive_shell() {\n sh -i\n}\n")]
TOOLS = [cpio.file(b"scripts/functions", FUNCTIONS), *(m for m in INITRAMFS_TOOLS if m.path != b"scripts/functions")]
UNITS = b"etc/systemd/system/"
# systemd.special(7), and dracut's.
SHELLS = ("emergency.service", "rescue.service", "dracut-emergency.service", "debug-shell.service")


def read(members: list[cpio.Member], after: bytes = b"") -> dict[bytes, cpio.Found]:
    return cpio.read(cpio.write(members) + after, glue.keep)


def closed(members: list[cpio.Member]) -> Glue:
    return closing.close(Glue(brought=None, arguments=("rw",)), read(members))


def content_of(made: Glue) -> dict[bytes, bytes]:
    found = cpio.read(made.archive, lambda _: True)
    return {path: member.content for path, member in found.items() if member.content is not None}


def test_a_systemd_restarts_where_it_would_give_a_shell() -> None:
    """B.12"""
    made = closed(SYSTEMD)
    found = content_of(made)
    for name in SHELLS:
        unit = found[UNITS + name.encode()].decode()
        assert re.findall("^(?:Exec.*|.*Action)=.*", unit, re.MULTILINE) == [
            "SuccessAction=reboot-force",
            "FailureAction=reboot-force",
            "ExecStart=/usr/lib/oci2boot/restart %n was reached",
        ]
        assert "Condition" not in unit
    assert found[b"usr/lib/oci2boot/restart"].startswith(b"#!/bin/sh")
    for name in ("sysroot.mount", "initrd-root-fs.target", "initrd-root-device.target", "initrd.target"):
        assert b"OnFailure=emergency.target" in found[UNITS + name.encode() + b".d/zz-oci2boot.conf"]
    assert made.arguments == ("rw", "rd.shell=0", "rd.emergency=reboot", "panic=10")


def test_initramfs_tools_restarts_where_it_would_give_a_shell() -> None:
    """B.12: the functions of the image stay; the one that gives a shell is ours, whoever reads the file."""
    made = closed(TOOLS)
    text = content_of(made)[b"scripts/functions"]
    assert text.startswith(FUNCTIONS)
    asked = b"\nother\n(panic some words)\n" + b"panic=; panic other words; echo alive\n"
    done = subprocess.run([program("dash")], input=text + asked, check=False, capture_output=True)
    assert done.stdout == b"other\n"
    assert done.stderr.count(b"/usr/lib/oci2boot/restart") == 2
    assert made.arguments == ("rw", "panic=10")


def test_the_init_of_mkinitcpio_restarts_where_it_would_give_a_shell() -> None:
    """B.12"""
    text = content_of(closed(MKINITCPIO))[b"init_functions"]
    done = subprocess.run(
        [program("dash")],
        input=text + b"launch_interactive_shell --exec\necho alive\n",
        check=False,
        capture_output=True,
    )
    assert (done.stdout, b"/usr/lib/oci2boot/restart" in done.stderr) == (b"", True)


@pytest.mark.parametrize("members", [SYSTEMD, TOOLS, MKINITCPIO], ids=["systemd", "initramfs-tools", "mkinitcpio"])
def test_what_is_closed_is_known_to_be(members: list[cpio.Member]) -> None:
    shells = [cpio.file(b"usr/lib/systemd/system/" + name.encode(), b"") for name in SHELLS]
    opened = [*members, *(shells if members is SYSTEMD else [])]
    assert len(list(closing.ways_around(read(opened)))) == (len(SHELLS) if members is SYSTEMD else 1)
    again = read(opened, closed(opened).archive)
    assert list(closing.ways_around(again)) == []
    assert closing.close(Glue(brought=None), again).archive == b""


@pytest.mark.parametrize("name", SHELLS)
def test_a_unit_that_is_somebody_elses_is_said(name: str) -> None:
    other = [cpio.file(UNITS + name.encode(), b"[Service]\nExecStart=/bin/sh\n")]
    (said,) = closing.ways_around(read([*SYSTEMD, *other]))
    assert name in said


def test_an_initramfs_that_is_not_known_is_said_to_be_open() -> None:
    assert "not known" in next(closing.ways_around(read([cpio.file(b"init", b"")])))
    with pytest.raises(ImageError):
        closed([cpio.file(b"init", b"")])
