"""Below the workflows, errors speak of things; the command line names the option, and the option is one that it has."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from oci2boot import errors
from oci2boot.cli.hints import OPTIONS, hint_of
from oci2boot.cli.main import app
from oci2boot.errors import EncryptedError, Error, HashError, ToolError
from tests.cli.conftest import Run

FLOOR = ("formats", "tree", "rootfs", "boot", "oci", "store", "target", "sysroot", "system", "digest.py", "errors.py")
ROOT = Path(errors.__file__).parent
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")
OTHERS = re.compile(r"(make it without|`unshare|ukify) --|\n")
"""Words about other programs, and what is written for them."""


def options(command: Any) -> Iterator[str]:
    for parameter in command.params:
        yield from (name for name in (*parameter.opts, *parameter.secondary_opts) if name.startswith("--"))
    for inner in getattr(command, "commands", {}).values():
        yield from options(inner)


KNOWN = set(options(typer.main.get_command(app)))


def test_every_error_with_a_way_out_has_its_option() -> None:
    families = Error.__subclasses__()
    special = {kind for family in families for kind in family.__subclasses__() if kind.__module__ == errors.__name__}
    assert special == OPTIONS.keys()


@pytest.mark.parametrize("kind", OPTIONS)
def test_the_options_are_those_that_there_are(kind: type[Error]) -> None:
    named = OPTION.findall(OPTIONS[kind])
    assert named
    assert set(named) <= KNOWN


def sentences(tree: ast.AST) -> Iterator[str]:
    """Yield the text in a module that is no docstring, and no word for another program."""
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        match node:
            case ast.Constant(value=str(text)) if (
                " " in text and id(node) not in docstrings and not OTHERS.search(text)
            ):
                yield from [text] if not OTHERS.search(text) else []


def test_no_words_below_the_workflows_are_about_an_option() -> None:
    wrong = []
    for name in FLOOR:
        for path in [ROOT / name] if name.endswith(".py") else sorted((ROOT / name).rglob("*.py")):
            for text in sentences(ast.parse(path.read_text())):
                wrong += [f"{path.relative_to(ROOT)}: {text}" for option in OPTION.findall(text) if option in KNOWN]
    assert wrong == []


def test_the_option_follows_what_the_error_says() -> None:
    assert hint_of(HashError("m", hint="use another store")) == "use another store. --hash and --repo say so"
    assert hint_of(HashError("m", hint="is it another?")) == "is it another? --hash and --repo say so"
    assert hint_of(EncryptedError("m")) == "--luks-passphrase-file FILE"
    assert hint_of(ToolError("m", hint="install it")) == "install it"
    assert hint_of(ToolError("m")) is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("convert", "x", "--flow", "wrong"), "'wrong' is not one of 'auto'"),
        (("convert", "x", "--erofs-version", "7"), "--erofs-version"),
        (("uki", "build", "--rootfs", "x", "--loader", "wrong"), "'wrong' is not one of"),
    ],
)
def test_a_wrong_choice_is_told_without_words_of_a_library(words: tuple[str, ...], said: str, run: Run) -> None:
    """Typer 0.20 and newer parse by Pydantic, which says `Value error,` first."""
    status, _, shown = run(*words)
    text = " ".join(shown.replace("│", " ").split())
    assert (status, said in text) == (2, True)
    assert "Value error" not in text


def test_a_name_that_may_be_meant_otherwise_is_told_of(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """P.2: one word is a name of Docker Hub, and people mean a folder here, or their own registry."""
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    for word, path, image in (("demo", "demo", "demo:latest"), ("demo:1", "demo", "demo:1")):
        status, _, shown = run("convert", word, "--quiet")
        hint = f"one of Docker Hub. ./{path} is a path, localhost:5000/{image} is in a registry of this machine"
        assert (status, hint in " ".join(shown.split())) == (1, True), shown
    assert "Docker Hub" not in run("convert", "quay.invalid/demo", "--quiet")[2]


def test_it_is_shown(run: Run, tmp_path: Path) -> None:
    status, _, shown = run("status", "--sysroot", tmp_path)
    assert status == 1
    assert "hint: name the physical root of one that was. --sysroot DIR --esp DIR say where it is" in " ".join(
        shown.split()
    )
