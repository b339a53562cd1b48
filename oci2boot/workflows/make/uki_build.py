"""UKIs and addons built from files that lie about: the step of a Containerfile that seals the image it is in."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Final

from oci2boot.boot.names import ADDON, LINUX
from oci2boot.boot.payload import MAX_EFI_PROGRAM
from oci2boot.boot.uki import build_addon
from oci2boot.boot.uki_layer import kernel_files, without_kernel
from oci2boot.digest import OTHER_HASH, Hash
from oci2boot.errors import FormatError, ImageError, LimitError, TargetError
from oci2boot.formats import cmdline as kernel_cmdline
from oci2boot.formats.cmdline import ComposefsArg
from oci2boot.oci.image import host_platform
from oci2boot.oci.reference import DirectoryReference
from oci2boot.oci.source import SourceOptions
from oci2boot.rootfs.composefs import Rootfs, build_rootfs
from oci2boot.system.files import plain_errors, write_atomically
from oci2boot.tree.model import Directory
from oci2boot.workflows.keys.executables import read_executable
from oci2boot.workflows.keys.signing import sign_files
from oci2boot.workflows.lint.model import Subject
from oci2boot.workflows.lint.run import check, lints_of
from oci2boot.workflows.make.canonical import canonical_tree, karg_of
from oci2boot.workflows.make.digest import Gathered, gather
from oci2boot.workflows.make.directory import AskedTimes
from oci2boot.workflows.make.kernel_from import BootRoot, KernelFrom, boot_root
from oci2boot.workflows.make.payload import build_payload, promise_of, version_of
from oci2boot.workflows.make.started import loader_to_sign
from oci2boot.workflows.options import Option
from oci2boot.workflows.progress import Report, Told, Warned, silent
from oci2boot.workflows.requests import BootOptions, HashName, Linting, PlatformName, SigningOptions, TreeOptions

UKI_DIRECTORY: Final = f"boot/{LINUX}"
"""Within a root file system."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildRequest:
    rootfs: Annotated[
        Path,
        Option(
            "--rootfs", "directory of the root file system, with kernel and initramfs unless --kernel-root has them"
        ),
    ]
    output: Annotated[
        Path | None, Option("--output", "file or directory to write; by default boot/EFI/Linux of the root", short="-o")
    ] = None
    """A directory has to be there; `UKI_DIRECTORY` is made."""
    hash: HashName = "sha256"
    platform: PlatformName = None
    """By default this machine's."""
    kernel_from: KernelFrom = field(default_factory=KernelFrom)
    tree: TreeOptions = field(default_factory=TreeOptions)
    boot: BootOptions = field(default_factory=BootOptions)
    linting: Linting = field(default_factory=Linting)


