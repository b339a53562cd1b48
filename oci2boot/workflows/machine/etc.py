"""What a machine changed in /etc, against the image that it booted."""

import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

from oci2boot.digest import External, Hash, VerityDigest
from oci2boot.errors import FormatError, LimitError, TargetError
from oci2boot.formats.fsverity import Hasher
from oci2boot.oci.directory import scan
from oci2boot.rootfs.reader import read_rootfs
from oci2boot.store.repository import Repository
from oci2boot.sysroot.etc import EtcChange, EtcPolicy, diff_etc
from oci2boot.sysroot.machine import Sysroot, booted_digest, open_sysroot
from oci2boot.system.files import plain_errors
from oci2boot.tree.diff import text
from oci2boot.tree.model import Directory, File, Inode, Metadata, Special, find, rewrite, walk
from oci2boot.workflows.options import Option

MAX_FILES: Final = 200_000
"""In one upper directory of /etc."""
MAX_BYTES: Final = 1 << 30
"""Of all files in it over 64 bytes."""

Policy = Annotated[
    EtcPolicy | None,
    Option(
        "--etc",
        "who wins if machine and new image both changed a file in /etc: ours, theirs or stop, or /etc/GLOB=theirs",
        parse=EtcPolicy.parse,
        many=True,
    ),
]


@dataclass(frozen=True, slots=True)
class Upper:
    """An upper directory as it lies on disk: whiteouts and overlayfs's own attributes included."""

    tree: Directory
    files: Mapping[VerityDigest, Path]
    """Where its contents over 64 bytes lie."""
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class EtcDiff:
    deployment: VerityDigest
    changes: tuple[EtcChange, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "deployment": str(self.deployment),
            "changes": [change.to_json() for change in self.changes],
            "notes": list(self.notes),
        }


def read_upper(path: Path, algorithm: Hash) -> Upper:
    """Read an upper directory; only root sees overlayfs's attributes. Sockets are left out: nobody listens any more."""
    with plain_errors(TargetError, f"read {path}"):
        if not path.is_dir():
            raise TargetError(f"{path} is no directory", hint="where /etc is transient, no change to it is kept")
        tree = scan(path, _Measurer(algorithm).measure, MAX_FILES)
    files: dict[VerityDigest, Path] = {}
    sockets = []
    for name, inode in walk(tree):
        if isinstance(inode, File) and isinstance(inode.content, External):
            files[inode.content.digest] = path / name.decode(errors="surrogateescape").lstrip("/")
        elif _is_socket(inode):
            sockets.append(text(name))
    notes = [f"/etc{name} is left out, being a socket" for name in sockets]
    return Upper(_without_sockets(tree) if sockets else tree, files, tuple(notes))


def image_etc(repository: Repository, digest: VerityDigest) -> Directory:
    """Return /etc as an image has it; the image is checked against its digest."""
    found = find(read_rootfs(repository.read_object(digest)), b"/etc")
    return found if isinstance(found, Directory) else Directory(Metadata(mode=0o755), {})


def changed_etc(root: Path | None, wanted: str | None = None) -> EtcDiff:
    """Compare a deployment's /etc with its image; `root` is another machine's physical root.

    `wanted` is the start of a digest, by default the booted one, or the only one.
    """
    sysroot = open_sysroot(root)
    digest = _deployment(sysroot, wanted)
    with Repository.open(sysroot.repository) as repository:
        upper = read_upper(sysroot.deployments / digest.hex / "etc/upper", digest.algorithm)
        return EtcDiff(digest, tuple(diff_etc(image_etc(repository, digest), upper.tree)), upper.notes)


def _deployment(sysroot: Sysroot, wanted: str | None) -> VerityDigest:
    if wanted is None and (booted := booted_digest(sysroot)):
        return booted
    with plain_errors(TargetError, f"read {sysroot.deployments}"):
        names = sorted(path.name for path in sysroot.deployments.iterdir() if not path.name.startswith("."))
    found = [name for name in names if name.startswith(wanted or "")]
    if len(found) != 1:
        fitting = f"that start with {wanted[:128]}" if wanted else "to choose from"
        raise TargetError(
            f"{sysroot.root} has {len(found) or 'no'} deployments {fitting}",
            hint="name one by --deployment: the directories in state/deploy",
        )
    try:
        return VerityDigest.parse(found[0])
    except FormatError as error:
        raise TargetError(f"{sysroot.deployments / found[0][:200]} is no deployment") from error


class _Measurer:
    def __init__(self, algorithm: Hash) -> None:
        self._algorithm = algorithm
        self._left = MAX_BYTES

    def measure(self, pieces: Iterator[bytes]) -> VerityDigest:
        hasher = Hasher(self._algorithm)
        for piece in pieces:
            self._left -= len(piece)
            if self._left < 0:
                raise LimitError(
                    f"the local files of /etc have more than {MAX_BYTES >> 20} MiB", hint="keep data in /var"
                )
            hasher.update(piece)
        return hasher.digest()


def _is_socket(inode: Inode) -> bool:
    return isinstance(inode, Special) and inode.kind == stat.S_IFSOCK


def _without_sockets(tree: Directory) -> Directory:
    return rewrite(tree, lambda inode: None if _is_socket(inode) else inode)
