"""Groups of options: what the fields say is what Typer, the file's schema and the command's function get."""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from shlex import split
from typing import Annotated, Any, ClassVar

import pytest
import typer
from typer.testing import CliRunner

from oci2boot.cli.config import schema_of
from oci2boot.cli.groups import Only, command
from oci2boot.cli.main import app
from oci2boot.errors import Error
from oci2boot.workflows.options import Option, parse_bool, parse_size, said


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    PANEL: ClassVar = "Disks"

    path: Annotated[Path, Option("PATH", "where it is")]
    size: Annotated[int | None, Option("--size", "of it", parse=parse_size)] = None
    labels: Annotated[tuple[str, ...], Option("--label", "may be repeated")] = ()
    sparse: Annotated[bool, Option("--sparse/--full", "leave holes")] = True
    check: Annotated[bool, Option("--check", "read it", parse=parse_bool)] = True
    rules: Annotated[list[str], Option("--rule", parse=sorted, many=True)] = field(default_factory=list)
    inner: str = "nobody says it"


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    file: Annotated[Path, Option("--key", missing="a key is missing")]
    word: Annotated[str | None, Option("--word", short="-w")] = None


def called(function: Any, *words: str) -> Any:
    """Run a command of its own and return what its function was given, or the error."""
    application, given = typer.Typer(), dict[str, Any]()

    def record(**arguments: Any) -> None:
        given.update(arguments)

    record.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
    record.__annotations__ = function.__annotations__
    command(application)(record)
    done = CliRunner().invoke(application, words)
    return given if done.exit_code == 0 else done.exception if isinstance(done.exception, Error) else done


def one(*, disk: Disk, key: Key | None, force: Annotated[bool, Option("--force")] = False) -> None:
    """Take all of it."""


def part(
    *, disk: Annotated[Disk, Only("path", "labels")], name: Annotated[str | None, Option("--name")] = None
) -> None:
    """Take some of it."""


def test_a_group_is_its_dataclass() -> None:
    words = split("disk.raw --size 4k --label a --label b --full --check no --rule 2 --rule 1 --force")
    assert called(one, *words) == {
        "disk": Disk(path=Path("disk.raw"), size=4096, labels=("a", "b"), sparse=False, check=False, rules=["1", "2"]),
        "key": None,
        "force": True,
    }
    assert called(one, "x") == {"disk": Disk(path=Path("x")), "key": None, "force": False}


def test_a_group_may_be_none_but_not_half_of_one() -> None:
    assert called(one, "x", "--key", "k", "-w", "w")["key"] == Key(file=Path("k"), word="w")
    lacking = called(one, "x", "--word", "w")
    assert (lacking.message, lacking.hint) == ("a key is missing", "name it by --key")


def test_a_command_may_have_a_part_of_a_group() -> None:
    assert called(part, "x", "--label", "a") == {"disk": Disk(path=Path("x"), labels=("a",)), "name": None}
    assert called(part, "x", "--size", "4k").exit_code == 2
    with pytest.raises(AssertionError, match="pth"):
        command(typer.Typer())(wrong)


def wrong(*, disk: Annotated[Disk, Only("pth")]) -> None: ...


def test_two_options_of_one_name_are_seen_at_once() -> None:
    def twice(*, disk: Disk, size: Annotated[str | None, Option("--size")] = None) -> None: ...

    with pytest.raises(ValueError, match="duplicate"):
        command(typer.Typer())(twice)


def test_what_was_said_is_what_is_not_so_by_default() -> None:
    assert said(Disk(path=Path("x"))) == ["PATH"]
    assert said(Disk(path=Path("x"), size=1, sparse=False, inner="other")) == ["PATH", "--size", "--sparse"]


def options_of_typer(group: Any, names: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], set[str]]]:
    """Yield each command's name and options as Typer itself has them, as they would stand in the file."""
    for name, inner in group.commands.items():
        if hasattr(inner, "commands"):
            yield from options_of_typer(inner, (*names, name))
        else:
            found = {max(one.opts, key=len).removeprefix("--").replace("_", "-") for one in inner.params}
            yield (*names, name), found - {"help"}


def test_each_option_that_typer_knows_is_in_the_schema() -> None:
    """K1.3: and no other."""
    schema = schema_of(app)
    commands = dict(options_of_typer(typer.main.get_command(app)))
    assert {("convert",), ("uki", "sign")} <= set(commands)
    for names, options in commands.items():
        at = schema
        for name in names:
            at = at["properties"][name]
        assert set(at["properties"]) == options, names


def test_options_are_in_their_panels() -> None:
    shown = CliRunner().invoke(app, ["convert", "--help"], env={"COLUMNS": "120"}).output
    signing, verity = shown.partition("─ Signing ─")[2], shown.partition("─ Mode verity ─")[2]
    assert "--secureboot-key" in signing.partition("╰")[0]
    assert "--overlay" in verity.partition("╰")[0]
    assert "--kver" not in signing.partition("╰")[0] + verity.partition("╰")[0]
