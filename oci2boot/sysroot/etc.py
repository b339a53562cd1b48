"""/etc of the next deployment: the new image's, and on it what this machine changed in the old one's.

A three-way merge, path by path. What the machine did not change follows the new image. What it did change is kept, and
dropped where the new image now says the same. Where both changed a path, a policy decides, and the plan names it. A
file is one thing: its content, owner and mode are never mixed of two sides. The SELinux label alone follows the new
image's policy where it was the old image's. /etc/passwd, /etc/group, /etc/shadow and /etc/machine-id are files like
any others.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, Final, Literal, Self

from oci2boot.errors import FormatError, LimitError, TargetError
from oci2boot.sysroot.etc_overlay import label, same, same_content, same_metadata, upper_of, view
from oci2boot.tree.diff import text
from oci2boot.tree.model import SELINUX_XATTR, Directory, Inode, file_type

Choice = Literal["ours", "theirs", "stop"]
Change = Literal["added", "changed", "removed", "metadata", "type"]
Decision = Literal["kept", "already there", "ours", "theirs", "stop"]

ETC: Final = b"/etc"
_CHOICES: Final[dict[str, Choice]] = {"ours": "ours", "theirs": "theirs", "stop": "stop"}
_NAMED: Final = 5


@dataclass(frozen=True, slots=True)
class EtcPolicy:
    """Who wins where machine and image both changed a path: the first glob that fits it or a directory above it."""

    rules: tuple[tuple[str, Choice], ...] = ()
    otherwise: Choice = "ours"
    """As ostree does it: the machine wins."""

    @classmethod
    def parse(cls, words: tuple[str, ...]) -> Self:
        """Take words as `/etc/ssh/*=theirs`; one without a glob, as `stop`, is for all other paths."""
        rules: list[tuple[str, Choice]] = []
        otherwise: Choice = "ours"
        for word in words:
            glob, _, choice = word.rpartition("=")
            if choice not in _CHOICES or (glob and not glob.startswith("/etc/")):
                raise FormatError(
                    f"not a policy for /etc: {word[:200]!r}", hint="write it as /etc/ssh/*=theirs, or stop"
                )
            if glob:
                rules.append((glob, _CHOICES[choice]))
            else:
                otherwise = _CHOICES[choice]
        return cls(tuple(rules), otherwise)

    @property
    def words(self) -> tuple[str, ...]:
        """What `parse` takes."""
        return (*(f"{glob}={choice}" for glob, choice in self.rules), self.otherwise)

    def choose(self, path: str) -> Choice:
        names = path.split("/")
        above = ["/".join(names[:count]) for count in range(len(names), 2, -1)]
        return next(
            (choice for glob, choice in self.rules if any(fnmatchcase(one, glob) for one in above)), self.otherwise
        )


@dataclass(frozen=True, slots=True)
class EtcRow:
    """One local change, and what becomes of it; of a directory that is kept or lost as a whole, the directory alone."""

    path: str
    change: Change
    decision: Decision
    conflict: str | None = None
    """What the image did to the same path, where that stands against the change."""

    def to_json(self) -> dict[str, Any]:
        return {"path": self.path, "change": self.change, "decision": self.decision, "conflict": self.conflict}


@dataclass(frozen=True, slots=True)
class EtcPlan:
    rows: tuple[EtcRow, ...]
    upper: Directory
    """For `write_upper`."""

    @property
    def conflicts(self) -> tuple[EtcRow, ...]:
        return tuple(row for row in self.rows if row.conflict)

    def check(self) -> None:
        """Raise `TargetError` where the policy says stop."""
        stopped = [row.path for row in self.rows if row.decision == "stop"]
        if stopped:
            more = f" and {len(stopped) - _NAMED} more" if len(stopped) > _NAMED else ""
            raise TargetError(
                f"changed both on this machine and in the new image: {', '.join(stopped[:_NAMED])}{more}",
                hint="say who wins: a policy such as /etc/ssh/*=ours or =theirs",
            )

    def to_json(self) -> dict[str, Any]:
        return {"rows": [row.to_json() for row in self.rows], "conflicts": len(self.conflicts)}


@dataclass(frozen=True, slots=True)
class EtcChange:
    path: str
    change: Change

    def to_json(self) -> dict[str, Any]:
        return {"path": self.path, "change": self.change}


def plan_etc(base: Directory, theirs: Directory, upper: Directory, policy: EtcPolicy | None = None) -> EtcPlan:
    """Merge: `base` and `theirs` are /etc of the old and of the new image, `upper` the machine's upper directory."""
    merger = _Merger(policy or EtcPolicy())
    try:
        merged = merger.directories(ETC, base, view(base, upper), theirs)
        return EtcPlan(tuple(merger.rows), upper_of(theirs, merged))
    except RecursionError as error:
        raise _too_deep() from error


def diff_etc(base: Directory, upper: Directory) -> list[EtcChange]:
    """Return what differs from the image's /etc, in order of path; of a removed directory the directory alone."""
    changes: list[EtcChange] = []
    try:
        _differences(ETC, base, view(base, upper), changes)
    except RecursionError as error:
        raise _too_deep() from error
    return changes


def _too_deep() -> LimitError:
    return LimitError("/etc has directories nested too deep")


def change_of(before: Inode | None, after: Inode | None) -> Change:
    if before is None:
        return "added"
    if after is None:
        return "removed"
    if file_type(before) != file_type(after):
        return "type"
    return "metadata" if isinstance(after, Directory) or same_content(before, after) else "changed"


