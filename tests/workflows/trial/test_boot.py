"""What a test says to people and build services. The boots themselves: tests/integration."""

import json
import xml.etree.ElementTree as ET
from pathlib import Path

from oci2boot.digest import VerityDigest
from oci2boot.workflows.trial import boot as boot_test
from oci2boot.workflows.trial.report import Case

CASES = (
    Case("boots", True, "root is the image", 40.0),
    Case("measured", False, "the machine shows no TPM", 40.0, skipped=True),
    Case("a byte of <a file>", False, "it came up\nas if nothing had happened", 2.5),
)


def outcome(*cases: Case) -> boot_test.Tested:
    return boot_test.Tested(
        disk=Path("disk.raw"),
        digest=VerityDigest.parse("ab" * 32),
        secure_boot=True,
        accelerator="tcg",
        cases=cases,
        boot_seconds={"up": 48.2},
        read="on-demand",
        image_seconds={"ahead": 0.31, "on-demand": 0.01},
        pcrs={"11": "cd" * 32},
    )


def test_what_was_not_asked_is_no_failure() -> None:
    assert outcome(*CASES[:2]).ok
    assert not outcome(*CASES).ok


def test_junit_tells_failed_skipped_and_passed_apart() -> None:
    """B.4; by the schema that Jenkins and GitLab read."""
    suite = ET.fromstring(outcome(*CASES).to_junit())
    assert [suite.get(name) for name in ("tests", "failures", "skipped", "time")] == ["3", "1", "1", "82.5"]
    passed, skipped, failed = suite
    assert passed.findtext("system-out") == "root is the image"
    found = skipped.find("skipped")
    assert found is not None
    assert found.get("message") == "the machine shows no TPM"
    found = failed.find("failure")
    assert found is not None
    assert (found.get("message"), found.text) == ("it came up", "it came up\nas if nothing had happened")


def test_json_has_times_and_pcrs() -> None:
    """C.20, B.4"""
    found = json.loads(json.dumps(outcome(*CASES).to_json()))
    assert found["boot_seconds"] == {"up": 48.2}
    assert (found["read"], found["image_seconds"]) == ("on-demand", {"ahead": 0.31, "on-demand": 0.01})
    assert found["pcrs"] == {"11": "cd" * 32}
    assert [case["skipped"] for case in found["cases"]] == [False, True, False]
