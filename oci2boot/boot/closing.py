"""An initramfs that gives nobody a shell: whatever fails restarts the machine, and boot counting has its turn.

What others wrote ends in a shell, or stands still: systemd's emergency.service, dracut's, the panic of initramfs-tools,
the shell of mkinitcpio. The words `rd.shell=0 rd.emergency=reboot` and `panic=` ask them not to, but an addon or the
host of a virtual machine may append others. So the initramfs itself, which is signed, has the last word.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Final

from oci2boot.boot.glue import PLACE, Archive, Glue, Kind, add_own, kind_of, script
from oci2boot.errors import ImageError
from oci2boot.formats import cpio

SECONDS: Final = 10
"""How long what a panic says can be read, before the kernel, or initramfs-tools, restarts the machine."""
SHELLS: Final = ("emergency", "rescue", "dracut-emergency", "debug-shell")
"""Units of systemd and dracut that give a shell; systemd.special(7), systemd-debug-generator(8)."""
TARGETS: Final = ("emergency", "rescue")
_UNITS: Final = b"etc/systemd/system/"
"""It hides units of the same name elsewhere. systemd.unit(5)"""
_ENDS: Final = ("sysroot.mount", *(f"initrd{name}.target" for name in ("-root-device", "-root-fs", "-fs", "")))
"""What must come about in an initramfs; where it does not, emergency.target is reached."""
_DROP_IN: Final = b"[Unit]\nOnFailure=emergency.target\nOnFailureJobMode=replace-irreversibly\n"
FUNCTIONS: Final[Mapping[Kind, tuple[bytes, bytes]]] = {
    "initramfs-tools": (b"scripts/functions", b"panic"),
    "mkinitcpio": (b"init_functions", b"launch_interactive_shell"),
}
"""The file that every script of such an initramfs reads, and the function in it that gives a shell."""


def close(added: Glue, initramfs: Mapping[bytes, cpio.Found]) -> Glue:
    """Return `added` with what closes this initramfs of the image, as `cpio.read` gives it with `glue.keep`."""
    kind = kind_of(initramfs)
    arguments = (*added.arguments, *words(kind))
    if PLACE + b"restart" in initramfs and not any(ways_around(initramfs)):
        return replace(added, arguments=arguments)
    archive = Archive(initramfs)
    add_own(archive, ["restart"])
    if kind == "systemd":
        for path, content in _units():
            archive.add(cpio.file(path, content))
    else:
        path, name = FUNCTIONS[kind]
        archive.add(cpio.file(path, (initramfs[path].content or b"") + _function(name)))
    together = added.archive + bytes(-len(added.archive) % 4) + archive.pack()
    return replace(added, archive=together, arguments=arguments)


def words(kind: Kind | None = None) -> tuple[str, ...]:
    """Return the kernel arguments of an initramfs of this kind, or of the built-in one. dracut.cmdline(7)"""
    asked = ("rd.shell=0", "rd.emergency=reboot") if kind == "systemd" else ()
    return (*asked, f"panic={SECONDS}")


def ways_around(initramfs: Mapping[bytes, cpio.Found]) -> Iterator[str]:
    """Say where an initramfs gives a shell when something fails."""
    if PLACE + b"init" in initramfs:  # the built-in one
        return
    try:
        kind = kind_of(initramfs)
    except ImageError:
        yield "an initramfs of a kind that is not known: where the boot fails, it may give a shell"
        return
    if kind == "systemd":
        units = dict(_units())
        for shell in SHELLS:
            unit = f"{shell}.service".encode()
            ours = _UNITS + unit
            found = any(directory + unit in initramfs for directory in _DIRECTORIES)
            if found and (ours not in initramfs or initramfs[ours].content != units[ours]):
                yield f"where the boot fails, {shell}.service may give a shell"
    else:
        path, name = FUNCTIONS[kind]
        if not (initramfs[path].content or b"").endswith(_function(name)):
            yield f"where the boot fails, {name.decode()} of /{path.decode()} gives a shell"


_DIRECTORIES: Final = (b"usr/lib/systemd/system/", b"lib/systemd/system/", _UNITS)


def _units() -> Iterator[tuple[bytes, bytes]]:
    for name in SHELLS:
        yield _UNITS + f"{name}.service".encode(), script("systemd/oci2boot-restart.service")
    for name in TARGETS:
        yield _UNITS + f"{name}.target".encode(), script("systemd/oci2boot-restart.target")
    for name in _ENDS:
        yield _UNITS + f"{name}.d/zz-oci2boot.conf".encode(), _DROP_IN


def _function(name: bytes) -> bytes:
    return b'\n# oci2boot: the last definition counts\n%s() { exec /%srestart "$@"; }\n' % (name, PLACE)
