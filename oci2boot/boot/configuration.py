"""How the initramfs mounts root, /etc and /var: the configuration files that setup-root reads, by the same rules.

The TOML of composefs-setup-root 0.9, and of ostree-prepare-root(1)'s prepare-root.conf what means something here. Read
when an image is converted, so that a setting which stops the boot is one error instead of a machine that does not boot.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final, Self

from oci2boot.errors import ImageError
from oci2boot.formats.cmdline import ComposefsArg
from oci2boot.tree.files import Read, read_file, show
from oci2boot.tree.model import Directory

MAX_SIZE: Final = 64 << 10

_FILES: Final = (b"ostree/prepare-root.conf", b"composefs/setup-root-conf.toml")
PATHS: Final = tuple(directory + name for name in _FILES for directory in (b"etc/", b"usr/lib/"))
_TABLES: Final = frozenset({b"[etc]", b"[var]", b"[root]", b"[sysroot]", b"[composefs]"})
_BOOLEAN: Final = {b"true": True, b"false": False}
_MOUNT: Final = {b'"none"': "none", b'"bind"': "bind", b'"overlay"': "overlay", b'"transient"': "transient"}
_COMPOSEFS: Final = {b"verity": "verity", b"yes": "yes", b"true": "yes", b"1": "yes", b"maybe": "maybe"}
_DEFAULT: Final = {"etc": "overlay", "var": "bind"}


@dataclass(frozen=True, slots=True)
class RootConfiguration:
    etc: str = "overlay"
    """none, bind, overlay or transient."""
    var: str = "bind"
    root_transient: bool = False
    sysroot_readonly: bool = True
    composefs: str = "maybe"
    """yes, maybe or verity. All of them demand the image that the command line names; `verity` refuses a `?` there."""

    def with_file(self, path: bytes, content: bytes) -> Self:
        """Read one more file, whose settings count; `ImageError` names what setup-root would not boot with."""
        table = b""
        settings: dict[tuple[bytes, bytes], bytes] = {}
        for line in content.split(b"\n"):
            words = _words(line)
            if len(words) == 1 and words[0] in _TABLES:
                table = words[0][1:-1]
            elif words:
                self._check(path, line, table, words)
                settings[table, words[0]] = words[1]

        def mode(name: str, before: str) -> str:
            transient, mount = settings.get((name.encode(), b"transient")), settings.get((name.encode(), b"mount"))
            if mount is not None:
                return _MOUNT[mount]
            if transient is not None:
                return "transient" if _BOOLEAN[transient] else _DEFAULT[name]
            return before

        return replace(
            self,
            etc=mode("etc", self.etc),
            var=mode("var", self.var),
            root_transient=_BOOLEAN.get(settings.get((b"root", b"transient"), b""), self.root_transient),
            sysroot_readonly=_BOOLEAN.get(settings.get((b"sysroot", b"readonly"), b""), self.sysroot_readonly),
            composefs=_COMPOSEFS.get(_unquoted(settings.get((b"composefs", b"enabled"), b"")), self.composefs),
        )

    def check(self, promise: ComposefsArg) -> None:
        """Raise `ImageError` where the kernel argument makes optional what is demanded, or nothing would be in /etc."""
        if self.etc == "bind":
            raise ImageError(
                "the image's configuration binds /etc to a directory of the disk, which would be empty",
                hint="[etc] mount is overlay, transient or none, in setup-root-conf.toml of the image",
            )
        if promise.insecure and self.composefs == "verity":
            raise ImageError(
                f"the image's configuration demands fs-verity, which {promise} makes optional",
                hint="[composefs] enabled = verity stands in prepare-root.conf or setup-root-conf.toml of the image",
            )

    @staticmethod
    def _check(path: bytes, line: bytes, table: bytes, words: list[bytes]) -> None:
        match table, words:
            case (b"root", [b"transient", value]) | (b"etc" | b"var", [b"transient", value]) if value in _BOOLEAN:
                return
            case (b"sysroot", [b"readonly", value]) if value in _BOOLEAN:
                return
            case (b"etc" | b"var", [b"mount", value]) if value in _MOUNT:
                return
            case (b"composefs", [b"keypath", _, *_]):
                return
            case (b"composefs", [b"enabled", value]) if _unquoted(value) in _COMPOSEFS:
                return
            case (b"composefs", [b"enabled", value]) if _unquoted(value) in (b"no", b"false", b"0"):
                why, hint = "turns composefs off, and there is nothing else to boot", "set enabled = verity"
            case (b"composefs", [b"enabled", value]) if _unquoted(value) == b"signed":
                why = "demands a digest signed by a key of the initramfs, which this version cannot check"
                hint = "set enabled = verity, and have the digest signed in a UKI: by `oci2boot seal` or `convert`"
            case _:
                why, hint = f"has a setting that this version does not know: {show(line)[:200]}", "see README.md"
        raise ImageError(f"/{show(path)} {why}", hint=hint)


def configuration_files(tree: Directory, read: Read) -> Iterator[tuple[bytes, bytes]]:
    """Yield (path, content) of the files that count, the last one most: of each, /etc hides /usr/lib."""
    for name in _FILES:
        for path in (b"etc/" + name, b"usr/lib/" + name):
            content = read_file(tree, read, path, MAX_SIZE)
            if content is not None:
                if b"\0" in content:
                    raise ImageError(f"/{show(path)} holds a NUL")
                yield path, content
                break


def _words(line: bytes) -> list[bytes]:
    return re.findall(rb"[^ \t]+", b" ".join(line.partition(b"#")[0].split(b"=", 1)))


def _unquoted(value: bytes) -> bytes:
    return value.removeprefix(b'"').removesuffix(b'"')
