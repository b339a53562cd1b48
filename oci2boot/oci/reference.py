"""Names of images and trees, as people type them: `docker://quay.io/os/demo:1`, `oci:DIR:TAG`, `dir:ROOTFS`.

The spellings are those of containers-transports(5); a name without a transport is one of a registry.
"""

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from oci2boot.digest import OciDigest
from oci2boot.errors import FormatError

DOCKER_HUB: Final = "docker.io"
MAX_NAME: Final = 255
"""Of registry and repository together, in characters; distribution/reference, `NameTotalLengthMax`."""

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY: Final = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_REGISTRY: Final = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-fA-F:]+\])(?::[0-9]{{1,5}})?")
_LAYOUT_TAG: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9]|[-._:@+/](?=[A-Za-z0-9])|-(?=-))*")
"""image-spec, annotations.md, `org.opencontainers.image.ref.name`."""
_STORED: Final = re.compile(r"(\[[^\[\]]+\])?([A-Za-z0-9][A-Za-z0-9._/:@-]{0,511})")

_TRANSPORTS: Final = (
    "docker://REGISTRY/REPOSITORY:TAG, oci:DIR:TAG, oci-archive:FILE, docker-archive:FILE, containers-storage:NAME, "
    "dir:ROOTFS, tar:FILE, dumpfile:FILE, - (standard input)"
)
_COPIED: Final = ("docker-daemon", "ostree", "sif")
"""Transports that skopeo knows and we do not."""


@dataclass(frozen=True, slots=True)
class Reference(ABC):
    """Where an image or a tree comes from; `parse` is the door, `str()` its inverse."""

    registry_name: str | None = field(default=None, kw_only=True, compare=False)
    """Of a path that was given without a transport: the image of a registry that the same word could mean."""

    @staticmethod
    def parse(text: str) -> "Reference":
        if not text or len(text) > 8192 or any(ord(character) < 32 for character in text):
            raise FormatError(f"not the name of an image: {text[:80]!r}", hint=f"known are {_TRANSPORTS}")
        if text == "-":
            return InputReference()
        transport, colon, rest = text.partition(":")
        if not colon:
            return RegistryReference.parse_name(text)
        match transport:
            case "docker":
                if not rest.startswith("//"):
                    raise FormatError(f"docker: wants two slashes: {text!r}", hint=f"docker://{rest.lstrip('/')}")
                return RegistryReference.parse_name(rest[2:])
            case "oci":
                return LayoutReference(*_path_and_tag(rest, text))
            case "oci-archive":
                return ArchiveReference(*_path_and_tag(rest, text))
            case "docker-archive":
                return DockerArchiveReference(*_path_and_tag(rest, text))
            case "containers-storage":
                return StorageReference.parse_name(rest)
            case "dir":
                return DirectoryReference(_path(rest, text))
            case "tar":
                return TarReference(_path(rest, text))
            case "dumpfile":
                return DumpfileReference(_path(rest, text))
        if transport in _COPIED:
            raise FormatError(
                f"the transport {transport}: is not read directly",
                hint=f"skopeo copy {text} oci:DIR:latest, and then give oci:DIR:latest",
            )
        return RegistryReference.parse_name(text)

    @property
    @abstractmethod
    def name(self) -> str:
        """A short name for people and stores, without transport and folders."""


@dataclass(frozen=True, slots=True)
class RegistryReference(Reference):
    registry: str
    """Host name and perhaps port, as in the name; `docker.io` is Docker Hub."""
    repository: str
    tag: str | None = None
    digest: OciDigest | None = None

    @classmethod
    def parse_name(cls, text: str) -> "RegistryReference":
        """Take `[registry/]repository[:tag][@digest]` by the rules of distribution/reference."""
        name, at, digest_text = text.partition("@")
        digest = OciDigest.parse(digest_text) if at else None
        head, slash, last = name.rpartition("/")
        last, colon, tag = last.partition(":")
        if colon and not _TAG.fullmatch(tag):
            raise _not_a_name(text)
        path = head + slash + last
        registry, slash, repository = path.partition("/")
        if not slash or not ("." in registry or ":" in registry or registry == "localhost"):
            registry, repository = DOCKER_HUB, path
        if registry in (f"index.{DOCKER_HUB}", f"registry-1.{DOCKER_HUB}"):
            registry = DOCKER_HUB
        if registry == DOCKER_HUB and "/" not in repository:
            repository = f"library/{repository}"
        if not _REGISTRY.fullmatch(registry) or len(registry) + 1 + len(repository) > MAX_NAME:
            raise _not_a_name(text)
        if not _REPOSITORY.fullmatch(repository):
            if _REPOSITORY.fullmatch(repository.lower()):
                raise FormatError(f"a repository's name is in lower case: {text!r}", hint=f"try {text.lower()}")
            raise _not_a_name(text)
        return cls(registry, repository, tag or (None if digest else "latest"), digest)

    @property
    def name(self) -> str:
        last = self.repository.rpartition("/")[2]
        return f"{last}:{self.tag}" if self.tag else f"{last}@{self.digest}"

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"docker://{self.registry}/{self.repository}{tag}{digest}"


