"""Device trees that an image has for its boards. Devicetree Specification 0.4, section 5.2."""

from typing import Final

from oci2boot.boot.discover import MODULES
from oci2boot.errors import FormatError, ImageError
from oci2boot.tree.files import Read, read_file, show
from oci2boot.tree.model import Directory

MAX_SIZE: Final = 16 << 20
HEADER_SIZE: Final = 40
MAGIC: Final = (0xD00DFEED).to_bytes(4, "big")


def read_devicetree(tree: Directory, read: Read, name: str, version: str) -> bytes:
    """Return the one called `name`: a path in the image, or beneath where distributions put those of a kernel."""
    kernel = version.encode()
    places = (
        MODULES + b"/" + kernel + b"/dtb",
        b"usr/lib/linux-image-" + kernel,
        b"usr/lib/firmware/" + kernel + b"/device-tree",
        b"boot/dtb-" + kernel,
        b"boot/dtbs/" + kernel,
        b"boot/dtbs",
        b"boot/dtb",
        b"",
    )
    asked = [b""] if name.startswith("/") else places
    for place in asked:
        path = (place + b"/" + name.encode()).lstrip(b"/")
        data = read_file(tree, read, path, MAX_SIZE)
        if data is not None:
            check_devicetree(data, path)
            return data
    looked = ", ".join(f"/{show(place)}" for place in places if place)
    raise ImageError(
        f"the image has no device tree {name[:200]}",
        hint="" if name.startswith("/") else f"it is looked for beneath {looked}",
    )


def check_devicetree(data: bytes, path: bytes) -> None:
    """Refuse what is none, or cut short: a boot loader would start the kernel with it all the same."""
    if len(data) < HEADER_SIZE or data[:4] != MAGIC:
        raise FormatError(f"/{show(path)} is no device tree")
    size = int.from_bytes(data[4:8], "big")
    if not HEADER_SIZE <= size <= len(data):
        raise FormatError(f"/{show(path)} is a device tree of {size} bytes, and has {len(data)}")
