"""SOURCE_DATE_EPOCH. reproducible-builds.org/specs/source-date-epoch: an ASCII decimal number of seconds."""

import pytest

from oci2boot.errors import FormatError
from oci2boot.system.epoch import source_date_epoch


def test_the_variable_goes_before_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    assert source_date_epoch(7) == 7
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    assert source_date_epoch(7) == 1_700_000_000


@pytest.mark.parametrize("text", ["", "yesterday", "-1", "1.5", " 1", "1\n", "0x10", "\N{ARABIC-INDIC DIGIT THREE}"])
def test_what_is_no_time_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", text)
    with pytest.raises(FormatError, match="SOURCE_DATE_EPOCH is not a time in seconds"):
        source_date_epoch(0)
