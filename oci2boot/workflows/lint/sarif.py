"""Findings as a SARIF log, which code hosts and editors show. OASIS SARIF 2.1.0."""

from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import quote

from oci2boot import __version__
from oci2boot.workflows.lint.model import Finding, Lint
from oci2boot.workflows.lint.run import Linted

SCHEMA: Final = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
MAX_LOCATIONS: Final = 100
"""Of one result; viewers show few."""
ROOT: Final = "IMAGE"
"""uriBaseId: the root of the image (section 3.4.4)."""


def to_sarif(linted: Linted) -> dict[str, Any]:
    """Return one run: the rules that were applied, and a result for each finding."""
    rules = {lint.name: number for number, lint in enumerate(linted.ran)}
    driver = {"name": "oci2boot", "version": __version__, "rules": [_rule(lint) for lint in linted.ran]}
    run = {
        "tool": {"driver": driver},
        "automationDetails": {"description": {"text": linted.subject}},
        "columnKind": "unicodeCodePoints",
        "results": [_result(finding, rules[finding.lint.name]) for finding in linted.findings],
    }
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}


def _rule(lint: Lint) -> dict[str, Any]:
    return {
        "id": lint.name,
        "shortDescription": {"text": lint.what},
        "help": {"text": lint.hint},
        "defaultConfiguration": {"level": lint.severity},
    }


def _result(finding: Finding, rule: int) -> dict[str, Any]:
    return {
        "ruleId": finding.lint.name,
        "ruleIndex": rule,
        "level": finding.severity,
        "message": {"text": f"{finding.sentence}; {finding.hint}"},
        "locations": _locations(finding.paths or ("/",)),
    }


def _locations(paths: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {"physicalLocation": {"artifactLocation": {"uri": quote(path.lstrip("/") or "."), "uriBaseId": ROOT}}}
        for path in paths[:MAX_LOCATIONS]
    ]
