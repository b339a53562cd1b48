"""The boot files of a converted image, all from the image: the UKI, by ukify or our own builder, and a boot loader."""

import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from oci2boot.boot.budget import Sizes
from oci2boot.boot.discover import console_arguments, find_ukis, read_os_release
from oci2boot.boot.loader import check_sbat, find_loader, loader_conf
from oci2boot.boot.loose import LooseParts
from oci2boot.boot.names import MAX_UKI
from oci2boot.boot.payload import BootPayload, PayloadOptions, PayloadPlan, finish_payload, machine_of, plan_payload
from oci2boot.boot.promise import ComposefsPromise, RootPromise
from oci2boot.boot.type1 import type1_payload
from oci2boot.boot.uki import check_ukify, ukify_argv, wants_ukify
from oci2boot.digest import RootHash
from oci2boot.errors import ImageError, ToolError
from oci2boot.formats import os_release
from oci2boot.formats.cmdline import ComposefsArg
from oci2boot.rootfs.composefs import Rootfs
from oci2boot.store.images import LOOSE, WITHOUT_UKI, Flow, OciRecord
from oci2boot.store.roots import Root
from oci2boot.system.files import read_limited
from oci2boot.system.run import find_program, run
from oci2boot.tree.model import Directory, find
from oci2boot.workflows.keys.signing import sign_files
from oci2boot.workflows.make.canonical import Read
from oci2boot.workflows.make.initramfs import build_dracut
from oci2boot.workflows.progress import Report, Told, Warned
from oci2boot.workflows.requests import BootOptions, SigningOptions, TreeOptions

UKIFY_SECONDS: Final = 300
Kargs = Sequence[ComposefsArg]
"""One argument, or that of the other hash too."""
_CREATED: Final = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d+)?(Z|[+-]\d{2}:\d{2})")


@dataclass(frozen=True, slots=True)
class BootFiles:
    """What an image boots with; nothing where it was converted without."""

    kernel: str | None = None
    cmdline: str | None = None
    esp: Mapping[str, bytes] | None = None
    flow: Flow = "local"
    finished: frozenset[str] = frozenset()
    """Of `esp`, what others signed and is taken byte for byte."""
    sizes: Sizes | None = None
    loose: LooseParts | None = None
    """What boots it in the flows without UKI."""


@dataclass(frozen=True, slots=True)
class Made:
    """A root file system that is in the store, or will be with `listed`, and what boots it."""

    root: Root
    listed: Rootfs
    """The composefs image that lists its files."""
    tree: Directory
    """What the image lists."""
    rules: TreeOptions
    """What the digest was computed by."""
    files: BootFiles


def local_files(
    tree: Directory,
    architecture: str,
    version: str,
    promise: RootPromise,
    options: BootOptions,
    read: Read,
    report: Report,
) -> BootFiles:
    """Build the UKI; `tree` is the merged one, its /boot not yet emptied."""
    payload = build_payload(tree, architecture, version, promise, options, read, report)
    if ukis := [path.decode(errors="replace") for path in find_ukis(tree)]:
        report(Warned(f"the image brings a UKI of its own, which is not used: {', '.join(ukis)}"))
    return BootFiles(payload.kernel_version, payload.cmdline, {payload.uki_path: payload.uki}, sizes=payload.sizes)


def type1_files(
    tree: Directory,
    architecture: str,
    version: str,
    kargs: Kargs,
    options: BootOptions,
    read: Read,
    report: Report,
) -> BootFiles:
    """Take the kernel and its initramfs as files, and write the menu entry that boots them."""
    flow = options.flow
    assert flow in WITHOUT_UKI
    if options.loader in ("direct", "shim"):
        raise ImageError(f"--loader {options.loader} starts UKIs, --flow {flow} makes none")
    promise = replace(promise_of(kargs, options), in_initramfs=True, by_label=flow != "type1")
    made = with_dracut(payload_options(architecture, version, options), tree, promise, options, read, report)
    payload = type1_payload(tree, read, promise, made, efi=flow == "type1")
    for note in payload.notes:
        report(Warned(note))
    sizes = payload.parts.sizes
    report(Told(f"kernel {payload.kernel_version}; {sizes}"))
    return BootFiles(
        kernel=payload.kernel_version,
        cmdline=payload.cmdline,
        esp=payload.files,
        flow=flow,
        finished=frozenset(payload.files),
        sizes=sizes,
        loose=payload.parts,
    )


def with_loader(
    files: BootFiles, tree: Directory, architecture: str, options: BootOptions, read: Read, report: Report
) -> BootFiles:
    """Add the boot loader that the image brings, and put the UKI and its addons where it looks for them."""
    if files.esp is None:
        return files
    if options.loader == "direct" and options.secure_boot_enroll:
        raise ImageError("with --loader direct there is no systemd-boot that could enrol keys")
    configuration = loader_conf(options.timeout, options.secure_boot_enroll)
    name = "none" if files.flow in LOOSE else options.loader
    loader = find_loader(tree, read, architecture, name, configuration, shipped=files.flow == "sealed")
    if options.loader == "shim":
        check_sbat(files.esp)
    for note in loader.notes:
        report(Warned(note))
    return replace(
        files,
        esp={**{loader.place(path): data for path, data in files.esp.items()}, **loader.programs},
        finished=frozenset(map(loader.place, files.finished)),
    )


