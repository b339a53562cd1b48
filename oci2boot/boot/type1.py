"""The type1 flow: a kernel and its initramfs as files, for an image without systemd-stub, or a GRUB that reads BLS.

The composefs argument stands in a text file beside them, and the digest in the initramfs too, so that an entry with
another one does not boot. Nothing signs either: it is a boot menu, and no chain of trust. An entry that the image has
for its kernel (/boot/loader/entries) is taken over, with the paths changed and the argument added. Paths are relative
to the partition that holds the entry, for every boot loader. UAPI.1.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

from oci2boot.boot import discover
from oci2boot.boot.budget import check_budget
from oci2boot.boot.devicetree import read_devicetree
from oci2boot.boot.loose import LooseParts
from oci2boot.boot.payload import (
    EFI_NAMES,
    MAX_INITRAMFS,
    MAX_KERNEL,
    PayloadOptions,
    PayloadPlan,
    machine_of,
    plan_payload,
)
from oci2boot.boot.promise import ComposefsPromise
from oci2boot.errors import Error, FormatError, ImageError, LimitError
from oci2boot.formats import bls, cmdline, os_release, pe
from oci2boot.formats.bls import EntryName, MenuItem, Type1
from oci2boot.formats.cmdline import COMMAND_LINE_SIZE, ComposefsArg
from oci2boot.tree.files import Read, find_file, list_directory, read_content, read_file, show
from oci2boot.tree.model import Directory

FILES: Final = "EFI/oci2boot"
"""Each directory beneath has the files of entries, and is named by their content: equal ones are there once."""
ENTRIES: Final = "loader/entries"
MAX_ENTRIES: Final = 256

_UNSEALED: Final = (
    "nothing signs the kernel's command line and its initramfs: anyone who can write to the boot partition can boot "
    "anything"
)


@dataclass(frozen=True, slots=True)
class Type1Payload:
    files: Mapping[str, bytes]
    """By path on the boot partition, the entry last."""
    entry: str
    kernel_version: str
    notes: tuple[str, ...]
    parts: LooseParts
    """The same without the entry."""

    @property
    def cmdline(self) -> str:
        return self.parts.cmdline


def type1_payload(
    tree: Directory, read: Read, promise: ComposefsPromise, options: PayloadOptions, *, efi: bool = True
) -> Type1Payload:
    """Return what boots the image, which has a kernel; `tree` is the merged one, its /boot not yet emptied.

    Without `efi` another boot loader starts the kernel, which need not be a program of the firmware's.
    """
    plan = plan_payload(tree, read, promise, replace(options, stub=False))
    machine = machine_of(options.architecture)
    _check_kernel(plan.parts.kernel, machine, efi=efi)
    entries = list(_entries_of(tree, read, plan.parts.kernel))
    theirs = entries[0] if entries else None
    files = _files(tree, read, plan, theirs)
    if options.devicetree:
        files["devicetree"] = read_devicetree(tree, read, options.devicetree, plan.parts.uname)
    parts = LooseParts(
        kernel=files["linux"],
        initrds=tuple(data for name, data in files.items() if name.startswith("initrd")),
        cmdline=_cmdline(plan, theirs, promise.arguments),
        devicetree=files.get("devicetree", b""),
    )
    budget = check_budget(parts.sizes, options.size_limit)
    paths = _placed(files, told=plan.told)
    initrds = [path for name, path in paths.items() if name.startswith("initrd")]
    _check_length(parts.cmdline, initrds)
    release = os_release.parse(plan.parts.os_release)
    title = release.get("PRETTY_NAME") or release["IMAGE_ID"]
    entry = (theirs or Type1((("title", title),))).replaced(
        [
            # The machine's id is not known yet, and that of the machine that built the image means nothing.
            ("machine-id", ()),
            ("version", (release["IMAGE_VERSION"],)),
            ("sort-key", (release["IMAGE_ID"],)),
            ("architecture", (EFI_NAMES[machine],)),
            ("options", (parts.cmdline,)),
            ("linux", (f"/{paths['linux']}",)),
            ("initrd", tuple(f"/{path}" for path in initrds)),
            *([("devicetree", (f"/{paths['devicetree']}",))] if "devicetree" in files else []),
        ]
    )
    path = f"{ENTRIES}/{plan.name}.conf"
    notes = (*plan.notes, *budget, *([_UNSEALED] if efi else []))
    if len(entries) > 1:
        notes += (f"of {len(entries)} entries that the image has for its kernel, the first in the menu is taken",)
    return Type1Payload(
        files=MappingProxyType({**{paths[name]: data for name, data in files.items()}, path: str(entry).encode()}),
        entry=path,
        kernel_version=plan.parts.uname,
        notes=notes,
        parts=parts,
    )


def _placed(files: Mapping[str, bytes], *, told: bool) -> dict[str, str]:
    """Return where each file lies: what says the promise, the last of the initramfs, apart from what many have."""
    last = [name for name in files if name.startswith("initrd")][-1]
    apart = {last: files[last]} if told else {}
    shared = {name: data for name, data in files.items() if name not in apart}
    found = {name: f"{FILES}/{_content_name(group)}/{name}" for group in (shared, apart) for name in group}
    return {name: found[name] for name in files}


def _check_kernel(kernel: bytes, machine: str, *, efi: bool) -> None:
    try:
        found = pe.parse(kernel).machine
    except FormatError as error:
        if not efi:
            return
        raise ImageError(f"the image's kernel cannot be started by firmware: it is {error.message}") from error
    if found != machine:
        raise ImageError(f"the image is for {machine}, its kernel for {found}")


def _entries_of(tree: Directory, read: Read, kernel: bytes) -> Iterator[Type1]:
    """Yield the image's own entries for this kernel, as they would stand in the menu."""
    entries = []
    for count, (name, _) in enumerate(list_directory(tree, b"boot/loader/entries")):
        if count >= MAX_ENTRIES:
            raise LimitError(f"the image has more than {MAX_ENTRIES} boot menu entries")
        path = b"boot/loader/entries/" + name
        content = read_file(tree, read, path, bls.MAX_SIZE) if name.lower().endswith(b".conf") else None
        if content is None:
            continue
        try:
            entry, entry_name = Type1.parse(content), EntryName.parse(name.decode())
            linux = entry.last("linux")
            if linux is not None and _boot_file(tree, read, linux, MAX_KERNEL) == kernel:
                item = MenuItem(entry_name, entry.last("sort-key"), entry.last("machine-id"), entry.last("version"))
                entries.append((item, entry))
        except UnicodeDecodeError as error:
            raise FormatError(f"/{show(path)}: a name that is not UTF-8") from error
        except Error as error:
            raise type(error)(f"/{show(path)}: {error.message}", hint=error.hint) from error
    yield from (entry for _, entry in sorted(entries, key=lambda pair: bls.menu_key(pair[0])))


