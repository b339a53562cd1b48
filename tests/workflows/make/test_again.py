"""What a record remembers of a conversion: written as by the first version that had records, and read the same."""

import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from oci2boot.boot.dracut import DracutOptions
from oci2boot.digest import VerityDigest
from oci2boot.errors import FormatError, TargetError
from oci2boot.formats.x509 import to_pem
from oci2boot.oci.manifest import Platform
from oci2boot.oci.source import SourceOptions
from oci2boot.rootfs.dmverity import Overlay, VerityOptions
from oci2boot.rootfs.mkfs import Compression
from oci2boot.store.images import Bootable
from oci2boot.store.roots import ComposefsRoot
from oci2boot.workflows.make.again import remembered, request_again
from oci2boot.workflows.requests import BootOptions, ConvertRequest, SigningOptions, TreeOptions
from oci2boot.workflows.sources import parse_source
from tests.keys import make

SOURCE = parse_source("oci:layout:v")
USUAL: dict[str, Any] = {
    "tls_verify": True,
    "kernel": None,
    "kargs": [],
    "karg_style": "composefs",
    "ukify": "auto",
    "flow": "auto",
    "uki": None,
    "allow_missing_verity": False,
    "loader": "systemd-boot",
    "timeout": 3,
    "signed": False,
    "secure_boot_enroll": None,
    "console": None,
    "size_limit": None,
    "initrd": "image",
    "initrd_tools": [],
    "dracut": {"install": [], "add_drivers": [], "force_drivers": [], "modules": [], "filesystems": []},
    "db": [],
}
FULL: dict[str, Any] = {
    "tls_verify": False,
    "platform": "linux/arm/v7",
    "uki_layer": -1,
    "verity": {
        "compression": "zstd,level=9",
        "verity": True,
        "hash": "sha512",
        "salt": "0a0b",
        "blocks": 3,
        "place": "embedded",
        "signature": False,
        "form": "systemd",
        "options": ["panic-on-corruption"],
        "overlays": ["/var", "/srv:tmpfs"],
    },
    "kernel": "6.12",
    "kargs": ["quiet", "console=ttyS0"],
    "karg_style": "digest",
    "ukify": "auto",
    "flow": "vendor",
    "uki": "a.efi",
    "allow_missing_verity": True,
    "loader": "shim",
    "timeout": 7,
    "signed": True,
    "secure_boot_enroll": "force",
    "console": "serial",
    "size_limit": 67108864,
    "initrd": "dracut",
    "initrd_tools": ["/bin/ls"],
    "dracut": {
        "install": ["/a", "/b"],
        "add_drivers": ["x"],
        "force_drivers": ["y"],
        "modules": ["m"],
        "filesystems": ["ext4"],
    },
    "db": ["certificate"],
}
"""Both were written by the version of commit ce06d35."""
NEWER: dict[str, Any] = {
    "devicetree": None,
    "aboot": None,
    "read": "ahead",
    "debug_shell": False,
    "strip_kernel": False,
    "both_hashes": False,
}
"""What it did not know; it passes over them."""

OPTIONS = SourceOptions(Platform("linux", "arm", "v7"), tls_verify=False)
VERITY = VerityOptions(
    compression=Compression.parse("zstd,level=9"),
    hash="sha512",
    salt=b"\x0a\x0b",
    blocks=3,
    place="embedded",
    signature=False,
    form="systemd",
    options=("panic-on-corruption",),
    overlays=(Overlay("/var"), Overlay("/srv", "tmpfs")),
)
SIGNING = SigningOptions(certificate=Path("c"), key="k")


def boot_options(db: Path, ukify: str = "auto") -> BootOptions:
    return BootOptions(
        kernel="6.12",
        kargs=("quiet", "console=ttyS0"),
        karg_style="digest",
        ukify=ukify,
        flow="vendor",
        uki="a.efi",
        allow_missing_verity=True,
        signing=SIGNING,
        db=(db,),
        loader="shim",
        timeout=7,
        secure_boot_enroll="force",
        console="serial",
        size_limit=64 << 20,
        initrd="dracut",
        initrd_tools=("/bin/ls",),
        dracut=DracutOptions(("/a", "/b"), ("x",), ("y",), ("m",), ("ext4",)),
    )


