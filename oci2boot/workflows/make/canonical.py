"""From merged layers to the tree that a digest covers: canonical rules, then labels. Shared by all that compute one."""

from collections.abc import Callable, Iterable
from typing import Final

import zstandard

from oci2boot.digest import External
from oci2boot.errors import FormatError
from oci2boot.formats.cmdline import ComposefsArg
from oci2boot.rootfs.composefs import Rootfs
from oci2boot.tree.model import Directory, File
from oci2boot.tree.prepare import prepare, prepare_for_boot, with_mount_points
from oci2boot.tree.selinux import label, load_policy
from oci2boot.workflows.lint.labels import rule_notes
from oci2boot.workflows.requests import KargStyle, TreeOptions

RULES: Final = "canonical-1"
"""The id of the rules that decide a digest: they never change under it."""

Warn = Callable[[str], None]
Read = Callable[[File], bytes]


def canonical_tree(
    merged: Directory, options: TreeOptions, read: Read, warn: Warn, places: Iterable[bytes] | None = None
) -> Directory:
    """Return the tree in the form that is asked for: bootable and labelled, or plain.

    With `places`, these and what else is mounted over a root file system that cannot be written are there too.
    """
    if not options.bootable:
        return prepare(merged, options.xattrs)
    tree = prepare_for_boot(merged, warn, options.xattrs)
    if places is not None:
        tree = with_mount_points(tree, places, warn)
    policy = load_policy(merged, read, options.selinux_rules, warn)
    if options.selinux_rules == "libselinux":
        for note in rule_notes(merged, tree, policy, read):
            warn(note)
    return label(tree, policy, warn)


def reader(read_object: Callable[[External], bytes]) -> Read:
    """Return a function that reads a regular file of a tree."""

    def read(file: File) -> bytes:
        match file.content:
            case bytes():
                return file.content
            case External():
                return read_object(file.content)
        return bytes(file.size)

    return read


def tell_size(rootfs: Rootfs) -> str:
    """Say what the metadata of a root file system takes: in the store, and where it is sent compressed."""
    return f"digest {rootfs.digest}: metadata {len(rootfs.image)} bytes, {compressed_size(rootfs.image)} compressed"


def compressed_size(image: bytes) -> int:
    """Return the bytes of a rootfs image as zstd packs it by default."""
    return len(zstandard.compress(image))


def karg_of(rootfs: Rootfs, style: KargStyle) -> ComposefsArg:
    """Return the kernel argument that boots this rootfs image."""
    if style == "composefs":
        return ComposefsArg(rootfs.digest)
    if rootfs.version == 0:
        raise FormatError(
            "composefs.digest= has no name for EROFS format 0", hint="use composefs=, or --erofs-version 1"
        )
    return ComposefsArg(rootfs.digest, rootfs.version)
