"""Machines that lie in plain directories: a physical root and an ESP, with small images that are all but bootable."""

from dataclasses import dataclass
from pathlib import Path

from oci2boot.oci.reference import Reference
from oci2boot.store.images import Bootable
from oci2boot.sysroot.machine import Sysroot, open_sysroot
from oci2boot.sysroot.state import read_state
from oci2boot.workflows.machine.deploy import DeployOptions, SysrootPlan
from oci2boot.workflows.machine.directories import install_directories
from oci2boot.workflows.machine.upgrade import Upgraded, UpgradeRequest, upgrade
from oci2boot.workflows.make.convert import convert
from oci2boot.workflows.progress import silent
from oci2boot.workflows.requests import BootOptions, ConvertRequest
from tests.oci.layouts import Layout
from tests.workflows import sealable
from tests.workflows.sealable import add_image, tar

FIRST: dict[str, bytes | Path] = {
    "usr/bin/version": b"one" * 100,
    "etc/motd": b"image one\n",
    "usr/bin/gone": b"only in one" * 100,
}
SECOND: dict[str, bytes | Path] = {"usr/bin/version": b"two" * 100, "etc/motd": b"image two\n"}
ANY_FILE_SYSTEM = DeployOptions(allow_missing_verity=True)
"""The file systems that tests run on rarely have fs-verity; machines in QEMU do."""
ANY_BOOT = BootOptions(allow_missing_verity=True, ukify="builtin")


@dataclass(frozen=True, slots=True)
class Machine:
    layout: Layout
    repo: Path
    """Of the host that installed it."""
    root: Path
    esp: Path

    @property
    def sysroot(self) -> Sysroot:
        return open_sysroot(self.root, self.esp)

    @property
    def source(self) -> Reference:
        return Reference.parse(f"oci:{self.layout.path}:v")

    def release(self, *files: dict[str, bytes | Path], name: str = "v") -> None:
        """Let the tag lead to an image with these files in layers above the system's."""
        self.layout.manifests = [
            one for one in self.layout.manifests if name not in str(one.get("annotations", {}).values())
        ]
        add_image(self.layout, [*sealable.base(), *(tar(one) for one in files)], name)

    def convert(self, name: str = "demo") -> Bootable:
        return convert(ConvertRequest(source=self.source, repo=self.repo, name=name, boot=ANY_BOOT), silent)

    def install(self, options: DeployOptions = ANY_FILE_SYSTEM) -> SysrootPlan:
        return install_directories(self.repo, "demo", self.root, self.esp, options, silent)

    def upgrade(self, options: DeployOptions | None = None) -> Upgraded:
        return upgrade(UpgradeRequest(self.sysroot, options=options or DeployOptions()), silent)

    def entries(self) -> list[str]:
        return sorted(path.name for path in (self.esp / "EFI/Linux").glob("*.efi"))


def make_machine(folder: Path) -> Machine:
    """Return a machine with one deployment of a first image."""
    made = Machine(Layout(folder / "layout"), folder / "repo", folder / "root", folder / "esp")
    made.root.mkdir()
    made.esp.mkdir()
    made.release(FIRST)
    made.convert()
    made.install()
    return made


def digests(machine: Machine) -> list[str]:
    """Return the deployments, what boots first first."""
    return [one.digest.hex for one in read_state(machine.sysroot).deployments]


def upper(machine: Machine, digest: str) -> Path:
    return machine.root / "state/deploy" / digest / "etc/upper"


def upgraded(machine: Machine) -> tuple[str, str]:
    """Upgrade to a second image; return (first, second) digest."""
    (first,) = digests(machine)
    machine.release(SECOND)
    assert machine.upgrade().outcome == "deployed"
    second, again = digests(machine)
    assert again == first
    return first, second
