"""The files of a policy as values: specifications, substitutions and /etc/selinux/config.

selinux_file_context(5), selabel_file(5), selinux_config(5). libselinux (3.9 and later) and composefs-rs (0.9) read the
same files a little differently; `Rules` says whose reading is asked for.
"""

import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from oci2boot.errors import FormatError, LimitError

Rules = Literal["libselinux", "composefs-rs"]

MAX_SPECS: Final = 100_000
"""In one file; Debian and RHEL have about 6,000."""
MAX_SUBSTITUTIONS: Final = 500
"""In one file; distributions have about 40."""
MAX_FIELD: Final = 65_534
"""Bytes, libselinux's limit for a field of a specification."""
SUBSTITUTION_LINE: Final = 1023
"""libselinux reads substitutions in pieces of this size, each as a line of its own."""

ANY_KIND: Final = 0
KINDS: Final = {
    b"--": stat.S_IFREG,
    b"-d": stat.S_IFDIR,
    b"-c": stat.S_IFCHR,
    b"-b": stat.S_IFBLK,
    b"-s": stat.S_IFSOCK,
    b"-p": stat.S_IFIFO,
    b"-l": stat.S_IFLNK,
}


@dataclass(frozen=True, slots=True)
class Spec:
    pattern: bytes
    kind: int
    """An S_IFMT value, or ANY_KIND."""
    context: bytes | None
    """None is `<<none>>`: matched, and not to be labelled."""
    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}, line {self.line}"


def parse_specs(data: bytes, file: str, rules: Rules) -> list[Spec]:
    """Read a file_contexts file; `file` is its name for error messages."""
    specs = []
    for line, words in _lines(data, file):
        if len(words) < 2:
            raise FormatError(f"{file}, line {line}: a regular expression without a context")
        pattern, *optional, context = words[:3]
        if rules == "composefs-rs":
            if len(words) == 2 and context.startswith(b"-"):
                raise FormatError(f"{file}, line {line}: a file type without a context")
            if len(words) > 3 or (optional and not optional[0].startswith(b"-")):
                raise FormatError(f"{file}, line {line}: trailing words")
        if optional and optional[0] not in KINDS:
            raise FormatError(f"{file}, line {line}: no such file type: {optional[0].decode('ascii', 'replace')!r}")
        for field in (pattern, *optional, context):
            if not field.isascii() or len(field) > MAX_FIELD:
                raise FormatError(f"{file}, line {line}: a field that is not ASCII or is longer than {MAX_FIELD} bytes")
        kind = KINDS[optional[0]] if optional else ANY_KIND
        specs.append(Spec(pattern, kind, None if context == b"<<none>>" else context, file, line))
        if len(specs) > MAX_SPECS:
            raise LimitError(f"{file} has more than {MAX_SPECS} specifications")
    return specs


def parse_substitutions(data: bytes, file: str, rules: Rules) -> list[tuple[bytes, bytes]]:
    """Read a file_contexts.subs file: (path as it is in the tree, path to look up instead), in the file's order."""
    substitutions = []
    for line, words in _lines(data, file, SUBSTITUTION_LINE if rules == "libselinux" else None):
        if rules == "composefs-rs" and len(words) != 2:
            raise FormatError(f"{file}, line {line}: {len(words)} words, and not two paths")
        if len(words) >= 2:
            substitutions.append((words[0], words[1]))
        if len(substitutions) > MAX_SUBSTITUTIONS:
            raise LimitError(f"{file} has more than {MAX_SUBSTITUTIONS} substitutions")
    return substitutions


def _lines(data: bytes, file: str, piece: int | None = None) -> Iterator[tuple[int, list[bytes]]]:
    """Yield the lines' numbers and words, without empty lines and comments."""
    if b"\0" in data:
        raise FormatError(f"{file} has a NUL byte")
    for number, line in enumerate(data.split(b"\n"), 1):
        step = piece or len(line) + 1
        for start in range(0, len(line), step):
            words = line[start : start + step].split()
            if words and not words[0].startswith(b"#"):
                yield number, words


def parse_policy_type(config: bytes, rules: Rules) -> bytes | None:
    """Return the policy that /etc/selinux/config names; None where it names none.

    libselinux would then take `targeted`; composefs-rs takes the image for one without a policy, and so do we.
    """
    if rules == "composefs-rs":
        for line in config.split(b"\n"):
            key, equals, value = line.partition(b"=")
            if equals and key.strip().lower() == b"selinuxtype":
                return value.strip()
        return None
    values = re.findall(rb"^[ \t\r\v\f]*SELINUXTYPE=(.*)$", config, re.IGNORECASE | re.MULTILINE)
    return values[-1].lstrip().rstrip(bytes((*range(0x21), 0x7F))) if values else None