@dataclass(frozen=True, slots=True)
class BuiltUki:
    path: Path
    digest: str
    cmdline: str
    kernel: str
    loader: tuple[Path, ...] = ()
    """What was signed with it to start it."""

    def to_json(self) -> dict[str, Any]:
        return {
            "path": str(self.path),
            "digest": self.digest,
            "cmdline": self.cmdline,
            "kernel": self.kernel,
            "loader": [str(path) for path in self.loader],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredRoot:
    """A root file system, and what goes into its UKI besides its files."""

    parts: BootRoot
    """Where the UKI's parts are from."""
    rootfs: Rootfs
    kargs: Sequence[ComposefsArg]
    architecture: str
    version: str
    removed: Sequence[bytes]
    """Paths that the promise leaves out."""


def measure_root(request: BuildRequest, report: Report) -> MeasuredRoot:
    source, tree, rootfs = _measure(request, request.hash, report)
    removed = kernel_files(source.tree) if request.boot.strip_kernel else []
    _check_removable(request.rootfs, removed)
    kargs = [karg_of(rootfs, request.boot.karg_style)]
    if request.boot.both_hashes:
        other = _measure(request, OTHER_HASH[request.hash], silent)[2].digest
        kargs.append(ComposefsArg(other, kargs[0].version))
    architecture = (request.platform or host_platform()).architecture
    return MeasuredRoot(
        parts=boot_root(
            request.kernel_from, source.tree, source.read, request.boot, architecture, request.hash, report
        ),
        rootfs=rootfs,
        kargs=kargs,
        architecture=architecture,
        version=version_of(tree, None),
        removed=removed,
    )


def _measure(request: BuildRequest, algorithm: Hash, report: Report) -> tuple[Gathered, Directory, Rootfs]:
    """Return the directory as it is, the tree that is promised, and the image of that."""
    reference = DirectoryReference(request.rootfs)
    times = AskedTimes.of(request.tree, reference)
    source = gather(reference, algorithm, SourceOptions(), report, times=times)
    promised = without_kernel(source.tree) if request.boot.strip_kernel else source.tree
    tree = canonical_tree(promised, request.tree, source.read, lambda text: report(Warned(text)))
    return source, tree, build_rootfs(tree, request.tree.erofs_version, algorithm)


def build(request: BuildRequest, report: Report) -> BuiltUki:
    """Measure a root file system and write the UKI that promises it; /boot does not count, so the UKI may go there."""
    lints_of(request.linting.skip)
    root = measure_root(request, report)
    parts = root.parts
    boot = replace(parts.boot, flow="local")
    subject = Subject(tree=parts.image, read=parts.read_image, architecture=root.architecture, boot=boot)
    warnings = check(subject, str(request.rootfs), request.linting, report)
    payload = build_payload(
        parts.tree, root.architecture, root.version, promise_of(root.kargs, parts.boot), parts.boot, parts.read, report
    )
    for warning in warnings:
        report(warning)
    name = payload.uki_path.rpartition("/")[2]
    loader = loader_to_sign(parts.tree, parts.read, root.architecture, parts.boot, report)
    files: Mapping[str, bytes] = {name: payload.uki, **loader}
    if request.boot.signing:
        files = sign_files(files, request.boot.signing, report)
    path = request.output or request.rootfs / UKI_DIRECTORY
    with plain_errors(TargetError, f"write {path}"):
        if request.output is None:
            path.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            path /= name
        write_atomically(path, files[name])
        waiting = request.boot.signing and request.boot.signing.request
        beside = [] if waiting else _write_beside(path.absolute(), {name: files[name] for name in loader}, report)
    if not waiting:
        _remove(request.rootfs, root.removed, report)
    return BuiltUki(path, str(root.rootfs.digest), payload.cmdline, payload.kernel_version, tuple(beside))


def _check_removable(root: Path, paths: Iterable[bytes]) -> None:
    for folder in {root / os.fsdecode(path.rpartition(b"/")[0]) for path in paths}:
        if not os.access(folder, os.W_OK):
            raise TargetError(
                f"--strip-kernel removes the kernel from {folder}, which cannot be written",
                hint="mount it for writing, or name a root without kernel, and the one with it by --kernel-root",
            )


def _remove(root: Path, paths: Iterable[bytes], report: Report) -> None:
    """Remove files, as a layer would: the directories that they were in keep their times."""
    for path in paths:
        file = root / os.fsdecode(path)
        with plain_errors(TargetError, f"remove {file}"):
            before = file.parent.stat()
            file.unlink(missing_ok=True)
            os.utime(file.parent, ns=(before.st_atime_ns, before.st_mtime_ns))
        report(Told(f"removed {file}: the UKI has it"))


def _write_beside(uki: Path, loader: Mapping[str, bytes], report: Report) -> list[Path]:
    """Write the signed boot loader where it belongs beside EFI/Linux; a UKI elsewhere stays alone."""
    if loader and uki.parent.parts[-2:] != ("EFI", "Linux"):
        report(Warned(f"{uki.parent} is no EFI/Linux: the UKI is signed, and no boot loader is put beside it"))
        return []
    written = []
    for name, data in loader.items():
        path = uki.parent.parent.parent / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, data)
        written.append(path)
    return written


def write_addon(
    stub: Path,
    cmdline: str,
    uname: str,
    output: Path,
    signing: SigningOptions | None,
    report: Report,
    *,
    force: bool = False,
) -> None:
    """Write an addon for the UKIs of one kernel. Arguments that decide what is booted take `force`."""
    if not output.name.endswith(ADDON) or output.name.startswith(".") or not output.name.isascii():
        raise FormatError(f"systemd-stub passes over an addon named {output.name!r}", hint=f"name it something{ADDON}")
    words = kernel_cmdline.split(cmdline)
    line = kernel_cmdline.join(words)
    decisive = [word for word in words if word.lstrip('"').lower().startswith("composefs")]
    decisive += kernel_cmdline.find_decisive(words)
    if decisive and not force:
        raise ImageError(
            f"an addon with {decisive[0]} would change what every UKI of this kernel boots",
            hint="the UKI's own command line is the place for it; --force takes it anyway",
        )
    if not line or not uname.isascii() or not uname.isprintable() or not uname:
        raise FormatError("an addon needs kernel arguments, and the version of the kernel that it is for")
    data = read_executable(stub)
    if len(data) > MAX_EFI_PROGRAM:
        raise LimitError(f"{stub} is larger than {MAX_EFI_PROGRAM} bytes")
    files = {output.name: build_addon(data, line, uname)}
    if signing:
        files = sign_files(files, signing, report)
    with plain_errors(TargetError, f"write {output}"):
        write_atomically(output, files[output.name])
