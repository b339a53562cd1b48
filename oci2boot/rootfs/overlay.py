"""What overlayfs reads in a composefs image's xattrs: where content is, and how names and whiteouts are escaped.

Linux, Documentation/filesystems/overlayfs.rst: "Metadata only copy up", "Data-only lower layers" and "Nesting
overlayfs mounts".
"""

from typing import Final

from oci2boot.digest import Hash, VerityDigest
from oci2boot.errors import FormatError

PREFIX: Final = b"trusted.overlay."
ESCAPED: Final = b"trusted.overlay.overlay."
METACOPY: Final = b"trusted.overlay.metacopy"
REDIRECT: Final = b"trusted.overlay.redirect"
OPAQUE: Final = b"trusted.overlay.opaque"

WHITEOUT_MARKS: Final = {ESCAPED + b"whiteout": b"", b"user.overlay.whiteout": b""}
"""On an empty regular file: it is shown as a whiteout by the overlay on top."""
WHITEOUTS_MARKS: Final = {ESCAPED + b"whiteouts": b"", b"user.overlay.whiteouts": b""}
"""On a directory that holds such files."""
OPAQUE_MARKS: Final = {ESCAPED + b"opaque": b"x", b"user.overlay.opaque": b"x"}
"""On such a directory from composefs_version 1 on."""

STUB_NAMES: Final = tuple(b"%02x" % number for number in range(256))
"""Whiteouts in the root that hide the object directories, should the data layer be mounted as an ordinary one."""

METACOPY_HEAD: Final = 4
_METACOPY_HEADS: Final[dict[bytes, Hash]] = {bytes((0, 36, 0, 1)): "sha256", bytes((0, 68, 0, 2)): "sha512"}
"""Version 0, length with this head, no flags, hash function as in fs-verity."""
_HEAD_OF: Final = {algorithm: head for head, algorithm in _METACOPY_HEADS.items()}


def escape(name: bytes) -> bytes:
    return ESCAPED + name[len(PREFIX) :] if name.startswith(PREFIX) else name


def unescape(name: bytes) -> bytes:
    return PREFIX + name[len(ESCAPED) :] if name.startswith(ESCAPED) else name


def metacopy(digest: VerityDigest) -> bytes:
    """Return `struct ovl_metacopy`, which makes overlayfs demand this fs-verity digest of the file's content."""
    return _HEAD_OF[digest.algorithm] + digest.raw


def redirect(digest: VerityDigest) -> bytes:
    digits = digest.raw.hex()
    return f"/{digits[:2]}/{digits[2:]}".encode()


def parse_metacopy(value: bytes) -> VerityDigest:
    algorithm = _METACOPY_HEADS.get(value[:METACOPY_HEAD])
    if algorithm is None or len(value) != value[1]:
        raise FormatError(f"not an overlayfs metacopy xattr: {value[:80].hex()!r}")
    return VerityDigest(algorithm, value[METACOPY_HEAD:])
