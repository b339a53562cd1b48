"""A publisher whose images are sealed with a key of its own, and a registry that serves whatever is put there."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from oci2boot.oci.reference import Reference
from oci2boot.oci.source import SourceOptions
from oci2boot.store.images import Bootable
from oci2boot.sysroot.machine import Sysroot, open_sysroot
from oci2boot.workflows.machine.demands import Allowed
from oci2boot.workflows.machine.deploy import DeployOptions
from oci2boot.workflows.machine.directories import install_directories
from oci2boot.workflows.machine.upgrade import Upgraded, UpgradeRequest, switch, upgrade
from oci2boot.workflows.make.convert import convert
from oci2boot.workflows.make.digest import measure
from oci2boot.workflows.progress import Report, silent
from oci2boot.workflows.requests import BootOptions, ConvertRequest, DigestRequest, SigningOptions
from tests.keys import Pair
from tests.oci.layouts import Layout
from tests.oci.registries import push
from tests.workflows.sealable import OS_RELEASE, add_image, base, tar, uki

LOOPBACK = SourceOptions(tls_verify=False)
ANY_FILE_SYSTEM = DeployOptions(allow_missing_verity=True)


@dataclass(frozen=True, slots=True)
class Registry:
    """What is sealed here lies under a tag of its own; `serve` moves the tag that machines follow."""

    address: str
    folder: Path

    def release(
        self,
        tag: str,
        version: str,
        key: Pair | None,
        extra: Sequence[dict[str, bytes | Path]] = (),
        boot: Sequence[dict[str, bytes | Path]] = (),
        name: str = "IMAGE_ID=shop\nIMAGE_VERSION=",
    ) -> None:
        """Make an image; sealed by a UKI of this version with the key's signature, or without a key unsealed."""
        layout = Layout(self.folder / f"layout-{tag}")
        tars = [*base(), *(tar(files) for files in extra), tar({"usr/share/release": tag.encode() * 99})]
        add_image(layout, tars, "plain")
        if key:
            source = Reference.parse(f"oci:{layout.path}:plain")
            digest = measure(DigestRequest(source=source), silent).rootfs.digest.hex
            release = OS_RELEASE + f"{name}{version}\n".encode()
            sealed = key.sbsign(uki(f"rw composefs=?{digest}", release))
            tars.append(tar({f"boot/EFI/Linux/shop_{version}.efi": sealed}))
            tars.extend(tar(files) for files in boot)
        add_image(layout, tars, "v")
        push(f"oci:{layout.path}:v", f"docker://{self.address}/shop:{tag}")

    def serve(self, tag: str) -> None:
        argv = ["--src-tls-verify=false"]
        push(f"docker://{self.address}/shop:{tag}", f"docker://{self.address}/shop:live", *argv)

    def reference(self, tag: str = "live") -> Reference:
        return Reference.parse(f"docker://{self.address}/shop:{tag}")


@dataclass(frozen=True, slots=True)
class Follower:
    """A machine in plain directories that follows what the registry serves."""

    registry: Registry
    root: Path
    esp: Path

    @property
    def sysroot(self) -> Sysroot:
        return open_sysroot(self.root, self.esp)

    def upgrade(
        self,
        *,
        efivars: Path | None = None,
        report: Report = silent,
        signing: SigningOptions | None = None,
        dry_run: bool = False,
        **allowed: bool,
    ) -> Upgraded:
        request = UpgradeRequest(
            self.sysroot,
            given=BootOptions(signing=signing),
            allowed=Allowed(**allowed),
            efivars=efivars,
            dry_run=dry_run,
        )
        return upgrade(request, report)

    def switch(self, tag: str, *, boot: BootOptions | None = None, **allowed: bool) -> Upgraded:
        wanted = ConvertRequest(
            source=self.registry.reference(tag),
            repo=self.sysroot.repository,
            name="other",
            options=LOOPBACK,
            boot=boot,
        )
        request = UpgradeRequest(self.sysroot, allowed=Allowed(**allowed))
        return switch(request, wanted, silent, {"flow"} if boot else ())


def follower(
    registry: Registry, folder: Path, *, efivars: Path | None = None, report: Report = silent
) -> tuple[Follower, Bootable]:
    """Install what the registry serves now; the machine never sees a key."""
    made = Follower(registry, folder / "root", folder / "esp")
    made.root.mkdir()
    made.esp.mkdir()
    boot = BootOptions(ukify="builtin", allow_missing_verity=True)
    request = ConvertRequest(
        source=registry.reference(), repo=folder / "repo", name="demo", options=LOOPBACK, boot=boot
    )
    image = convert(request, report)
    install_directories(folder / "repo", "demo", made.root, made.esp, ANY_FILE_SYSTEM, silent, efivars=efivars)
    return made, image
