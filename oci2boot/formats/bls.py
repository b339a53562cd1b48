"""Boot menu entries: their names, their order, and type 1 files. UAPI.1, "Boot Loader Specification".

The order is that of systemd-boot (src/boot/boot.c, `boot_entry_compare`). GRUB's is another: Fedora's blscfg takes a
file name apart as NAME-VERSION-RELEASE and compares these as rpm does, GRUB 2.14 compares whole file names; both put
the newest first, look at no key, and know no boot counters.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cmp_to_key
from typing import Final, Self

from oci2boot.errors import FormatError, LimitError
from oci2boot.formats.version import compare

MAX_SIZE: Final = 64 << 10
MAX_NAME: Final = 255
MAX_TRIES: Final = 0x7FFF_FFFF

_NAME: Final = re.compile(
    r"(?P<stem>.*?)(?:\+(?P<left>[0-9]+)(?:-(?P<done>[0-9]+))?)?(?P<suffix>\.(?:efi|conf))", re.IGNORECASE | re.DOTALL
)
_SAFE: Final = re.compile(r"[A-Za-z0-9+_.-]+")
_KEY: Final = re.compile(r"[^\s#][^\s]*")
_BLANK: Final = " \t"


@dataclass(frozen=True, slots=True)
class EntryName:
    """A file name, as in `debian_13+2-1.efi`: two more attempts, one failed."""

    stem: str
    suffix: str
    left: int | None = None
    """Attempts left; None for an entry that is not counted, and so good."""
    done: int | None = None
    """Attempts made; None where the name leaves it out."""

    @classmethod
    def parse(cls, name: str) -> Self:
        """Take any name that systemd-boot would list; what only looks like a counter belongs to the stem."""
        match = _NAME.fullmatch(name)
        if not match or len(name) > MAX_NAME or name.startswith(".") or name.lower().startswith("auto-"):
            raise FormatError(f"not the name of a boot menu entry: {name[:MAX_NAME]!r}")
        left, done = (None if match[key] is None else int(match[key]) for key in ("left", "done"))
        if left is None or max(left, done or 0) > MAX_TRIES:
            return cls(name[: -len(match["suffix"])], match["suffix"])
        return cls(match["stem"], match["suffix"], left, done)

    @property
    def id(self) -> str:
        """What stays the same while boots are counted, as `bootctl` shows it: `debian_13.efi`."""
        return (self.stem + self.suffix).lower()

    @property
    def safe(self) -> bool:
        """Whether it holds only the characters that the specification allows for new entries."""
        return bool(_SAFE.fullmatch(str(self)))

    def counted(self, left: int | None, done: int = 0) -> Self:
        return type(self)(self.stem, self.suffix, left, None if left is None else done)

    def __str__(self) -> str:
        if self.left is None:
            return self.stem + self.suffix
        return f"{self.stem}+{self.left}{'' if self.done is None else f'-{self.done}'}{self.suffix}"


@dataclass(frozen=True, slots=True)
class MenuItem:
    """What systemd-boot orders an entry by."""

    name: EntryName
    sort_key: str | None = None
    machine_id: str | None = None
    version: str | None = None


def compare_items(first: MenuItem, second: MenuItem) -> int:
    """Return a number below zero where `first` stands above `second` in the menu."""
    if order := _order(first.name.left == 0, second.name.left == 0):
        return order
    if order := _order(first.sort_key is None, second.sort_key is None):
        return order
    if first.sort_key is not None:
        order = (
            _compare_text(first.sort_key, second.sort_key)
            or _compare_text(first.machine_id, second.machine_id)
            or -compare(first.version or "", second.version or "")
        )
        if order:
            return order
    # With the counters in them: systemd-boot has not taken these off yet.
    if order := -compare(str(first.name).lower(), str(second.name).lower()):
        return order
    if first.name.left is None or second.name.left is None:
        return 0
    return _order(second.name.left, first.name.left) or _order(first.name.done or 0, second.name.done or 0)


menu_key = cmp_to_key(compare_items)


def _order(first: int, second: int) -> int:
    return (first > second) - (first < second)


def _compare_text(first: str | None, second: str | None) -> int:
    """Compare as `strcmp16` does: by UTF-16 code units, nothing below everything."""
    a, b = ((text is not None, (text or "").encode("utf-16-be", "surrogatepass")) for text in (first, second))
    return (a > b) - (a < b)


@dataclass(frozen=True, slots=True)
class Type1:
    """A `.conf` file: its keys in order, those that the specification does not know among them."""

    fields: tuple[tuple[str, str], ...]

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Comments and what has no value are left out."""
        if len(data) > MAX_SIZE:
            raise LimitError(f"a boot menu entry of {len(data)} bytes, at most {MAX_SIZE} are read")
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            raise FormatError("a boot menu entry that is not UTF-8") from error
        if "\0" in text:
            raise FormatError("a boot menu entry with a NUL in it: readers would see different ends")
        fields = []
        for line in re.split(r"[\r\n]", text):
            line = line.strip(_BLANK)
            key, value = [*re.split(rf"[{_BLANK}]+", line, maxsplit=1), ""][:2]
            if line.startswith("#") or not value:
                continue
            if value.startswith('"') and line.endswith('"'):
                raise FormatError(f"a boot menu entry whose {key[:40]!r} is in quotes, which readers see differently")
            fields.append((key, value))
        return cls(tuple(fields))

    def __str__(self) -> str:
        for key, value in self.fields:
            plain = value.isprintable() and value == value.strip() and not (value[:1] == value[-1:] == '"')
            if not value or not plain or not _KEY.fullmatch(key):
                raise FormatError(f"not a line for a boot menu entry: {f'{key} {value}'[:200]!r}")
        return "".join(f"{key} {value}\n" for key, value in self.fields)

    def every(self, key: str) -> list[str]:
        return [value for name, value in self.fields if name == key]

    def last(self, key: str) -> str | None:
        """Return the value that counts where a key is given once or more."""
        return next(iter(self.every(key)[::-1]), None)

    @property
    def options(self) -> str:
        """The kernel command line."""
        return " ".join(self.every("options"))

    @property
    def paths(self) -> list[str]:
        """Return the files that it boots, relative to the root of the partition, without leading slash."""
        paths = [value for key in ("linux", "efi", "uki", "devicetree") for value in self.every(key)[-1:]]
        paths += self.every("initrd")
        paths += [path for value in self.every("devicetree-overlay") for path in value.split()]
        return [check_path(path) for path in paths]

    def replaced(self, changes: Iterable[tuple[str, tuple[str, ...]]]) -> Self:
        """Return the entry with these keys' values, each where its first was, or at the end."""
        fields = list(self.fields)
        for key, values in changes:
            at = next((index for index, field in enumerate(fields) if field[0] == key), len(fields))
            others = [field for field in fields if field[0] != key]
            fields = [*others[:at], *((key, value) for value in values), *others[at:]]
        return type(self)(tuple(fields))


def check_path(path: str) -> str:
    """Return a path of an entry without its leading slash, if it leads to a place on its partition."""
    names = path.removeprefix("/").split("/")
    if len(path) > 4096 or not path.isprintable() or any(name in ("", ".", "..") for name in names) or "\\" in path:
        raise FormatError(f"a boot menu entry with a path that is not normal: {path[:200]!r}")
    return "/".join(names)
