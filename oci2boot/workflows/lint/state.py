"""What becomes of /etc and /var, which a machine keeps from one version of its image to the next."""

import re
import shlex
from collections.abc import Iterator
from typing import Final

from oci2boot.errors import Error, FormatError
from oci2boot.formats.file_contexts.specs import parse_policy_type
from oci2boot.formats.tar import printable
from oci2boot.tree.files import Read, list_directory, read_file
from oci2boot.tree.lookup import look_up
from oci2boot.tree.model import Directory, File, Inode, Symlink, find, walk
from oci2boot.tree.selinux import CONFIG
from oci2boot.workflows.lint.model import NAMED, Found, Lint, Subject

MAX_FRAGMENT: Final = 1 << 20
"""Bytes of a file in tmpfiles.d or sysusers.d, of /etc/passwd and of /etc/group."""
INJECTED: Final = (b"etc/hostname", b"etc/resolv.conf")
KEPT_BY_PACKAGES: Final = re.compile(
    rb"var/(cache|backups|log|lib/(dpkg|apt|rpm|dnf|pacman|pam|ucf|selinux|shells\.state|systemd/(catalog|deb-.*)))(/.*)?"
)
"""Of /var: what package managers keep of the build, and no machine reads."""
_SPECIFIER: Final = re.compile(r"%[A-Za-z]")


def _usr_etc(subject: Subject) -> Iterator[Found]:
    """Only one of the two may be: which one counts is decided differently by each tool."""
    etc, usr_etc = find(subject.tree, b"etc"), find(subject.tree, b"usr/etc")
    if etc is None or usr_etc is None:
        return
    yield Found("the image has both /etc and /usr/etc; nothing looks at /usr/etc")
    if isinstance(etc, Directory) and isinstance(usr_etc, Directory):
        other = dict(walk(usr_etc))
        differing = [
            b"etc" + path
            for path, inode in walk(etc)
            if not isinstance(inode, Directory) and path in other and not _same(inode, other[path])
        ]
        if differing:
            yield Found("these files of /etc are others than those of /usr/etc", differing)
        there = {path for path, _ in walk(etc)}
        if missing := [b"usr/etc" + path for path, inode in other.items() if path not in there]:
            yield Found("these files of /usr/etc are not in /etc", missing)


def _same(first: Inode, second: Inode) -> bool:
    match first, second:
        case File(content=a), File(content=b):
            return a == b
        case Symlink(target=a), Symlink(target=b):
            return a == b
    return type(first) is type(second)


def _injected(subject: Subject) -> Iterator[Found]:
    if empty := [path for path in INJECTED if isinstance(inode := find(subject.tree, path), File) and not inode.size]:
        yield Found("an empty file that a tool which builds containers may have left", empty)


def _policy(subject: Subject) -> Iterator[Found]:
    _, notes = subject.policy
    yield from (Found(note, severity="warning") for note in notes)


def _kernel_policy(subject: Subject) -> Iterator[Found]:
    config = read_file(subject.tree, subject.read, CONFIG, MAX_FRAGMENT) or b""
    state = re.search(rb"^\s*SELINUX=(enforcing|permissive)\b", config, re.MULTILINE)
    name = parse_policy_type(config, "libselinux")
    if name is None or state is None:
        return
    directory = b"etc/selinux/" + name + b"/policy"
    if not any(one.startswith(b"policy.") for one, _ in list_directory(subject.tree, directory)):
        halts = "systemd stops the boot" if state[1] == b"enforcing" else "the kernel has none to load"
        yield Found(
            f"/etc/selinux/config is {state[1].decode()} and names a policy, and the image has no "
            f"{printable(b'/' + directory)}/policy.*: {halts}"
        )


def _sysusers(subject: Subject) -> Iterator[Found]:
    users, groups = set[str](), set[str]()
    for words in _fragments(subject.tree, subject.read, b"sysusers.d"):
        match words:
            case ["u" | "u!", name, *_]:
                users.add(name)
                groups.add(name)
            case ["g", name, *_]:
                groups.add(name)
            case ["m", name, group, *_]:
                users.add(name)
                groups.add(group)
    for path, what, known in ((b"etc/passwd", "users", users), (b"etc/group", "groups", groups)):
        lines = (read_file(subject.tree, subject.read, path, MAX_FRAGMENT) or b"").decode(errors="replace").splitlines()
        names = [name for name, colon, _ in (line.partition(":") for line in lines) if colon and name not in known]
        if names:
            shown = ", ".join(printable(name.encode()) for name in names[:NAMED])
            shown += f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
            yield Found(
                f"{what} that no file in sysusers.d makes: {shown}; where a machine changes /{path.decode()}, "
                "it does not get those of a later image"
            )