def _boot_file(tree: Directory, read: Read, path: str, limit: int) -> bytes | None:
    """Return a file that an entry names, be /boot a partition of its own or not."""
    relative = bls.check_path(path).encode()
    for place in (b"boot/" + relative, relative):
        file = find_file(tree, place)
        if file:
            return read_content(file, read, place, limit)
    return None


def _files(tree: Directory, read: Read, plan: PayloadPlan, theirs: Type1 | None) -> dict[str, bytes]:
    """Return the files by the names that they get; every initramfs in the order in which it is unpacked."""
    parts = plan.parts
    initramfs, *glue = parts.initrds
    initrds = [*([parts.microcode] if parts.microcode else []), initramfs]
    if theirs and theirs.every("initrd"):
        named = [_needed(tree, read, path, MAX_INITRAMFS) for path in theirs.every("initrd")]
        # Ours was planned for the initramfs that lies beside the kernel.
        if initramfs not in named:
            raise ImageError("the image's boot menu entry names an initramfs other than the one beside its kernel")
        initrds = named
    files = {"linux": parts.kernel}
    files |= {f"initrd{number or ''}": data for number, data in enumerate([*initrds, *glue])}
    if theirs and theirs.every("devicetree-overlay"):
        raise ImageError("the image's boot menu entry names device tree overlays, which cannot be used here")
    if theirs and (tree_path := theirs.last("devicetree")):
        files["devicetree"] = _needed(tree, read, tree_path, MAX_INITRAMFS)
    return files


def _needed(tree: Directory, read: Read, path: str, limit: int) -> bytes:
    data = _boot_file(tree, read, path, limit)
    if data is None:
        raise ImageError(f"the image's boot menu entry names {path}, which is not in the image")
    return data


def _content_name(files: Mapping[str, bytes]) -> str:
    every = "".join(f"{hashlib.sha256(data).hexdigest()} {name}\n" for name, data in sorted(files.items()))
    return hashlib.sha256(every.encode()).hexdigest()[:32]


def _cmdline(plan: PayloadPlan, theirs: Type1 | None, promise: Sequence[ComposefsArg]) -> str:
    """Return the entry's words in their order, then the other words for the kernel, the promise last."""
    words = cmdline.split(plan.parts.cmdline)
    if theirs is None:
        return plan.parts.cmdline
    # What GRUB would put in for a variable is on no command line of another boot loader.
    own = [word for word in cmdline.split(theirs.options) if not word.startswith("$")]
    return discover.build_cmdline(own, [word for word in words[: -len(promise)] if word not in own], promise)


def _check_length(line: str, initrds: Sequence[str]) -> None:
    # systemd-boot puts them before the command line, for kernels that look there.
    size = len(line) + sum(len(f"initrd=\\{path} ") for path in initrds)
    if size >= COMMAND_LINE_SIZE:
        raise LimitError(
            f"the kernel command line has {size} bytes with what systemd-boot adds, the kernel takes "
            f"{COMMAND_LINE_SIZE - 1}"
        )
