"""What a new machine is told before its first boot: host name, who may log in, credentials of its services.

All of it are files in the machine's own /etc and /var, where every image finds them, also one without systemd. Nothing
verifies those, as nothing verifies what the machine changes there later. Credentials on the ESP are no way: systemd
takes from there only what is encrypted, by a key that only the machine itself has. systemd-stub(7), systemd-creds(1)
"""

import posixpath
import re
import stat
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final, NamedTuple

from oci2boot.errors import FormatError, NothingKeptError, TargetError
from oci2boot.formats.file_contexts.policy import Policy
from oci2boot.sysroot.tpm2 import check_pcrs, enrolment
from oci2boot.tree.lookup import look_up
from oci2boot.tree.model import SELINUX_XATTR, Directory, File, Inode, Metadata, Symlink, find

HOSTNAME_MAX: Final = 64
"""hostname(7)"""
KEYS_MAX: Final = 1 << 16
CREDENTIAL_MAX: Final = 1 << 20
"""systemd.exec(5): of all of a service."""

_LABEL: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
_CREDENTIAL_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,254}")
_KEY: Final = re.compile(r"(^|\s)(sk-)?(ssh|ecdsa)-[a-z0-9@.-]+ +[A-Za-z0-9+/]{20,}={0,3}(\s|$)")
_INCLUDE: Final = re.compile(rb"^\s*Include\s+\"?/etc/ssh/sshd_config\.d/\*\.conf", re.MULTILINE | re.IGNORECASE)
_SSHD_CONFIGS: Final = (b"/etc/ssh/sshd_config", b"/usr/etc/ssh/sshd_config")
_CRYPTENROLL: Final = b"/usr/bin/systemd-cryptenroll"
_SSHD_DROPIN: Final = b"AuthorizedKeysFile .ssh/authorized_keys /etc/ssh/authorized_keys.d/%u\n"

Read = Callable[[File], bytes]


@dataclass(frozen=True, slots=True)
class FirstBoot:
    hostname: str | None = None
    ssh_keys: bytes | None = None
    """authorized_keys of root. sshd(8)"""
    credentials: Mapping[str, bytes] = field(default_factory=lambda: MappingProxyType({}), repr=False)
    """For services that load or import them by name. systemd.exec(5), LoadCredential="""
    tpm2_pcrs: str | None = None
    """Of the TPM that opens the encrypted root, as in `7` or `0+7`."""
    files: Mapping[str, bytes] = field(default_factory=lambda: MappingProxyType({}), repr=False)
    """Of /etc, as they are; owner and mode are those of the image's file of that name, where there is one."""

    def check(self) -> None:
        """Raise `FormatError` for what no machine could take."""
        if self.hostname is not None:
            labels = self.hostname.split(".")
            if len(self.hostname) > HOSTNAME_MAX or not all(map(_LABEL.fullmatch, labels)):
                raise FormatError(f"not a host name: {self.hostname!r}", hint="letters, digits and -, 64 at most")
        if self.ssh_keys is not None:
            _check_keys(self.ssh_keys)
        if self.tpm2_pcrs is not None:
            check_pcrs(self.tpm2_pcrs)
        for name, value in self.credentials.items():
            if not _CREDENTIAL_NAME.fullmatch(name):
                raise FormatError(f"not a name for a credential: {name!r}")
            if len(value) > CREDENTIAL_MAX:
                raise FormatError(f"credential {name} has {len(value)} bytes, at most {CREDENTIAL_MAX} are passed")


class _Placed(NamedTuple):
    path: bytes
    data: bytes
    mode: int
    folder_mode: int


def with_first_boot(
    settings: FirstBoot, tree: Directory, policy: Policy | None, read: Read
) -> tuple[Directory | None, Directory | None]:
    """Return the upper directory of /etc and the first /var of a machine with this tree; None for what stays as it is.

    Raises `TargetError` where the image's SSH server would not find the keys.
    """
    settings.check()
    machine = tree
    for path, data, mode, folder_mode in _files(settings, tree, read):
        names = path.strip(b"/").split(b"/")
        machine = _with_file(machine, [], names, data, (mode, folder_mode), policy)
    etc, var = machine.entries.get(b"etc"), machine.entries.get(b"var")
    changed_etc = only_new(etc, tree.entries.get(b"etc")) if isinstance(etc, Directory) else None
    return changed_etc, var if isinstance(var, Directory) and var is not tree.entries.get(b"var") else None


def _files(settings: FirstBoot, tree: Directory, read: Read) -> Iterator[_Placed]:
    for name, data in sorted(settings.files.items()):
        yield _Placed(name.encode(), data, _mode_of(name), 0o755)
    if settings.hostname is not None:
        yield _Placed(b"/etc/hostname", settings.hostname.encode() + b"\n", 0o644, 0o755)
    for name, value in sorted(settings.credentials.items()):
        yield _Placed(b"/etc/credstore/" + name.encode(), value, 0o600, 0o700)
    if settings.tpm2_pcrs is not None:
        if not look_up(tree, _CRYPTENROLL):
            raise TargetError(
                "the image has no systemd-cryptenroll, which enrols the TPM",
                hint="install systemd-cryptsetup and tpm2-tss in the image, or do without the TPM",
            )
        for path, text in enrolment(settings.tpm2_pcrs):
            yield _Placed(path.encode(), text.encode(), 0o644, 0o755)
    if settings.ssh_keys is not None:
        yield from _key_files(settings.ssh_keys, tree, read)


