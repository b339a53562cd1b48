"""A clone stands alone: nothing in it needs, or tells of, what lies around it on somebody's machine."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
_AROUND = re.compile(r"\.\./shared|(?:^|[\s\"'`=(:])(?:/home|/Users)/\w+/", re.MULTILINE)
_UP = re.compile(r"__file__\)(?:\.resolve\(\))?(?:\.parents\[(\d+)\]|((?:\.parent\b)+))")
_LINK = re.compile(r"\]\(([^)\s:#]+)(?:#[^)\s]*)?\)")


def texts(*endings: str) -> Iterator[tuple[Path, str]]:
    """Yield the files of the project, from its root, with their text; other implementations' answers are no text."""
    argv = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(argv, check=True, capture_output=True, text=True).stdout.split("\0"):
        path = ROOT / name
        if path.is_file() and not name.startswith("tests/vectors/") and name.endswith(endings or ("",)):
            yield Path(name), path.read_text()


def test_no_file_names_what_lies_around_the_clone() -> None:
    assert [(str(name), found) for name, text in texts() if (found := _AROUND.findall(text))] == []


def test_no_module_looks_for_files_outside_of_it() -> None:
    """`parents[N]` of a module N folders deep is the project; one more is the folder that it was cloned into."""
    for name, text in texts(".py"):
        for number, parents in _UP.findall(text):
            steps = int(number) + 1 if number else parents.count(".parent")
            assert steps <= len(name.parts), name


def test_links_between_documents_lead_somewhere() -> None:
    for name, text in texts(".md"):
        for link in _LINK.findall(text):
            assert (ROOT / name.parent / link).exists(), f"{name}: {link}"