def bootable(options: dict[str, Any]) -> Bootable:
    return Bootable(
        name="demo",
        source=str(SOURCE),
        rules="canonical-1",
        root=ComposefsRoot(VerityDigest.parse("0" * 64), 2),
        selinux_rules="composefs-rs",
        xattrs="keep-user",
        manifest=None,
        architecture="riscv64",
        title="Demo",
        options=options,
    )


def test_records_are_written_as_ever(tmp_path: Path) -> None:
    db = make(tmp_path, "db")
    assert remembered(ConvertRequest(source=SOURCE, repo=tmp_path)) == USUAL | NEWER
    request = ConvertRequest(
        source=SOURCE,
        repo=tmp_path,
        options=OPTIONS,
        boot=boot_options(db.path, "/usr/bin/ukify"),
        uki_layer=-1,
        verity=VERITY,
        root_signing=SIGNING,
    )
    assert remembered(request) == FULL | NEWER | {"db": [to_pem("CERTIFICATE", db.certificate.der).decode()]}
    plain = ConvertRequest(source=SOURCE, repo=tmp_path, boot=None, tree=TreeOptions(bootable=False))
    assert remembered(plain) == {"tls_verify": True, "plain": True}
    names = {field.name for field in fields(BootOptions)} - {"signing"}
    assert names == (USUAL | NEWER).keys() - {"signed", "tls_verify"}


def test_records_of_the_first_version_are_read_as_ever(tmp_path: Path) -> None:
    tree = TreeOptions(selinux_rules="composefs-rs", xattrs="keep-user", erofs_version=2)
    usual = SourceOptions(Platform("linux", "riscv64"))
    again = ConvertRequest(source=SOURCE, repo=tmp_path, name="demo", options=usual, tree=tree)
    assert request_again(bootable(USUAL), tmp_path, tmp_path, BootOptions()) == again
    assert request_again(bootable({}), tmp_path, tmp_path, BootOptions()) == again
    full = ConvertRequest(
        source=SOURCE,
        repo=tmp_path,
        name="demo",
        options=OPTIONS,
        tree=tree,
        boot=boot_options(tmp_path / "db0.pem"),
        uki_layer=-1,
        verity=VERITY,
        root_signing=SIGNING,
    )
    assert request_again(bootable(FULL), tmp_path, tmp_path, BootOptions(signing=SIGNING)) == full
    assert (tmp_path / "db0.pem").read_text() == "certificate"
    # With --db the signatures may be beside the image: convert refuses what has none.
    elsewhere = request_again(bootable(FULL), tmp_path, tmp_path, BootOptions())
    assert (elsewhere.root_signing, elsewhere.verity) == (None, VERITY)
    with pytest.raises(TargetError, match="was signed"):
        request_again(bootable({**FULL, "db": []}), tmp_path, tmp_path, BootOptions())


@pytest.mark.parametrize(
    "wrong",
    [
        *({"flow": "other"}, {"karg_style": 5}, {"loader": ["shim"]}, {"initrd": "own"}, {"secure_boot_enroll": "now"}),
        *({"timeout": "soon"}, {"timeout": math.inf}, {"size_limit": []}, {"uki_layer": "top"}, {"kargs": 5}),
        *(
            {"initrd_tools": "/bin/ls"},
            {"db": [5]},
            {"db": 5},
            {"dracut": {"other": []}},
            {"dracut": 5},
            {"verity": {}},
        ),
        *({"verity": {}}, {"platform": 5}, {"verity": FULL["verity"] | {"salt": "x"}}),
    ],
    ids=str,
)
def test_a_record_that_nobody_wrote_is_refused(wrong: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="cannot be read"):
        request_again(bootable(USUAL | wrong), tmp_path, tmp_path, BootOptions())


@pytest.mark.parametrize("flow", ["files", "aboot"])
def test_what_another_boot_loader_loads_is_not_upgraded_on_the_machine(flow: str, tmp_path: Path) -> None:
    """C.16: the machine would go on to boot the old files, whose root file system the next collection frees."""
    kept = replace(bootable(USUAL | {"flow": flow}), flow=flow)  # type: ignore[arg-type]
    with pytest.raises(TargetError, match=f"of the board's own loads .--flow {flow}"):
        request_again(kept, tmp_path, tmp_path, BootOptions())