def _mode_of(name: str) -> int:
    """Return the mode of a file that the image lacks: what may be secret is root's alone."""
    secret = name.rpartition("/")[2] in ("shadow", "gshadow") or name.endswith("_key")
    return 0o600 if secret else 0o644


def _key_files(keys: bytes, tree: Directory, read: Read) -> Iterator[_Placed]:
    """Place root's keys in its home where that is writable, else where a drop-in of sshd looks as well."""
    home = _home_of_root(tree, read)
    if home.startswith(b"/var/"):
        yield _Placed(home + b"/.ssh/authorized_keys", keys, 0o600, 0o700)
        return
    configs = [found[1] for path in _SSHD_CONFIGS if (found := look_up(tree, path))]
    if not any(isinstance(config, File) and _INCLUDE.search(read(config)) for config in configs):
        raise TargetError(
            "the image's SSH server would not find keys of root: its home is in the read-only image, and "
            + ("sshd_config does not include sshd_config.d" if configs else "there is no sshd_config"),
            hint="in the image, link /root to /var/roothome, or include /etc/ssh/sshd_config.d/*.conf",
        )
    yield _Placed(b"/etc/ssh/authorized_keys.d/root", keys, 0o600, 0o755)
    yield _Placed(b"/etc/ssh/sshd_config.d/10-oci2boot.conf", _SSHD_DROPIN, 0o644, 0o755)


def _home_of_root(tree: Directory, read: Read) -> bytes:
    """Return where root's home is, links followed also to what is not there yet."""
    home = b"/root"
    passwd = look_up(tree, b"/etc/passwd")
    if passwd and isinstance(passwd[1], File):
        fields = next((line.split(b":") for line in read(passwd[1]).splitlines() if line.startswith(b"root:")), [])
        home = fields[5] if len(fields) > 5 and fields[5].startswith(b"/") else home
    found = look_up(tree, home)
    if found:
        return b"/" + found[0]
    link = find(tree, home)
    return posixpath.normpath(posixpath.join(home, b"..", link.target)) if isinstance(link, Symlink) else home


def _with_file(
    here: Directory,
    above: Sequence[bytes],
    names: Sequence[bytes],
    data: bytes,
    modes: tuple[int, int],
    policy: Policy | None,
) -> Directory:
    """Return a directory with one file more; directories that the image lacks come with it."""
    name, *rest = names
    path = b"/" + b"/".join([*above, name])
    inner: Inode
    if not rest:
        meta, there = _meta(modes[0], path, stat.S_IFREG, policy), here.entries.get(name)
        if isinstance(there, File):
            kept = {key: value for key, value in there.meta.xattrs.items() if key == SELINUX_XATTR}
            meta = replace(
                meta, mode=there.meta.mode, uid=there.meta.uid, gid=there.meta.gid, xattrs={**kept, **meta.xattrs}
            )
        inner = File(meta, data)
    else:
        found = here.entries.get(name)
        if found is None:
            found = Directory(_meta(modes[1], path, stat.S_IFDIR, policy), {})
        if not isinstance(found, Directory):
            raise TargetError(f"{path.decode(errors='replace')} of the image is not a directory")
        inner = _with_file(found, [*above, name], rest, data, modes, policy)
    return replace(here, entries={**here.entries, name: inner})


def _meta(mode: int, path: bytes, kind: int, policy: Policy | None) -> Metadata:
    label = policy.label(path, kind) if policy else None
    return Metadata(mode=mode, xattrs={SELINUX_XATTR: label} if label else {})


def upper_directories(
    settings: FirstBoot, tree: Directory, policy: Policy | None, read: Read, places: Collection[str]
) -> dict[str, Directory]:
    """Return what the settings put into the overlays of a machine with this tree, by place.

    Raises `TargetError` where they are for a place that is none of `places`: nothing would be kept there.
    """
    etc, var = with_first_boot(settings, tree, policy, read)
    changed = {"/etc": etc, "/var": only_new(var, tree.entries.get(b"var")) if var else None}
    uppers = {place: upper for place, upper in changed.items() if upper}
    for place in uppers:
        if place not in places:
            raise NothingKeptError(
                f"host name, keys and credentials go into {place}, where the machine keeps nothing",
                hint=f"convert with an overlay for {place}, or have them in the image",
            )
    return uppers


def only_new(changed: Directory, image: Inode | None) -> Directory | None:
    """Return what of a directory is not the image's: an upper directory; None where nothing is."""
    if changed is image:
        return None
    old = image.entries if isinstance(image, Directory) else {}
    new: dict[bytes, Inode] = {}
    for name, inode in changed.entries.items():
        if inode is not old.get(name):
            inner = only_new(inode, old.get(name)) if isinstance(inode, Directory) else inode
            if inner is not None:
                new[name] = inner
    return replace(changed, entries=new)


def _check_keys(keys: bytes) -> None:
    if len(keys) > KEYS_MAX:
        raise FormatError(f"{len(keys)} bytes of SSH keys, at most {KEYS_MAX} are taken")
    if b"PRIVATE KEY" in keys:
        raise FormatError("that is a private SSH key", hint="give the public one, whose name ends in .pub")
    try:
        lines = [line for line in keys.decode().splitlines() if line.strip() and not line.startswith("#")]
    except UnicodeDecodeError as error:
        raise FormatError("the SSH keys are not text") from error
    if not lines or not all(map(_KEY.search, lines)):
        raise FormatError("not a list of public SSH keys", hint="a line each, as in ~/.ssh/authorized_keys")