def _var_log(subject: Subject) -> Iterator[Found]:
    log = find(subject.tree, b"var/log")
    if isinstance(log, Directory):
        logs = [b"var/log" + path for path, inode in walk(log) if isinstance(inode, File) and inode.size]
        if logs:
            yield Found("logs of the build, which go to every machine", logs)


def _var(subject: Subject) -> Iterator[Found]:
    """What the first installation alone puts into /var: no later version of the image adds to it, or changes it."""
    var = find(subject.tree, b"var")
    if not isinstance(var, Directory) or subject.verity or _laid_over(subject):
        return
    made, copied = _tmpfiles(subject)
    left = []
    for path, _ in walk(var):
        whole = b"var" + path
        if path == b"/" or KEPT_BY_PACKAGES.fullmatch(whole) or whole in made:
            continue
        if not copied.isdisjoint(_above(whole)):
            continue
        left.append(whole)
    if left:
        yield Found("only the first installation gets these, no later version of the image", left)


def _laid_over(subject: Subject) -> bool:
    """Say whether what the image has in /var shows through what the machine writes."""
    try:
        return subject.configuration.var in ("overlay", "transient")
    except Error:  # the check of the configuration says so
        return False


def _above(path: bytes) -> Iterator[bytes]:
    while path := path.rpartition(b"/")[0]:
        yield path


def _tmpfiles(subject: Subject) -> tuple[set[bytes], set[bytes]]:
    """Return the paths that tmpfiles.d makes, and those that it copies with all that is in them."""
    made, copied = set[bytes](), set[bytes]()
    for words in _fragments(subject.tree, subject.read, b"tmpfiles.d"):
        if len(words) < 2 or _SPECIFIER.search(words[1]):
            continue
        parent, _, name = words[1].encode(errors="surrogateescape").strip(b"/").rpartition(b"/")
        place = look_up(subject.tree, parent)
        path = b"/".join(filter(None, (place[0] if place else parent, name)))
        made.add(path)
        if words[0].startswith("C"):
            copied.add(path)
    return made, copied


def _fragments(tree: Directory, read: Read, name: bytes) -> Iterator[list[str]]:
    """Yield the words of each line of a `.d` directory; of a name that both have, /etc's file counts."""
    files = {
        file: directory + b"/" + file
        for directory in (b"usr/lib/" + name, b"etc/" + name)
        for file, _ in list_directory(tree, directory)
        if file.endswith(b".conf")
    }
    for _, path in sorted(files.items()):
        for line in (read_file(tree, read, path, MAX_FRAGMENT) or b"").decode(errors="surrogateescape").splitlines():
            if line.strip() and not line.lstrip().startswith("#"):
                try:
                    yield shlex.split(line)
                except ValueError as error:
                    raise FormatError(f"{printable(b'/' + path)} has a line with an open quote") from error


LINTS: Final = (
    Lint(
        name="etc-usretc",
        severity="error",
        what="Only one of /etc and /usr/etc is there; where both are, which files differ.",
        hint="keep /etc alone in a container image",
        check=_usr_etc,
        stage="root",
        bootc=True,
    ),
    Lint(
        name="buildah-injected",
        severity="warning",
        what="/etc/hostname and /etc/resolv.conf are no empty files.",
        hint="remove it in the image, or write what is meant",
        check=_injected,
        stage="root",
        bootc=True,
    ),
    Lint(
        name="selinux-policy",
        severity="error",
        what="The SELinux policy that /etc/selinux/config names is there, and its file contexts can be read.",
        hint="install the policy in the image, or remove /etc/selinux/config",
        check=_policy,
        stage="root",
        repeated=True,
    ),
    Lint(
        name="selinux-kernel-policy",
        severity="error",
        what="That policy is there for the kernel, too.",
        hint="install the policy in the image, or remove /etc/selinux/config",
        check=_kernel_policy,
        stage="root",
    ),
    Lint(
        name="sysusers",
        severity="note",
        what="Users and groups of the image are made by sysusers.d.",
        hint="describe them in /usr/lib/sysusers.d",
        check=_sysusers,
        stage="root",
        bootc=True,
    ),
    Lint(
        name="var-log",
        severity="warning",
        what="/var/log has no logs of the build.",
        hint="remove them in the image",
        check=_var_log,
        stage="root",
        bootc=True,
    ),
    Lint(
        name="var-tmpfiles",
        severity="warning",
        what="What /var has is made by tmpfiles.d at each boot, besides what package managers keep there.",
        hint="describe it in /usr/lib/tmpfiles.d, and move data of the image to /usr",
        check=_var,
        stage="root",
        bootc=True,
    ),
)
