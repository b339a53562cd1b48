"""Images for two slots, one newer than the other, and what is on their boot partition."""

import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

from oci2boot.rootfs.dmverity import VerityOptions
from oci2boot.store.images import save
from oci2boot.store.repository import Repository
from tests.keys import Pair
from tests.partitions import table
from tests.store.stored import SKELETON, layer
from tests.tarballs import file
from tests.target.disks import said
from tests.workflows.sealable import kernel, uki
from tests.workflows.verity_disks import Image, converted

MIB = 1 << 20
BLESSER = "usr/lib/systemd/systemd-bless-boot"


def release(number: int) -> bytes:
    return f'ID=demo\nIMAGE_ID=demo\nIMAGE_VERSION={number}\nPRETTY_NAME="Demo {number}"\n'.encode()


@dataclass(frozen=True, slots=True)
class Factory:
    """Images of one system, one newer than the other."""

    folder: Path
    key: Pair

    def make(self, number: int, size: int = 200_000, options: VerityOptions | None = None) -> Image:
        content = file(b"usr/bin/own", b"".join((at * (number & 0xFFFF)).to_bytes(8, "big") for at in range(size // 8)))
        named = file(b"usr/lib/os-release", release(number))
        tars = [layer(SKELETON, content, named, *(file(name.encode(), b"x" * 5000) for name in [BLESSER]))]
        options = options or VerityOptions()
        # The UKI has the root hash in it, which is known when all else is.
        plain = converted(self.folder / f"plain{number}", tars, options)
        files = {
            f"EFI/Linux/demo_{number}.efi": uki(f"quiet roothash={plain.root_hash} ro", release(number)),
            f"EFI/Linux/demo_{number}.efi.extra.d/roothash.p7s.cred": b"signature %d" % number,
            "EFI/BOOT/BOOTX64.EFI": kernel(),
        }
        made = converted(self.folder / f"repo{number}", tars, options, self.key, esp=files)
        bootable = replace(made.bootable, cmdline=f"quiet roothash={plain.root_hash} ro")
        with Repository.open(made.repo) as repository:
            esp = {path: repository.object_path(digest).read_bytes() for path, digest in made.bootable.esp.items()}
            bootable = save(repository, bootable, made.stored.rootfs.image, esp, None)
        return replace(made, bootable=bootable)


@dataclass(frozen=True, slots=True)
class Menu:
    """What is on the EFI system partition, by mtools alone."""

    disk: Path
    folder: Path

    def files(self) -> dict[str, bytes]:
        start = table(self.disk)[0]["start"]
        into = self.folder / "esp"
        subprocess.run(["rm", "-rf", into], check=True)
        into.mkdir()
        said("mcopy", "-s", "-n", "-i", f"{self.disk}@@{start}", "::/*", into)
        return {str(path.relative_to(into)): path.read_bytes() for path in into.rglob("*") if path.is_file()}

    def ukis(self) -> list[str]:
        """Return the names in the order of systemd-boot: what has tries left or none counted first, then by version."""
        found = [path.split("/")[2:] for path in self.files() if path.startswith("EFI/Linux/")]
        # systemd-boot lists what ends in .efi; what is not complete does not.
        names = [words[0] for words in found if len(words) == 1 and words[0].endswith(".efi")]

        def key(name: str) -> tuple[bool, int]:
            return "+0" in name, -int(name.removeprefix("demo_").partition(".")[0].partition("+")[0])

        return sorted(names, key=key)
