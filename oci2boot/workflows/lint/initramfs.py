"""The initramfs of an image: can it be taken, does it stop where it cannot verify, and is there room for it."""

from collections.abc import Iterator, Mapping
from typing import Final

from oci2boot.boot import closing, glue
from oci2boot.boot.budget import BUDGETS
from oci2boot.boot.discover import choose_kernel
from oci2boot.boot.payload import MICROCODE
from oci2boot.boot.sealed import Uki
from oci2boot.errors import Error
from oci2boot.formats import cpio, pe
from oci2boot.tree.files import find_file
from oci2boot.workflows.lint.kernels import support_of
from oci2boot.workflows.lint.model import Found, Lint, Subject


def _initramfs(subject: Subject) -> Iterator[Found]:
    """What a conversion would make of the initramfs: is it known, and is all there that is added to it?"""
    kernel = subject.kernel_if_known
    if kernel is None or subject.boot.initrd != "image":
        return
    if kernel.initramfs is None:
        choose_kernel([kernel], initramfs=True)
        return
    members = subject.initramfs
    if subject.verity:
        return
    try:
        support = support_of(subject, kernel.version)
    except Error:  # the check of the kernel's configuration says so
        return
    said = glue.check_growth(subject.tree)
    notes = glue.plan_glue(subject.tree, subject.read, members, support).notes
    yield from (Found(note, severity="warning") for note in notes if note not in said)


def _glue(subject: Subject) -> Iterator[Found]:
    """Another's glue that is passed over, or that ends in a shell: what then boots is verified by nobody."""
    if subject.verity:
        return
    kernel = subject.kernel_if_known
    if kernel and (members := subject.initramfs):
        yield from _open(members, kernel.initramfs_path, later=True)
    for uki in subject.sealed:
        if members := _members_of(uki, subject):
            if glue.brought_by(members) is None:
                yield Found("the initramfs of a UKI that promises an image knows nothing of composefs", [uki.path])
            yield from _open(members, uki.path, later=False)


def _members_of(uki: Uki, subject: Subject) -> Mapping[bytes, cpio.Found]:
    data = subject.read(uki.file)
    sections = pe.parse(data).sections_named(b".initrd")
    return cpio.read(pe.contents(data, sections[0]), glue.keep) if sections else {}


def _open(members: Mapping[bytes, cpio.Found], path: bytes, *, later: bool) -> Iterator[Found]:
    yield from (Found(way, [path], later=later) for way in glue.ways_around(members))
    if not later:  # a conversion closes the others
        yield from (Found(way, [path]) for way in closing.ways_around(members))


def _size(subject: Subject) -> Iterator[Found]:
    """An estimate; a conversion counts the glue and the stub, too."""
    kernel = subject.kernel_if_known
    if kernel is None:
        return
    parts = {"kernel": kernel.image.size}
    if kernel.initramfs and subject.boot.initrd == "image":
        parts["initramfs"] = kernel.initramfs.size
    if microcode := sum(file.size for path in MICROCODE if (file := find_file(subject.tree, path))):
        parts["microcode"] = microcode
    total = sum(parts.values())
    shown = ", ".join(f"{name} {size / 2**20:.1f}" for name, size in parts.items())
    if subject.boot.size_limit is not None and total > subject.boot.size_limit:
        yield Found(
            f"what the firmware loads has {total} bytes, {subject.boot.size_limit} are allowed (MiB: {shown})",
            later=True,
        )
    elif budget := next((limit for limit in BUDGETS if total > limit), None):
        yield Found(
            f"what the firmware loads is more than the {budget >> 20} MiB that some takes (MiB: {shown})", later=True
        )


LINTS: Final = (
    Lint(
        name="initramfs",
        severity="error",
        what="The kernel has an initramfs that can be read, and all is there that is added to it.",
        hint="have it built in the image, by dracut, initramfs-tools or mkinitcpio",
        check=_initramfs,
        repeated=True,
    ),
    Lint(
        name="glue",
        severity="warning",
        what="The code in the initramfs that sets up the root fails closed.",
        hint="leave that glue out of the initramfs: ours is added, and reboots where it fails",
        check=_glue,
    ),
    Lint(
        name="size-budget",
        severity="warning",
        what="What the firmware loads is within the budgets of small devices, and within --uki-limit.",
        hint="build a smaller initramfs in the image, for this kind of machine only",
        check=_size,
    ),
)
