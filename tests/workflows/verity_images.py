"""Small images for the mode verity: their initramfs has systemd's programs for dm-verity, by name."""

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from oci2boot.formats import cmdline, cpio, pe
from oci2boot.oci.reference import Reference
from oci2boot.rootfs.dmverity import VerityOptions
from oci2boot.rootfs.mkfs import Compression
from oci2boot.store.images import Bootable
from oci2boot.store.roots import DmVerityRoot
from oci2boot.system.run import Argv
from oci2boot.workflows.make.convert import convert
from oci2boot.workflows.progress import Report, silent
from oci2boot.workflows.requests import BootOptions, ConvertRequest, SigningOptions
from tests.boot.initrds import SYSTEMD
from tests.keys import make
from tests.oci.layouts import Layout
from tests.witness import program
from tests.workflows.sealable import BUILTIN, CONFIG, KVER, add_image, base, tar

INITRAMFS = [
    *SYSTEMD,
    cpio.file(b"usr/bin/blkid", b""),
    cpio.file(b"usr/sbin/dmsetup", b""),
    cpio.file(b"usr/lib/systemd/system-generators/systemd-fstab-generator", b""),
    cpio.file(b"usr/lib/systemd/systemd-veritysetup", b""),
    cpio.file(b"usr/lib/systemd/system-generators/systemd-veritysetup-generator", b""),
]
KERNEL = b"".join(
    b"CONFIG_%s=y\n" % name
    for name in (
        *(b"DM_VERITY", b"DM_VERITY_VERIFY_ROOTHASH_SIG", b"EXT4_FS"),
        *(b"EROFS_FS_ZIP", b"EROFS_FS_ZIP_ZSTD", b"EROFS_FS_ZIP_LZMA", b"EROFS_FS_ZIP_DEFLATE"),
    )
)
CONTENT: dict[str, bytes | Path] = {
    "usr/bin/tool": bytes(range(256)) * 500,
    "usr/share/text": b"the same line again\n" * 9000,
    "etc/motd": b"welcome\n",
}
BUILTIN_OPTIONS = BootOptions(ukify="builtin")
HASH_ONLY = VerityOptions(signature=False)
ZSTD = Compression.parse("zstd,level=12")


def verity_layers(initramfs: list[cpio.Member] = INITRAMFS, **extra: bytes) -> list[bytes]:
    modules = f"usr/lib/modules/{KVER}"
    system: dict[str, bytes | Path] = {
        f"{modules}/initramfs.img": cpio.write(initramfs),
        f"{modules}/modules.builtin": BUILTIN + b"kernel/drivers/md/dm-verity.ko\nkernel/fs/ext4/ext4.ko\n",
        f"{modules}/config": CONFIG + KERNEL,
        **extra,
    }
    return [*base(system), tar(CONTENT, mtime=1234567890)]


def make_image(folder: Path, layers: list[bytes] | None = None) -> Reference:
    layout = Layout(folder / "layout")
    add_image(layout, layers or verity_layers(), "v")
    return Reference.parse(f"oci:{layout.path}:v")


@dataclass(frozen=True, slots=True)
class Publisher:
    """Whose tags lead to one image today, and to another tomorrow."""

    layout: Layout

    @property
    def source(self) -> str:
        return str(Reference.parse(f"oci:{self.layout.path}:v"))

    def release(self, text: bytes, name: str = "v") -> str:
        self.layout.manifests = [
            one for one in self.layout.manifests if name not in str(one.get("annotations", {}).values())
        ]
        add_image(self.layout, [*verity_layers(), tar({"usr/share/release": text * 3000})], name)
        return str(Reference.parse(f"oci:{self.layout.path}:{name}"))


def make_signing(folder: Path, name: str = "owner") -> SigningOptions:
    pair = make(folder, name)
    return SigningOptions(certificate=pair.path, key=str(pair.key))


def convert_verity(
    source: Reference,
    repo: Path,
    options: VerityOptions,
    signing: SigningOptions | None = None,
    boot: BootOptions = BUILTIN_OPTIONS,
    report: Report = silent,
) -> Bootable:
    return convert(
        ConvertRequest(
            source=source, repo=repo, name="demo", boot=boot, verity=options, root_signing=signing or boot.signing
        ),
        report,
    )


def object_of(repo: Path, bootable: Bootable, what: str) -> Path:
    assert isinstance(bootable.root, DmVerityRoot)
    digest = {
        "image": bootable.root.image,
        "tree": bootable.root.hash_object,
        "signature": bootable.root.signature_object,
    }[what]
    assert digest
    return repo / "objects" / digest.path


def words_of(repo: Path, bootable: Bootable) -> list[str]:
    """Return the command line that the UKI itself has."""
    uki = uki_of(repo, bootable)
    (section,) = pe.parse(uki).sections_named(b".cmdline")
    return cmdline.split(cmdline.read_section(pe.contents(uki, section)))


def uki_of(repo: Path, bootable: Bootable) -> bytes:
    (path,) = (path for path in bootable.esp if re.fullmatch(r"EFI/Linux/[^/]*\.efi", path))
    return (repo / "objects" / bootable.esp[path].path).read_bytes()


def credential(repo: Path, bootable: Bootable) -> Path:
    (path,) = (path for path in bootable.esp if path.endswith(".cred"))
    (uki,) = (path for path in bootable.esp if re.fullmatch(r"EFI/Linux/[^/]*\.efi", path))
    assert path == f"{uki}.extra.d/roothash.p7s.cred"
    return repo / "objects" / bootable.esp[path].path


def check_signature(repo: Path, bootable: Bootable, signing: SigningOptions, folder: Path) -> None:
    """See that openssl takes the signature for one of the root hash's digits."""
    assert isinstance(bootable.root, DmVerityRoot)
    digits = folder / "digits"
    digits.write_text(str(bootable.root.root_hash))
    argv: Argv = [
        program("openssl"), "smime", "-verify", "-binary", "-inform", "DER", "-in", credential(repo, bootable),
        "-content", digits, "-CAfile", signing.certificate, "-purpose", "any",
    ]  # fmt: skip
    assert subprocess.check_output(argv, stderr=subprocess.DEVNULL).decode() == str(bootable.root.root_hash)
