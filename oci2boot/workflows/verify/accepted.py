"""`explain UKI`: who would boot it, and what each takes its arguments for."""

from dataclasses import dataclass
from pathlib import Path

from oci2boot.boot import glue
from oci2boot.boot.glue import PLACE
from oci2boot.boot.names import MAX_UKI
from oci2boot.boot.sealed import read_head
from oci2boot.boot.told import DIGEST_FILE
from oci2boot.errors import Error, FormatError
from oci2boot.formats import cmdline, cpio, pe
from oci2boot.system.files import read_limited
from oci2boot.workflows.make.consumers import Accepted, accepting


@dataclass(frozen=True, slots=True)
class ExplainedUki:
    path: Path
    glue: str | None
    """Whose code in its initramfs sets up the root file system."""
    lines: tuple[tuple[str, tuple[Accepted, ...]], ...]
    """Every command line that it can be booted with: its composefs arguments, and what each consumer makes of them."""

    def to_json(self) -> dict[str, object]:
        return {
            "path": str(self.path),
            "glue": self.glue,
            "command_lines": [
                {"arguments": line, "consumers": [one.to_json() for one in accepted]} for line, accepted in self.lines
            ],
        }


def explain_uki(path: Path) -> ExplainedUki:
    """Raises `FormatError` for a file that is no UKI, or promises no composefs image."""
    try:
        data = read_limited(path, MAX_UKI)
        head = read_head(data)
    except Error as error:
        raise type(error)(
            error.message if str(path) in error.message else f"{path}: {error.message}",
            hint=error.hint or "explain takes two things to compare, or one UKI",
        ) from error
    if head is None:
        raise FormatError(f"{path} is an EFI program, and no UKI")
    sections = pe.parse(data).sections_named(b".initrd")[:1]
    initramfs = b"".join(pe.contents(data, section) for section in sections)
    members = cpio.read(initramfs, lambda name: name == DIGEST_FILE or glue.keep(name)) if initramfs else {}
    brought = "oci2boot" if PLACE + b"init" in members else glue.brought_by(members)
    told = (members[DIGEST_FILE].content or b"").decode(errors="replace").split() if DIGEST_FILE in members else []
    lines = []
    for text in head.cmdlines:
        found = cmdline.find_composefs(cmdline.split(text))
        if found:
            lines.append((" ".join(map(str, found)), tuple(accepting(found, brought, told))))
    if not lines:
        raise FormatError(
            f"{path} promises no composefs image",
            hint="`oci2boot uki inspect` shows its command line; a root hash stands for a partition under dm-verity",
        )
    return ExplainedUki(path, brought, tuple(lines))
