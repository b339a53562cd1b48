"""`oci2boot.toml`: every option of every command, in a table of the command's name; and one run of what it describes.

TOML 1.0; the schema is of JSON Schema 2020-12, for editors that complete and check.
"""

import tomllib
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args, get_origin

import typer

from oci2boot.cli.app import app
from oci2boot.cli.groups import Parameter, parameters_of
from oci2boot.cli.output import out, print_json
from oci2boot.errors import Error, FormatError
from oci2boot.workflows.options import Option

FILE: Final = "oci2boot.toml"
MAX_FILE: Final = 1 << 20
STEPS: Final = ("convert", "install")
"""What `build` runs."""


def settings_of(command: Callable[..., None]) -> dict[str, Parameter]:
    """Return what a command takes, by the name that stands in the file: an option's, without dashes before it."""
    return {one.option.key: one for one in parameters_of(command)}


def commands_of(app: typer.Typer) -> Iterator[tuple[tuple[str, ...], Callable[..., None]]]:
    """Yield (name, function) of each command; one of a group has the group's name before its own."""
    for command in app.registered_commands:
        assert command.callback
        yield (command.name or command.callback.__name__.replace("_", "-"),), command.callback
    for group in app.registered_groups:
        assert group.typer_instance
        for name, function in commands_of(group.typer_instance):
            yield (str(group.name or group.typer_instance.info.name), *name), function


def schema_of(app: typer.Typer) -> dict[str, Any]:
    """Return the schema of the file."""
    top: dict[str, Any] = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": FILE,
        **_table({}),
    }
    for names, function in commands_of(app):
        at = top["properties"]
        for name in names[:-1]:
            at = at.setdefault(name, _table({}))["properties"]
        at[names[-1]] = _table({name: _property(one) for name, one in settings_of(function).items()})
    return top


def _table(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _property(setting: Parameter) -> dict[str, Any]:
    if get_origin(setting.type) is Literal:
        values = list(get_args(setting.type))
        kind: dict[str, Any] = {"enum": values}
    else:
        kind = {"type": {bool: "boolean", int: "integer", float: "number"}.get(setting.type, "string")}
    if setting.many:
        kind = {"type": "array", "items": kind}
    return {**kind, "description": setting.option.help} if setting.option.help else kind


def read_config(path: Path, app: typer.Typer) -> dict[str, Any]:
    """Return the defaults of each command. Raises `FormatError` for what no command has; paths are beside the file."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE + 1)
        if len(data) > MAX_FILE:
            raise FormatError(f"{path} has more than {MAX_FILE} bytes")
        document = tomllib.loads(data.decode())
    except OSError as error:
        raise Error(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} is not TOML: {error}") from error
    known = dict(commands_of(app))
    defaults: dict[str, Any] = {}
    for names, values in _tables(document, {name[:-1] for name in known}, (), path):
        if names not in known:
            raise _unknown(path, " ".join(names), {" ".join(name) for name in known}, "command")
        at = defaults
        for name in names[:-1]:
            at = at.setdefault(name, {})
        at[names[-1]] = _values(values, settings_of(known[names]), path, " ".join(names))
    return defaults


def _tables(
    table: Mapping[str, Any], groups: set[tuple[str, ...]], names: tuple[str, ...], path: Path
) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]:
    for name, value in table.items():
        here = (*names, name)
        if not isinstance(value, dict):
            raise FormatError(f"{path}: {'.'.join(here)} is no table", hint="options stand in a table: [convert]")
        if here in groups:
            yield from _tables(value, groups, here, path)
        else:
            yield here, value


def _values(values: Mapping[str, Any], settings: Mapping[str, Parameter], path: Path, command: str) -> dict[str, Any]:
    found = {}
    for name, value in values.items():
        setting = settings.get(name)
        if setting is None:
            raise _unknown(path, name, set(settings), f"option of {command}")
        what = f"{path}: {name} of {command}"
        if setting.many:
            if not isinstance(value, list):
                raise FormatError(f"{what} is not a list", hint=f'{name} = ["…"]')
            found[setting.name] = [_value(one, setting, path, what) for one in value]
        else:
            found[setting.name] = _value(value, setting, path, what)
    return found


def _value(value: Any, setting: Parameter, path: Path, what: str) -> Any:
    kind = setting.type
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise FormatError(f"{what} is {value!r}", hint=f"it is one of {', '.join(map(str, get_args(kind)))}")
        return value
    wanted = kind if kind in (bool, int, float) else str
    if type(value) is not wanted:
        raise FormatError(f"{what} is {value!r}, it should be of type {wanted.__name__}")
    return str(path.parent / value) if kind is Path else value


def _unknown(path: Path, name: str, known: set[str], what: str) -> FormatError:
    near = get_close_matches(name, known, 1)
    hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(known))}"
    return FormatError(f"{path}: {name} is no {what}", hint=hint)


def build(
    *, context: typer.Context, dry_run: Annotated[bool, Option("--dry-run", "only say what would be run")] = False
) -> None:
    """Convert and install as oci2boot.toml (or --config FILE) says: root file system, UKI and disk in one run."""
    root = context.find_root()
    if root.default_map is None:
        root.default_map = read_config(Path(FILE), app)
    steps = [step for step in STEPS if step in root.default_map]
    if not steps:
        raise Error("the configuration has neither [convert] nor [install]", hint=f"see {FILE} in the README")
    group = typer.main.get_command(app)
    for step in steps:
        words = ["--dry-run"] if dry_run and step == "install" else []
        if dry_run and step != "install":
            out.print(f"would run: oci2boot {step}")
            continue
        command = group.get_command(root, step)  # type: ignore[attr-defined]
        with command.make_context(step, words, parent=root) as inner:
            command.invoke(inner)


def config(
    *, check: Annotated[Path | None, Option("--check", "only check this file, and say what is wrong with it")] = None
) -> None:
    """Print the schema of oci2boot.toml, for editors."""
    if check:
        read_config(check, app)
    else:
        print_json(schema_of(app))
