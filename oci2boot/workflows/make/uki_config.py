"""What makes a distribution's own kernel-install(8) and ukify(1) build the UKI that promises a root file system."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from oci2boot.boot.payload import EFI_NAMES, STUB_DIRECTORY, machine_of, plan_payload
from oci2boot.errors import TargetError
from oci2boot.system.files import half_written, plain_errors, write_atomically
from oci2boot.workflows.make.payload import payload_options, promise_of
from oci2boot.workflows.make.uki_build import BuildRequest, measure_root
from oci2boot.workflows.progress import Report, Warned

PLUGIN: Final = """\
#!/bin/sh
# Written by `oci2boot uki config`: what the image's initramfs lacks to keep the promise goes into the UKI after it.
[ "$1" = add ] && [ "$KERNEL_INSTALL_LAYOUT" = uki ] || exit 0
exec cp "{glue}" "$KERNEL_INSTALL_STAGING_AREA/initrd-oci2boot"
"""
INSTALL_CONF: Final = "layout=uki\nuki_generator=ukify\n"


@dataclass(frozen=True, slots=True)
class Configured:
    folder: Path
    digest: str
    cmdline: str
    kernel: str
    files: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "folder": str(self.folder),
            "digest": self.digest,
            "cmdline": self.cmdline,
            "kernel": self.kernel,
            "files": list(self.files),
        }


def configure(request: BuildRequest, folder: Path, report: Report) -> Configured:
    """Write the configuration to `folder`, as a rule /etc/kernel: of the stage that makes the UKI, and no other.

    In the image itself it would be part of what it promises, and so break the promise.
    """
    root = request.rootfs.resolve()
    if folder.resolve().is_relative_to(root):
        raise TargetError(
            f"{folder} lies in the root file system that is measured: its digest would change",
            hint="write it in the build stage that runs kernel-install; only its /boot goes into the image",
        )
    measured = measure_root(request, report)
    parts = measured.parts
    options = payload_options(measured.architecture, measured.version, parts.boot)
    plan = plan_payload(parts.tree, parts.read, promise_of(measured.kargs, parts.boot), options)
    for note in plan.notes:
        report(Warned(note))
    if request.kernel_from.root:
        root = request.kernel_from.root.resolve()
    stub = root / STUB_DIRECTORY.decode() / f"linux{EFI_NAMES[machine_of(measured.architecture)]}.efi.stub"
    folder = folder.absolute()
    uki_conf = f"[UKI]\nStub={stub}\nOSRelease=@{folder / 'os-release'}\n"
    files = {
        "cmdline": f"{plan.parts.cmdline}\n".encode(),
        "install.conf": INSTALL_CONF.encode(),
        "uki.conf": uki_conf.encode(),
        "os-release": plan.parts.os_release,
        # kernel-install would put the id of the build machine on the command line if it named the UKI after it.
        "entry-token": f"{plan.name}\n".encode(),
    }
    added = plan.glue.archive
    if plan.told:
        added += bytes(-len(added) % 4) + plan.parts.initrds[-1]
    if added:
        files["oci2boot.initrd"] = added
        files["install.d/50-oci2boot.install"] = PLUGIN.format(glue=folder / "oci2boot.initrd").encode()
    for name, data in files.items():
        path = folder / name
        with plain_errors(TargetError, f"write {path}"), half_written(folder):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, data)
            path.chmod(0o755 if name.endswith(".install") else 0o644)
    return Configured(folder, str(measured.rootfs.digest), plan.parts.cmdline, plan.parts.uname, tuple(sorted(files)))
