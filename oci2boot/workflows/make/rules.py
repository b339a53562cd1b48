"""Every rule set by which some tool computes, or computed, the digest of a tree; and which of them gives a digest."""

from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import Final, Literal, get_args

from oci2boot.digest import External, Hash, VerityDigest
from oci2boot.errors import Error, ImageError
from oci2boot.formats.file_contexts.policy import Policy
from oci2boot.formats.file_contexts.specs import Rules as SelinuxRules
from oci2boot.rootfs.composefs import Rootfs, build_rootfs
from oci2boot.tree.contents import renamed
from oci2boot.tree.model import Directory, File, walk
from oci2boot.tree.prepare import ALLOWED_XATTRS, Xattrs, prepare, prepare_for_boot
from oci2boot.tree.selinux import disagreements, label, load_policy
from oci2boot.tree.times import has_nanoseconds, whole_seconds
from oci2boot.workflows.make.canonical import Read
from oci2boot.workflows.requests import ErofsVersion, TreeOptions

Form = Literal["bootable", "plain", "as it stands"]
Selinux = Literal["libselinux", "composefs-rs", "no labels", "as it stands"]
Mtime = Literal["nanoseconds", "seconds"]

VERSIONS: Final[tuple[ErofsVersion, ...]] = get_args(ErofsVersion)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What decides a digest besides the tree. The defaults are our own: canonical-1, bootable, EROFS format V1."""

    erofs_version: ErofsVersion = 1
    hash: Hash = "sha256"
    form: Form = "bootable"
    xattrs: Xattrs = "allowlist-only"
    selinux: Selinux = "libselinux"
    mtime: Mtime = "nanoseconds"

    def differences(self, other: "Rules") -> list[tuple[str, str, str]]:
        """Return (rule, ours, theirs) where two rule sets differ; what another form brings with it is not told."""
        told = [field.name for field in fields(self) if field.name != "selinux" or self.form == other.form]
        return [
            (NAMES[name], _shown(name, getattr(self, name)), _shown(name, getattr(other, name)))
            for name in told
            if getattr(self, name) != getattr(other, name)
        ]


def rules_of(options: TreeOptions, algorithm: Hash) -> Rules:
    """Return the rules that a user asked for."""
    if not options.bootable:
        return Rules(
            erofs_version=options.erofs_version,
            hash=algorithm,
            form="plain",
            xattrs=options.xattrs,
            selinux="as it stands",
        )
    return Rules(
        erofs_version=options.erofs_version, hash=algorithm, xattrs=options.xattrs, selinux=options.selinux_rules
    )


def _shown(name: str, value: object) -> str:
    return f"V{value}" if name == "erofs_version" else str(value)


AS_IT_STANDS: Final = Rules(form="as it stands", xattrs="keep-all", selinux="as it stands")
NAMES: Final = {
    "erofs_version": "EROFS format",
    "hash": "hash",
    "form": "form",
    "xattrs": "xattrs",
    "selinux": "SELinux labels",
    "mtime": "times in",
}


class Workbench:
    """One tree, brought into any form: each step is done once, policies are loaded once."""

    def __init__(
        self, tree: Directory, own: Rules, read: Read | None = None, rename: Callable[[File], External] | None = None
    ) -> None:
        """Take a tree whose contents are named by the hash of `own`, the rules by which its own digest is computed.

        `read` is for its policy; `rename` names a file's content by the other hash, where the content is at hand.
        """
        self.own = own
        self._rename = rename
        self._read = read
        self._raw: dict[tuple[Hash, Mtime], Directory] = {(own.hash, "nanoseconds"): tree}
        self._prepared: dict[tuple[Hash, Mtime, Form, Xattrs], Directory] = {}
        self._labelled: dict[Rules, Directory] = {}
        self._policies: dict[SelinuxRules, Policy | None] | None = None
        self._digests: dict[Rules, VerityDigest] = {}
        self._known: dict[Rules, Rootfs] = {}
        self._last: tuple[Rules, Rootfs] | None = None

    def know(self, rules: Rules, tree: Directory, rootfs: Rootfs) -> None:
        """Take what was computed before: the tree in the form that the rules say, and its image."""
        self._labelled[replace(rules, erofs_version=1)] = tree
        self._known[rules] = rootfs
        self._digests[rules] = rootfs.digest

    def digest(self, rules: Rules) -> VerityDigest:
        if rules not in self._digests:
            self._digests[rules] = self.rootfs(rules).digest
        return self._digests[rules]

    def rootfs(self, rules: Rules) -> Rootfs:
        """Return the composefs image; of those that nobody made known only the last one is kept, they are large."""
        if rules in self._known:
            return self._known[rules]
        if self._last is None or self._last[0] != rules:
            self._last = None
            self._last = rules, build_rootfs(self.tree(rules), rules.erofs_version, rules.hash)
        return self._last[1]

    def search(self, wanted: Collection[VerityDigest], tried: Callable[[Rules], None]) -> Rules | None:
        """Return the rules, those next to its own first, by which the tree has one of the digests."""
        hashes = {digest.algorithm for digest in wanted}
        every = [rules for algorithm in sorted(hashes) for rules in self._variants(algorithm)]
        for rules in sorted(every, key=lambda rules: len(self.own.differences(rules))):
            tried(rules)
            try:
                if self.digest(rules) in wanted:
                    return rules
            except Error:  # a tree that these rules refuse has no digest by them
                continue
        return None

    def tree(self, rules: Rules) -> Directory:
        """Return the tree in the form that the rules say."""
        key = replace(rules, erofs_version=1)
        if key not in self._labelled:
            prepared = self._prepare(rules.hash, rules.mtime, rules.form, rules.xattrs)
            self._labelled[key] = self._label(prepared, rules.selinux)
        return self._labelled[key]

    def _variants(self, algorithm: Hash) -> Iterator[Rules]:
        """Yield the rule sets that may make a difference to this tree."""
        if algorithm != self.own.hash and not self._rename:
            return
        raw = self._raw_tree(algorithm, "nanoseconds")
        times: list[Mtime] = ["nanoseconds", "seconds"] if has_nanoseconds(raw) else [self.own.mtime]
        kept = self._kept_xattrs(raw)
        forms: list[tuple[Form, Xattrs, Selinux]] = [("as it stands", "keep-all", "as it stands")]
        forms += [("plain", xattrs, "as it stands") for xattrs in kept]
        forms += [("bootable", xattrs, selinux) for xattrs, selinux in product(kept, self._labellings(raw))]
        for (form, xattrs, selinux), time, version in product(forms, times, VERSIONS):
            if version != 2 or time == self.own.mtime:  # V2 has no nanoseconds
                yield Rules(
                    erofs_version=version, hash=algorithm, form=form, xattrs=xattrs, selinux=selinux, mtime=time
                )

    def _kept_xattrs(self, raw: Directory) -> list[Xattrs]:
        names = {name for _, inode in walk(raw) for name in inode.meta.xattrs} - ALLOWED_XATTRS
        modes: list[Xattrs] = ["allowlist-only"]
        if any(name.startswith(b"user.") for name in names):
            modes.append("keep-user")
        if any(not name.startswith(b"user.") for name in names):
            modes.append("keep-all")
        if self.own.xattrs not in modes and self.own.form != "as it stands":
            modes.append(self.own.xattrs)
        return modes

    def _labellings(self, raw: Directory) -> list[Selinux]:
        policies = self._usable_policies()
        if not policies:
            return ["no labels"]
        first, *others = policies
        if others and not disagreements(raw, policies[first], policies[others[0]]):
            del policies[others[0]]
        same_as_none = len(policies) == 1 and policies[first] is None
        return [*policies] if same_as_none else [*policies, "no labels"]

    def _usable_policies(self) -> dict[SelinuxRules, Policy | None]:
        """Return the image's policy as each rule set reads it, without those that refuse it."""
        if self._policies is None:
            self._policies = {}
            for rules in get_args(SelinuxRules):
                with suppress(Error):
                    if self._read:
                        raw = self._raw[self.own.hash, "nanoseconds"]
                        self._policies[rules] = load_policy(raw, self._read, rules)
        return dict(self._policies)

    def _raw_tree(self, algorithm: Hash, mtime: Mtime) -> Directory:
        key = (algorithm, mtime)
        if key not in self._raw:
            if mtime == "seconds":
                self._raw[key] = whole_seconds(self._raw_tree(algorithm, "nanoseconds"))
            else:
                assert self._rename
                self._raw[key] = renamed(self._raw[self.own.hash, "nanoseconds"], self._rename)
        return self._raw[key]

    def _prepare(self, algorithm: Hash, mtime: Mtime, form: Form, xattrs: Xattrs) -> Directory:
        key = (algorithm, mtime, form, xattrs)
        if key not in self._prepared:
            raw = self._raw_tree(algorithm, mtime)
            match form:
                case "as it stands":
                    self._prepared[key] = raw
                case "plain":
                    self._prepared[key] = prepare(raw, xattrs)
                case "bootable":
                    self._prepared[key] = prepare_for_boot(raw, lambda _: None, xattrs)
        return self._prepared[key]

    def _label(self, tree: Directory, selinux: Selinux) -> Directory:
        match selinux:
            case "as it stands":
                return tree
            case "no labels":
                return label(tree, None)
        policies = self._usable_policies()
        if selinux not in policies:
            raise ImageError(f"the rules of {selinux} refuse the image's SELinux policy")
        return label(tree, policies[selinux])
