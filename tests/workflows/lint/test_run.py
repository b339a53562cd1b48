"""The checks together: their list, what is left out, what a conversion makes of them, and SARIF."""

import json
import re
from contextlib import suppress
from pathlib import Path

import pytest
from pydantic_sarif.model import StaticAnalysisResultsFormatSarifVersion210JsonSchema as Sarif

from oci2boot.errors import FormatError, ImageError, LintError
from oci2boot.oci.reference import Reference
from oci2boot.tree.model import Directory, Metadata
from oci2boot.workflows.lint.model import Subject
from oci2boot.workflows.lint.run import LINTS, check, lints_of, run_lints
from oci2boot.workflows.lint.sarif import to_sarif
from oci2boot.workflows.make.convert import convert
from oci2boot.workflows.progress import Event, Warned
from oci2boot.workflows.requests import BootOptions, ConvertRequest, Linting
from tests.boot.trees import read_inline
from tests.oci.layouts import Layout
from tests.workflows.lint.images import Changes, subject
from tests.workflows.sealable import EFI, KVER, add_image, base, tar

# `bootc container lint --list` of bootc 1.17.
BOOTC = {
    "api-base-directories", "baseimage-composefs", "baseimage-root", "bootc-kargs", "buildah-injected", "etc-usretc",
    "kernel", "nonempty-boot", "nonempty-run-tmp", "sysusers", "utf8", "var-log", "var-run", "var-tmpfiles",
}  # fmt: skip
BAD: Changes = {"usr/lib/systemd/systemd": None, "sbin/init": None, "tmp/left over": b"", "etc/kernel/cmdline": b"rw\n"}


def test_each_check_of_bootc_has_one_of_its_name() -> None:
    """P.12"""
    assert {lint.name for lint in LINTS if lint.bootc} == BOOTC


def test_names_are_names() -> None:
    names = [lint.name for lint in LINTS]
    assert len(set(names)) == len(names)
    assert [name for name in names if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name)] == []


def test_each_check_is_tested() -> None:
    texts = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py") if path != Path(__file__))
    assert [lint.name for lint in LINTS if f'"{lint.name}"' not in texts] == []


def test_a_check_can_be_left_out_and_a_wrong_name_cannot() -> None:
    assert "init" not in [lint.name for lint in lints_of(["init"])]
    with pytest.raises(FormatError, match="no check intit") as caught:
        lints_of(["intit"])
    assert caught.value.hint == "did you mean init?"


def test_an_empty_image_is_a_list_of_findings_and_no_failure() -> None:
    empty = Subject(tree=Directory(Metadata(mode=0o755), {}), read=read_inline, architecture="amd64")
    names = {finding.lint.name for finding in run_lints(empty, "empty").findings}
    assert {"init", "kernel", "systemd-boot", "systemd-stub", "api-base-directories", "growth"} <= names


def test_a_conversion_warns_and_strict_stops_it() -> None:
    told: list[Event] = []
    check(subject(BAD), "image", Linting(), told.append)
    assert [event.lint for event in told if isinstance(event, Warned)] == ["init", "systemd", "nonempty-run-tmp"]
    with pytest.raises(LintError, match="image should pass every check, and fails 3: init, systemd, nonempty-run-tmp"):
        check(subject(BAD), "image", Linting(strict=True), told.append)
    check(subject(BAD), "image", Linting(strict=True, skip=("init", "systemd", "nonempty-run-tmp")), told.append)


def test_what_a_conversion_refuses_itself_is_left_to_it() -> None:
    told: list[Event] = []
    check(subject({"usr/lib/os-release": None}), "image", Linting(), told.append)
    assert told == []
    with pytest.raises(LintError, match="os-release"):
        check(subject({"usr/lib/os-release": None}), "image", Linting(strict=True), told.append)


def test_what_a_conversion_does_too_is_not_done_twice_unless_it_may_stop_it() -> None:
    told: list[Event] = []
    changes: Changes = {"etc/selinux/targeted/": b""}
    check(subject(changes), "image", Linting(), told.append)
    assert told == []
    with pytest.raises(LintError, match="selinux-policy"):
        check(subject(changes), "image", Linting(strict=True), told.append)


def test_what_a_conversion_refuses_comes_before_what_it_warns_of(tmp_path: Path) -> None:
    """P.12: six warnings in a row hid the one error."""
    told: list[Event] = []
    hopeless = {**BAD, "usr/lib/os-release": None}
    warnings = check(subject(hopeless), "image", Linting(), told.append)
    assert (told, [one.lint for one in warnings]) == ([], ["init", "systemd", "nonempty-run-tmp"])
    layout = Layout(tmp_path / "layout")
    without = {f"usr/lib/modules/{KVER}/.wh.{name}": b"" for name in ("vmlinuz", "initramfs.img")}
    add_image(layout, [*base(), tar({"tmp/left over": b""})], "warned")
    add_image(layout, [*base(), tar({"tmp/left over": b"", **without})], "refused")

    def said(tag: str) -> list[str | None]:
        told.clear()
        source = Reference.parse(f"oci:{layout.path}:{tag}")
        with suppress(ImageError):
            boot = BootOptions(ukify="builtin")
            convert(ConvertRequest(source=source, repo=tmp_path / "repo", name="x", boot=boot), told.append)
        return [event.lint for event in told if isinstance(event, Warned) and event.lint]

    assert "nonempty-run-tmp" in said("warned")
    assert said("refused") == []


def test_notes_never_fail() -> None:
    linted = run_lints(subject({"etc/kernel/cmdline": b"rw\n"}), "image")
    assert [finding.lint.name for finding in linted.findings] == ["console"]
    assert linted.to_json()["ok"] is True


def test_what_a_conversion_refuses_is_an_error_but_where_the_check_is_a_note() -> None:
    changes: Changes = {f"{EFI}/linuxx64.efi.stub": None, "usr/lib/sysusers.d/a.conf": b'u "root\n'}
    linted = run_lints(subject(changes), "image")
    assert [(one.lint.name, one.lint.severity, one.severity) for one in linted.findings] == [
        ("sysusers", "note", "note"),
        ("systemd-stub", "warning", "error"),
    ]


def test_findings_are_sarif() -> None:
    """P.12; the witness is the schema of SARIF 2.1.0, as pydantic-sarif has it."""
    log = json.loads(json.dumps(to_sarif(run_lints(subject(BAD), "oci:image:latest"))))
    parsed = Sarif.model_validate(log)
    (run,) = parsed.runs
    assert run.results
    assert run.tool.driver.rules
    for result in run.results:
        assert run.tool.driver.rules[result.ruleIndex or 0].id == result.ruleId
    levels = {result["ruleId"]: result["level"] for result in log["runs"][0]["results"]}
    assert levels == {"init": "error", "systemd": "warning", "nonempty-run-tmp": "warning", "console": "note"}
    (result,) = (one for one in log["runs"][0]["results"] if one["ruleId"] == "nonempty-run-tmp")
    (place,) = result["locations"]
    assert place == {"physicalLocation": {"artifactLocation": {"uri": "tmp/left%20over", "uriBaseId": "IMAGE"}}}
