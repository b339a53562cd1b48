"""A kernel out of a UKI of the image, where nothing else has it: images may drop it from /usr once it is sealed in."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cmp_to_key

from oci2boot.boot.discover import Kernel
from oci2boot.boot.sealed import Uki, find_sealable, newer
from oci2boot.errors import ImageError
from oci2boot.formats import cmdline, pe
from oci2boot.tree.files import Read, show
from oci2boot.tree.model import Directory, File


@dataclass(frozen=True, slots=True)
class Inherited:
    uki: str
    kernel: Kernel
    words: tuple[str, ...]
    """The UKI's own kernel arguments in their order, without the promise."""
    microcode: bytes


def find_inherited(tree: Directory, read: Read, version: str | None) -> Inherited | None:
    """Return what the newest UKI of the image has, or the newest with this kernel; None where the image has none."""
    ukis = [uki for uki in find_sealable(tree, read) if version in (None, uki.kernel_version)]
    return _taken_apart(max(ukis, key=cmp_to_key(newer)), read) if ukis else None


def _taken_apart(uki: Uki, read: Read) -> Inherited:
    data = read(uki.file)
    headers = pe.parse(data)
    if not uki.kernel_version:
        raise ImageError(f"/{show(uki.path)} does not say which kernel is in it, and the image has no other")

    def file(name: bytes) -> File:
        # The first one is the base's, which every profile starts from.
        return File(uki.file.meta, b"".join(pe.contents(data, section) for section in headers.sections_named(name)[:1]))

    initramfs, microcode = file(b".initrd"), file(b".ucode").content
    assert isinstance(microcode, bytes)
    kernel = Kernel(
        version=uki.kernel_version,
        image=file(b".linux"),
        image_path=uki.path,
        initramfs=initramfs if initramfs.size else None,
        initramfs_path=uki.path,
    )
    return Inherited(show(uki.path), kernel, tuple(_own(cmdline.split(uki.cmdlines[0]))), microcode)


def _own(words: Sequence[str]) -> list[str]:
    promises = {str(argument) for argument in cmdline.find_composefs(words)}
    return [word for word in words if word not in promises]
