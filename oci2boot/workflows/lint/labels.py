"""Where bootc and composefs-rs label files differently than libselinux does, and so compute another digest."""

from collections.abc import Iterator
from typing import Final

from oci2boot.errors import Error
from oci2boot.formats.file_contexts.policy import Policy
from oci2boot.formats.tar import printable
from oci2boot.tree.files import Read, find_file
from oci2boot.tree.model import Directory
from oci2boot.tree.prepare import prepare_for_boot
from oci2boot.tree.selinux import CONFIG, disagreements, load_policy
from oci2boot.workflows.lint.model import Found, Lint, Subject

NAMED: Final = 5
"""Paths that a warning names; it counts the others."""


def rule_notes(merged: Directory, tree: Directory, policy: Policy | None, read: Read) -> Iterator[str]:
    """Yield what there is to say; `tree` is the merged one in the form that boots, `policy` by libselinux's rules."""
    try:
        others = load_policy(merged, read, "composefs-rs")
    except Error as error:
        yield f"bootc and composefs-rs refuse the image's SELinux policy: {error.message}"
        return
    if found := disagreements(tree, policy, others):
        paths = ", ".join(printable(path) for path, _, _ in found[:NAMED])
        more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
        yield (
            f"bootc and composefs-rs label {paths}{more} differently, and compute another digest; "
            "--selinux-rules composefs-rs gives theirs"
        )


def _rules(subject: Subject) -> Iterator[Found]:
    if not find_file(subject.tree, CONFIG):
        return
    try:
        policy, _ = subject.policy
    except Error:  # the check of the policy says so
        return
    tree = prepare_for_boot(subject.tree, lambda _: None)
    yield from map(Found, rule_notes(subject.tree, tree, policy, subject.read))


LINTS: Final = (
    Lint(
        name="selinux-rules",
        severity="warning",
        what="bootc and composefs-rs would label every file as libselinux does.",
        hint="--selinux-rules composefs-rs, where their digest is wanted",
        check=_rules,
        repeated=True,
    ),
)
