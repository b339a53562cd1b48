"""The rootfs image that a sealed image may bring along."""

import pytest

from oci2boot.boot.uki_layer import list_shipped, read_shipped, shipped_path
from oci2boot.digest import Hash
from oci2boot.errors import DigestError
from oci2boot.formats.fsverity import measure
from tests.boot.trees import read_inline, tree_of


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_a_rootfs_image_that_came_along_is_what_its_name_says(algorithm: Hash) -> None:
    """The registry's digests say that it is what somebody sent, not that it is this image."""
    digest = measure(b"image", algorithm)
    path = shipped_path(digest).decode()
    assert read_shipped(tree_of({path: b"image"}), read_inline, digest) == b"image"
    assert list_shipped(tree_of({path: b"image"})) == [digest.hex]
    assert read_shipped(tree_of({}), read_inline, digest) is None
    with pytest.raises(DigestError, match=f"{path} was tampered with: promised is {digest}, it measures"):
        read_shipped(tree_of({path: b"Image"}), read_inline, digest)
