"""How long it takes until the rootfs image is verified: read ahead as a whole, or on demand, where it is opened."""

import re
from collections.abc import Mapping
from typing import Final

from oci2boot.digest import RootHash, VerityDigest
from oci2boot.system.qemu import find_words

_STAMP: Final = r"\d{1,9}\.\d\d"
"""Of /proc/uptime."""
_BY_INITRAMFS: Final = rf"the image is verified, (ahead|on-demand), from ({_STAMP}) to ({_STAMP}) s"
_AGAIN: Final = """
image=/sysroot/composefs/objects/%s/%s
echo 3 >/proc/sys/vm/drop_caches
read -r begin _ </proc/uptime
(: <$image) && read -r opened _ </proc/uptime && cat $image >/dev/null && read -r line _ </proc/uptime &&
    say image "$begin $opened $line"
"""


def read_again(digest: VerityDigest | RootHash) -> bytes:
    """Return what has a machine open the rootfs image and then read all of it, with nothing in memory."""
    if not isinstance(digest, VerityDigest):
        return b""
    return (_AGAIN % (digest.hex[:2], digest.hex[2:])).encode()


def way_of(console: str) -> str | None:
    """Return how the initramfs had the rootfs image verified, `ahead` or `on-demand`; None where it does not say so."""
    said = find_words(_BY_INITRAMFS, console)
    return said[1] if said else None


def image_times(console: str, report: Mapping[str, str]) -> dict[str, float]:
    """Return seconds, by `ahead` and `on-demand`: the initramfs measured its way, the machine what the other takes."""
    took: dict[str, float] = {}
    if said := find_words(_BY_INITRAMFS, console):
        took[said[1]] = round(float(said[3]) - float(said[2]), 2)
    again = re.fullmatch(f"({_STAMP}) ({_STAMP}) ({_STAMP})", report.get("image", ""))
    if again:
        begin, opened, read = map(float, again.groups())
        for way, end in (("ahead", read), ("on-demand", opened)):
            took.setdefault(way, round(end - begin, 2))
    return dict(sorted(took.items()))