@dataclass(frozen=True, slots=True)
class LayoutReference(Reference):
    """A directory in the OCI image layout; image-spec, image-layout.md."""

    path: Path
    tag: str | None = None

    @property
    def name(self) -> str:
        return self.path.absolute().name + _suffix(self.tag)

    def __str__(self) -> str:
        return f"oci:{self.path}{_suffix(self.tag)}"


@dataclass(frozen=True, slots=True)
class ArchiveReference(Reference):
    """A tar of an OCI image layout."""

    path: Path
    tag: str | None = None

    @property
    def name(self) -> str:
        return self.path.name.removesuffix(".tar").removesuffix(".oci") + _suffix(self.tag)

    def __str__(self) -> str:
        return f"oci-archive:{self.path}{_suffix(self.tag)}"


@dataclass(frozen=True, slots=True)
class DockerArchiveReference(Reference):
    """A tar as `docker save` writes it; its tag is a whole name, `debian:trixie`."""

    path: Path
    tag: str | None = None

    @property
    def name(self) -> str:
        return self.tag.rpartition("/")[2] if self.tag else self.path.name.removesuffix(".tar")

    def __str__(self) -> str:
        return f"docker-archive:{self.path}{_suffix(self.tag)}"


@dataclass(frozen=True, slots=True)
class StorageReference(Reference):
    """An image of podman's and buildah's local storage, by name or id, with the storage in brackets before it."""

    image: str
    storage: str = ""
    """`[driver@/graph/root+/run/root]`, empty for the usual one."""

    @classmethod
    def parse_name(cls, text: str) -> "StorageReference":
        match = _STORED.fullmatch(text)
        if match is None:
            raise FormatError(
                f"not the name of an image in local storage: {text!r}", hint="`buildah images` lists them"
            )
        return cls(match[2], match[1] or "")

    @property
    def name(self) -> str:
        return self.image.rpartition("/")[2]

    def __str__(self) -> str:
        return f"containers-storage:{self.storage}{self.image}"


@dataclass(frozen=True, slots=True)
class DirectoryReference(Reference):
    """A root file system as files."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.absolute().name or "root"

    def __str__(self) -> str:
        return f"dir:{self.path}"


@dataclass(frozen=True, slots=True)
class TarReference(Reference):
    """A tar of a root file system, plain or compressed."""

    path: Path

    @property
    def name(self) -> str:
        return re.sub(r"\.(?:tar(?:\.gz|\.zst)?|tgz)$", "", self.path.name)

    def __str__(self) -> str:
        return f"tar:{self.path}"


@dataclass(frozen=True, slots=True)
class InputReference(Reference):
    """What standard input brings: a tar of a root file system, or an archive of an image."""

    tag: None = None
    """An archive that is read so is one of a single image."""

    @property
    def name(self) -> str:
        return "stdin"

    def __str__(self) -> str:
        return "-"


@dataclass(frozen=True, slots=True)
class DumpfileReference(Reference):
    """A tree as composefs-dump(5) writes it."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.stem

    def __str__(self) -> str:
        return f"dumpfile:{self.path}"


def _suffix(tag: str | None) -> str:
    return f":{tag}" if tag else ""


def _path(text: str, whole: str) -> Path:
    if not text:
        raise FormatError(f"the name of a file or directory is missing: {whole!r}")
    return Path(text)


def _path_and_tag(rest: str, whole: str) -> tuple[Path, str | None]:
    # As in skopeo, the first colon ends the path: no path with a colon can be named.
    path, colon, tag = rest.partition(":")
    if colon and not _LAYOUT_TAG.fullmatch(tag):
        raise FormatError(f"not a tag of an OCI layout: {tag!r} in {whole!r}")
    return _path(path, whole), tag or None


def _not_a_name(text: str) -> FormatError:
    if text.startswith((".", "/", "~")):
        return FormatError(f"a path needs its transport: {text!r}", hint=f"dir:{text} (files) or oci:{text} (a layout)")
    return FormatError(f"not the name of an image: {text!r}", hint=f"known are {_TRANSPORTS}")
