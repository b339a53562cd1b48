"""The scripts of `oci2boot/initramfs`, and the shells that an initramfs may have."""

import re
from collections.abc import Iterator

from oci2boot.digest import External, Hash, VerityDigest
from oci2boot.rootfs.composefs import build_rootfs
from oci2boot.rootfs.overlay import redirect
from oci2boot.tree.model import Directory, File, Metadata
from tests.boot.debian import PROJECT, package
from tests.witness import program

SCRIPTS = PROJECT / "oci2boot/initramfs"
SETUP_ROOT = SCRIPTS / "setup-root"
SHELLS = ("dash", "bash", "busybox")
BESIDE = re.compile(r'"(?:\$here|\$\{0%/\*\})/([a-z0-9$-]+)')
"""How a script names what lies beside it."""
WRITTEN = {"mode", "overlays", "read", "root-hash", "verity-debug", "verity-signature-required"}
"""What a build writes there for one image."""


def shell(name: str) -> list[str]:
    if name == "busybox":
        return [str(package("busybox-static") / "usr/bin/busybox"), "ash"]
    return [program(name), *(["--posix"] if name == "bash" else [])]


def needed_by(name: str) -> set[str]:
    """Return a script's name, and those of all that it and they need beside them."""
    found: set[str] = set()
    wanted = {name}
    while wanted:
        one = wanted.pop()
        found.add(one)
        text = (SCRIPTS / one).read_text()
        named = BESIDE.findall(text) if text.startswith("#!") else []
        wanted |= (
            {name.replace("$1", algorithm) for name in named for algorithm in ("sha256", "sha512")} - found - WRITTEN
        )
    return found


def witness_template(algorithm: Hash) -> str:
    """Return the writer's image of one file as words for printf, with `digest` and `path` for those of its object."""
    digest = VerityDigest(algorithm, b"Z" * (32 if algorithm == "sha256" else 64))
    tree = Directory(Metadata(mode=0o755), {b"image": File(Metadata(mode=0o444), External(digest, 1))})
    image = build_rootfs(tree, 2, algorithm).image
    before, after = image.split(digest.raw)
    middle, end = after.split(redirect(digest))
    words = [*_escaped(before), "digest", *_escaped(middle), "path", *_escaped(end)]
    return "".join(f"{word}\n" for word in words)


def _escaped(data: bytes) -> Iterator[str]:
    for at in range(0, len(data), 32):
        yield "".join(f"\\{byte:o}" for byte in data[at : at + 32])
