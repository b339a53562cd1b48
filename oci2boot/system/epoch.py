"""The time that goes into what is written. reproducible-builds.org, SOURCE_DATE_EPOCH."""

import os
import re
import time

from oci2boot.errors import FormatError


def now() -> int:
    return int(time.time())


def source_date_epoch(default: int) -> int:
    """Return `SOURCE_DATE_EPOCH`, in seconds since 1970.

    Without it a disk takes 0, so that it has the same bytes each time; keys and signatures take `now()`.
    """
    text = os.environ.get("SOURCE_DATE_EPOCH")
    if text is None:
        return default
    if not re.fullmatch(r"[0-9]{1,11}", text):
        raise FormatError(f"SOURCE_DATE_EPOCH is not a time in seconds: {text[:80]!r}")
    return int(text)
