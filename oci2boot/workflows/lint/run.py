"""The checks, and what a conversion or an installation makes of what they find."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Final

from oci2boot.errors import Error, FormatError, LintError
from oci2boot.workflows.lint import firmware, initramfs, kernels, labels, root, state
from oci2boot.workflows.lint.model import Finding, Found, Lint, Severity, Subject, finding_of
from oci2boot.workflows.progress import Report, Warned
from oci2boot.workflows.requests import Linting

_FAMILIES: Final = (root.LINTS, state.LINTS, labels.LINTS, kernels.LINTS, initramfs.LINTS, firmware.LINTS)
LINTS: Final[tuple[Lint, ...]] = tuple(lint for family in _FAMILIES for lint in family)


@dataclass(frozen=True, slots=True)
class Linted:
    """What was looked at, and what was found, in the order of the checks."""

    subject: str
    ran: tuple[Lint, ...]
    findings: tuple[Finding, ...]

    @property
    def failures(self) -> Sequence[Finding]:
        """What is more than a note."""
        return [finding for finding in self.findings if finding.severity != "note"]

    def to_json(self) -> dict[str, Any]:
        return {
            "subject": self.subject,
            "checks": [lint.name for lint in self.ran],
            "findings": [finding.to_json() for finding in self.findings],
            "ok": not self.failures,
        }


def lints_of(skip: Iterable[str] = ()) -> list[Lint]:
    """Return all checks but these; `FormatError` for a name that none has."""
    names = [lint.name for lint in LINTS]
    skipped = set(skip)
    for name in sorted(skipped.difference(names)):
        near = get_close_matches(name, names, 1)
        raise FormatError(f"there is no check {name}", hint=f"did you mean {near[0]}?" if near else "see `lint --list`")
    return [lint for lint in LINTS if lint.name not in skipped]


def run_lints(subject: Subject, name: str, skip: Iterable[str] = ()) -> Linted:
    """Run every check that there is for what is looked at; none of them raises."""
    lints = [lint for lint in lints_of(skip) if subject.stage == "source" or lint.stage == "root"]
    findings = [finding for lint in lints for finding in _findings(lint, subject)]
    return Linted(name, tuple(lints), tuple(findings))


def _findings(lint: Lint, subject: Subject) -> Iterator[Finding]:
    try:
        for found in lint.check(subject):
            yield finding_of(lint, found)
    except Error as error:
        # What a conversion refuses is no mere warning.
        severity: Severity = "note" if lint.severity == "note" else "error"
        yield finding_of(lint, Found(error.message, hint=error.hint, severity=severity, later=True))


def check(subject: Subject, name: str, linting: Linting, report: Report) -> Sequence[Warned]:
    """Warn of what the checks find, or with `strict` refuse it; what a conversion says or refuses itself is left to it.

    Where it is about to refuse something, that should be seen first: the warnings are returned, to be told if it does
    not. Raises `LintError`.
    """
    repeated = () if linting.strict else (lint.name for lint in LINTS if lint.repeated)
    failures = run_lints(subject, name, {*linting.skip, *repeated}).failures
    found = [finding for finding in failures if linting.strict or not finding.later]
    warnings = [Warned(finding.sentence, finding.lint.name) for finding in found]
    if not linting.strict and any(finding.later and finding.severity == "error" for finding in failures):
        return warnings
    for warning in warnings:
        report(warning)
    if found and linting.strict:
        names = ", ".join(dict.fromkeys(finding.lint.name for finding in found))
        raise LintError(
            f"{name} should pass every check, and fails {len(found)}: {names}",
            hint=f"{found[0].hint}; `oci2boot lint` says more",
        )
    return ()