def _differences(path: bytes, before: Inode | None, after: Inode | None, changes: list[EtcChange]) -> None:
    if before is after:
        return
    old = before.entries if isinstance(before, Directory) else {}
    new = after.entries if isinstance(after, Directory) else {}
    itself = (
        before is None
        or after is None
        or not same_content(before, after)
        or not same_metadata(before.meta, after.meta)
        or label(before) != label(after)
    )
    if itself:
        changes.append(EtcChange(text(path), change_of(before, after)))
    if after is not None:
        for name in sorted(old.keys() | new.keys() if isinstance(after, Directory) else ()):
            _differences(path + b"/" + name, old.get(name), new.get(name), changes)


@dataclass(slots=True)
class _Merger:
    policy: EtcPolicy
    rows: list[EtcRow] = field(default_factory=list)
    relabelled: dict[tuple[int, bytes | None], tuple[Inode, Inode]] = field(default_factory=dict)
    """Hard links stay links: one inode becomes one inode."""

    def merge(self, path: bytes, base: Inode | None, ours: Inode | None, theirs: Inode | None) -> Inode | None:
        if ours is base:
            return theirs
        if isinstance(ours, Directory) and isinstance(theirs, Directory):
            return self.directories(path, base if isinstance(base, Directory) else None, ours, theirs)
        if isinstance(ours, Directory) and isinstance(base, Directory) and theirs is None:
            return self.remains(path, base, ours)
        if same(ours, base):
            self.note_label(path, base, ours, theirs)
            return self.labelled(theirs, base, ours, theirs) if theirs else None
        if same(theirs, base):
            self.row(path, base, ours, "kept")
        elif same(ours, theirs):
            self.row(path, base, ours, "already there")
            return theirs
        elif self.conflict(path, base, ours, theirs) == "theirs":
            return theirs
        return self.labelled(ours, base, ours, theirs) if ours else None

    def directories(self, path: bytes, base: Directory | None, ours: Directory, theirs: Directory) -> Directory:
        entries = self.entries(path, base, ours, theirs)
        old = base.meta if base else None
        chosen = theirs
        if not (old and same_metadata(ours.meta, old)) and not same_metadata(ours.meta, theirs.meta):
            if old and same_metadata(theirs.meta, old):
                self.row(path, base, ours, "kept")
                chosen = ours
            elif self.conflict(path, base, ours, theirs) != "theirs":
                chosen = ours
        else:
            self.note_label(path, base, ours, theirs)
        return Directory(self.labelled(chosen, base, ours, theirs).meta, entries)

    def remains(self, path: bytes, base: Directory, ours: Directory) -> Directory | None:
        """Return what stays of a directory that the new image has no more: what the machine changed in it."""
        entries = self.entries(path, base, ours, None)
        kept = not same_metadata(ours.meta, base.meta) and self.conflict(path, base, ours, None) != "theirs"
        return Directory(ours.meta, entries) if entries or kept else None

    def entries(
        self, path: bytes, base: Directory | None, ours: Directory, theirs: Directory | None
    ) -> Mapping[bytes, Inode]:
        old: Mapping[bytes, Inode] = base.entries if base else {}
        new: Mapping[bytes, Inode] = theirs.entries if theirs else {}
        result: dict[bytes, Inode] = {}
        for name in sorted(old.keys() | ours.entries.keys() | new.keys()):
            merged = self.merge(path + b"/" + name, old.get(name), ours.entries.get(name), new.get(name))
            if merged is not None:
                result[name] = merged
        return result

    def row(
        self, path: bytes, base: Inode | None, ours: Inode | None, decision: Decision, conflict: str | None = None
    ) -> None:
        self.rows.append(EtcRow(text(path), change_of(base, ours), decision, conflict))

    def conflict(self, path: bytes, base: Inode | None, ours: Inode | None, theirs: Inode | None) -> Choice:
        choice = self.policy.choose(text(path))
        if base is None:
            kind = "the image adds another"
        elif theirs is None:
            kind = "the image has it no more"
        elif ours is not None and file_type(ours) != file_type(theirs):
            kind = "the image has another type there"
        else:
            kind = "the image changed it too"
        self.row(path, base, ours, choice, kind)
        return choice

    def note_label(self, path: bytes, base: Inode | None, ours: Inode | None, theirs: Inode | None) -> None:
        if base and ours and theirs and label(ours) not in (label(base), label(theirs)):
            self.row(path, base, ours, "kept")

    def labelled(self, inode: Inode, base: Inode | None, ours: Inode | None, theirs: Inode | None) -> Inode:
        """Return `inode` with the label of the new image, or with that which the machine gave it."""
        if (
            base is None
            or ours is None
            or theirs is None
            or not file_type(base) == file_type(ours) == file_type(theirs)
        ):
            return inode
        wanted = label(theirs) if label(ours) == label(base) else label(ours)
        if label(inode) == wanted:
            return inode
        known = self.relabelled.get((id(inode), wanted))
        if known is None:
            xattrs = {name: value for name, value in inode.meta.xattrs.items() if name != SELINUX_XATTR}
            if wanted is not None:
                xattrs[SELINUX_XATTR] = wanted
            # with the original, so that its id stays its own
            known = self.relabelled[id(inode), wanted] = (
                inode,
                replace(inode, meta=replace(inode.meta, xattrs=xattrs)),
            )
        return known[1]
