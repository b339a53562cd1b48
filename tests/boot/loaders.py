"""Boot loaders of Debian 13, and one with what Debian 12's says of itself."""

from tests.boot.debian import package
from tests.workflows.sealable import with_sections

EFI = "usr/lib/systemd/boot/efi"


def loader() -> bytes:
    return (package("systemd-boot-efi") / EFI / "systemd-bootx64.efi").read_bytes()


def shim() -> bytes:
    return (package("shim-signed") / "usr/lib/shim/shimx64.efi.signed").read_bytes()


def bookworm() -> bytes:
    """Return a program with what systemd-boot of Debian 12 says of itself, as `objdump -s` shows it."""
    silent = loader().replace(b".sbat\0\0\0", b".none\0\0\0").replace(b".sdmagic", b".nomagic")
    text = (
        b"sbat,1,SBAT Version,sbat,1,https://github.com/rhboot/shim/blob/main/SBAT.md\n"
        b"systemd,1,The systemd Developers,systemd,252,https://systemd.io/\n"
        b"systemd.debian,1,Debian GNU/Linux,systemd,252.39-1~deb12u2,https://bugs.debian.org/\n"
    )
    mark = b"#### LoaderInfo: systemd-boot 252.39-1~deb12u2 ####\0"
    return with_sections(silent, [(b".sbat", text), (b".sdmagic", mark)])
