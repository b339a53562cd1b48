"""SBAT: what an EFI program says of itself, so that it can be revoked. shim, SBAT.md."""

from oci2boot.errors import FormatError
from oci2boot.formats import pe


def read_sbat(program: bytes) -> list[str]:
    """Return the entries, a line each, without the one about SBAT itself; none for a program without `.sbat`."""
    lines: list[str] = []
    for section in pe.parse(program).sections_named(b".sbat"):
        try:
            text = pe.contents(program, section).rstrip(b"\0").decode().splitlines()
        except UnicodeDecodeError as error:
            raise FormatError("an SBAT section that is not text") from error
        if text and text[0].startswith("sbat,"):
            lines += text[1:]
    return lines


def product(program: bytes) -> tuple[str, str]:
    """Return component and version of the first entry: `systemd-boot`, `257.8-1~deb13u1`. Empty where none says it."""
    words = (read_sbat(program) or [""])[0].split(",")
    return (words[0], words[4]) if len(words) > 4 and words[0].isprintable() else ("", "")