def signed_files(
    files: BootFiles, signing: SigningOptions | None, report: Report, root_hash: RootHash | None = None
) -> BootFiles:
    """Sign the boot loader and what was built here; where others are asked to, `root_hash` with them."""
    if signing is None or files.esp is None:
        return files
    ours = {path: data for path, data in files.esp.items() if path not in files.finished}
    return replace(files, esp={**files.esp, **sign_files(ours, signing, report, root_hash)})


def build_payload(
    tree: Directory,
    architecture: str,
    version: str,
    promise: RootPromise,
    options: BootOptions,
    read: Read,
    report: Report,
) -> BootPayload:
    """Build a UKI of the image's kernel, initramfs and stub, by ukify or our own builder."""
    made = with_dracut(payload_options(architecture, version, options), tree, promise, options, read, report)
    plan = plan_payload(tree, read, promise, made)
    payload = finish_payload(plan, _run_ukify(plan, options.ukify, report))
    for note in payload.notes:
        report(Warned(note))
    report(Told(_summary(payload)))
    return payload


def promise_of(kargs: Kargs, options: BootOptions) -> ComposefsPromise:
    first, *also = kargs
    return ComposefsPromise(first, also=tuple(also), read=options.read)


def payload_options(architecture: str, version: str, options: BootOptions) -> PayloadOptions:
    if options.debug_shell and options.signing:
        raise ImageError(
            "--debug-shell gives whoever makes the boot fail a root shell: that is not signed",
            hint="leave out --debug-shell, or the key",
        )
    console = console_arguments(options.console, machine_of(architecture)) if options.console else []
    return PayloadOptions(
        architecture=architecture,
        version=version,
        kernel_version=options.kernel,
        arguments=(*options.kargs, *console),
        size_limit=options.size_limit,
        initrd=options.initrd,
        initrd_tools=options.initrd_tools,
        devicetree=options.devicetree,
        debug_shell=options.debug_shell,
    )


def with_dracut(
    made: PayloadOptions,
    tree: Directory,
    promise: RootPromise,
    options: BootOptions,
    read: Read,
    report: Report,
) -> PayloadOptions:
    """Have the image's dracut make the initramfs, where that is asked for."""
    if options.initrd != "dracut":
        return made
    initramfs = build_dracut(tree, read, options.kernel, made.version, options.dracut, report, verity=promise.dm_verity)
    return replace(made, initramfs=initramfs)


def _summary(payload: BootPayload) -> str:
    return f"kernel {payload.kernel_version}, glue of {payload.glue}; {payload.sizes}"


def _run_ukify(plan: PayloadPlan, wanted: str, report: Report) -> bytes | None:
    """Return the UKI that ukify builds; None where our own builder is to do it, whose bytes are the same everywhere."""
    if wanted == "builtin" or (wanted == "auto" and not wants_ukify(plan.stub)):
        return None
    ukify = find_program(wanted if wanted != "auto" else "ukify") or find_program("/usr/lib/systemd/ukify")
    if ukify is None:
        if wanted == "auto":
            return None
        raise ToolError(f"there is no ukify at {wanted}", hint="--ukify builtin needs none")
    try:
        check_ukify(run([ukify, "--version"], timeout=UKIFY_SECONDS).decode(errors="replace").strip(), plan.stub)
    except ToolError as error:
        if wanted == "auto":
            report(Told(f"{error.message}: the UKI is built without it"))
            return None
        raise
    parts = plan.parts
    with tempfile.TemporaryDirectory(prefix="oci2boot-") as folder:

        def put(name: str, data: bytes) -> Path:
            path = Path(folder, name)
            path.write_bytes(data)
            return path

        output = Path(folder, "uki.efi")
        argv = ukify_argv(
            ukify,
            put("stub", plan.stub),
            put("linux", parts.kernel),
            [put(f"initrd{number}", data) for number, data in enumerate(parts.initrds)],
            put("cmdline", parts.cmdline.encode()),
            put("os-release", parts.os_release),
            parts.uname,
            output,
            put("microcode", parts.microcode) if parts.microcode else None,
        )
        run(argv, timeout=UKIFY_SECONDS)
        return read_limited(output, MAX_UKI, ToolError)


def version_of(tree: Directory, oci: OciRecord | None) -> str:
    """Return what orders this image's UKI among its like: when the image was made, else the time of its /usr.

    From the image alone, so that converting it again gives the same UKI.
    """
    created = json.loads(oci.config).get("created") if oci else None
    moment = _moment(created) if isinstance(created, str) else None
    if moment is None:
        usr = find(tree, b"/usr")
        seconds = min(max(usr.meta.mtime if usr else 0, 0), 0xFFFF_FFFF)
        moment = datetime.fromtimestamp(seconds, UTC)
    return f"{moment:%Y%m%d%H%M%S}"


def _moment(text: str) -> datetime | None:
    """Return a time of RFC 3339; its fraction does not count."""
    if not _CREATED.fullmatch(text):
        return None
    try:
        return datetime.fromisoformat(re.sub(r"\.\d+", "", text)).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def os_release_of(tree: Directory, read: Read) -> Mapping[str, str]:
    """Return the image's os-release; empty where it has none."""
    return os_release.parse(read_os_release(tree, read) or b"")
