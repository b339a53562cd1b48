import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oci2boot.errors import Error, FormatError, LimitError
from oci2boot.formats import kconfig

# Lines of Debian's config-6.12.107+deb13-amd64.
DEBIAN = b"""#
# Automatically generated file; DO NOT EDIT.
CONFIG_LOCALVERSION=""
CONFIG_OVERLAY_FS=m
# CONFIG_OVERLAY_FS_METACOPY is not set
CONFIG_FS_VERITY=y
CONFIG_BLK_DEV_LOOP_MIN_COUNT=8
CONFIG_EROFS_FS=m
CONFIG_EROFS_FS_BACKED_BY_FILE=y
"""


def test_options_are_read() -> None:
    assert kconfig.parse(DEBIAN) == {
        "LOCALVERSION": '""',
        "OVERLAY_FS": "m",
        "OVERLAY_FS_METACOPY": "n",
        "FS_VERITY": "y",
        "BLK_DEV_LOOP_MIN_COUNT": "8",
        "EROFS_FS": "m",
        "EROFS_FS_BACKED_BY_FILE": "y",
    }


def test_something_else_and_huge_files_are_refused() -> None:
    with pytest.raises(FormatError):
        kconfig.parse(b"\x7fELF")
    with pytest.raises(LimitError):
        kconfig.parse(b"#" * (kconfig.MAX_SIZE + 1))


@given(st.binary(max_size=200))
def test_any_bytes_are_parsed_or_an_error(data: bytes) -> None:
    with contextlib.suppress(Error):
        kconfig.parse(b"CONFIG_A=" + data)
