"""What the unencrypted part of a disk tells of the image."""

from pathlib import Path

from oci2boot.oci.reference import Reference
from oci2boot.workflows.install.disk import install
from oci2boot.workflows.make.convert import convert
from oci2boot.workflows.progress import silent
from oci2boot.workflows.requests import BootOptions, ConvertRequest, InstallRequest
from tests.oci.layouts import Layout
from tests.workflows.sealable import add_image, base

CANARY = "kanarienvogel"


def test_no_name_of_the_root_file_system_is_on_the_esp(tmp_path: Path) -> None:
    """C.18: its bytes are searched; the root partition, which may be encrypted, is where the name is."""
    layout = Layout(tmp_path / "layout")
    add_image(layout, base({f"usr/share/{CANARY}/{CANARY}.txt": CANARY.encode() * 1000}), "v")
    repo, disk = tmp_path / "repo", tmp_path / "disk.raw"
    convert(
        ConvertRequest(source=Reference.parse(f"oci:{layout.path}:v"), repo=repo, boot=BootOptions(ukify="builtin")),
        silent,
    )
    plan = install(InstallRequest(repo=repo, target=disk), silent).plan
    with disk.open("rb") as file:
        file.seek(plan.esp.start)
        esp = file.read(plan.esp.size)
        file.seek(plan.root.start)
        root = file.read(plan.root.size)
    assert b"BOOTX64 EFI" in esp
    for encoding in ("ascii", "utf-16-le"):  # FAT's short and long names
        assert CANARY.encode(encoding) not in esp
        assert CANARY.upper().encode(encoding) not in esp
    assert f"{CANARY}.txt".encode() in root
