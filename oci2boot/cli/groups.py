"""Commands whose parameters are groups of options: dataclasses, whose fields say how they are said.

A parameter of a command is one option, `Annotated[…, Option(…)]`, or a dataclass with such fields; `Only` takes some of
them. A group that may be None is None as long as none of its options is given.
"""

import inspect
import keyword
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from functools import partial, wraps
from typing import Annotated, Any, Final, TypeVar, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperCommand

from oci2boot.errors import Error
from oci2boot.workflows.options import Option, option_of, without_none

PYDANTIC: Final = "Value error, "

Function = TypeVar("Function", bound=Callable[..., None])


class Only:
    """The fields of a group that a command has."""

    def __init__(self, *names: str) -> None:
        self.names = names


class Said(Only):
    """The fields of a group that a command has, where it matters which of them are said: it gets these alone."""

    def __init__(self, group: type, *names: str) -> None:
        super().__init__(*names)
        self.group = group


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One option or argument, as Typer and `oci2boot.toml` know it."""

    field: str
    """What it is called in its group."""
    option: Option
    type: Any
    """bool, int, float, str, Path, or a Literal."""
    many: bool
    required: bool
    default: Any
    panel: str | None

    @property
    def name(self) -> str:
        name = self.option.key.replace("-", "_")
        return f"{name}_" if keyword.iskeyword(name) else name

    def for_typer(self, *, optional: bool) -> inspect.Parameter:
        option, default = self.option, self.default
        kind = list[self.type] if self.many else self.type  # type: ignore[name-defined]
        if self.many or not option.shown:
            default = None
        elif option.parse and default is not None:
            default = str(default).lower()
        if self.required and not optional:
            default = inspect.Parameter.empty
        elif default is None:
            kind = kind | None
        make: Callable[..., Any] = typer.Argument if option.positional else typer.Option
        words = make(
            *(word for word in (option.name, option.short) if word and not option.positional),
            help=option.help or None,
            metavar=option.metavar,
            envvar=option.env,
            min=option.least,
            max=option.most,
            autocompletion=option.complete,
            rich_help_panel=self.panel,
        )
        return inspect.Parameter(
            self.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, words]
        )

    def value(self, given: Any) -> Any:
        """Return what the field is to hold, None where nothing was given."""
        if given is None or (self.many and not given):
            return self.option.default() if self.option.default else None
        parse = self.option.parse or (lambda one: one)
        return tuple(map(parse, given)) if self.many and not self.option.many else parse(given)


@dataclass(frozen=True, slots=True)
class Group:
    """A parameter of a command's function."""

    name: str
    members: tuple[Parameter, ...]
    make: Callable[..., Any]
    """The dataclass; without members, a type that Typer knows."""
    optional: bool = False

    def for_typer(self) -> Iterator[inspect.Parameter]:
        if not self.members:
            yield inspect.Parameter(self.name, inspect.Parameter.KEYWORD_ONLY, annotation=self.make)
        for one in self.members:
            yield one.for_typer(optional=self.optional)

    def take(self, given: Mapping[str, Any]) -> Any:
        """Return what the function gets. Raises `Error` where a member is missing that the others need."""
        if not self.members:
            return given[self.name]
        found = {one.field: value for one in self.members if (value := one.value(given[one.name])) is not None}
        if self.optional and not found:
            return None
        for one in self.members:
            if one.required and one.field not in found:
                raise Error(one.option.missing or f"{one.option.name} is missing", hint=f"name it by {one.option.name}")
        return self.make(**found)


class Command(TyperCommand):
    """A command whose errors do not begin with Pydantic's prefix, by which newer Typers parse."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as error:
            error.message = error.message.removeprefix(PYDANTIC)
            raise


def groups_of(function: Callable[..., None]) -> Iterator[Group]:
    """Yield the parameters of a command's function, as it was written or as Typer has it."""
    function = inspect.unwrap(function)
    hints = get_type_hints(function, include_extras=True)
    for name, parameter in inspect.signature(function).parameters.items():
        kind, extras, optional = _taken_apart(hints[name])
        default = MISSING if parameter.default is inspect.Parameter.empty else parameter.default
        if single := _parameter(name, hints[name], default, None):
            yield Group(name, (single,), partial(_only_value, name, default))
        elif choice := next((one for one in extras if isinstance(one, Said)), None):
            members = (replace(one, default=None) for one in _members(choice.group, (choice,)))
            yield Group(name, tuple(members), dict)
        elif isinstance(kind, type) and is_dataclass(kind):
            yield Group(name, tuple(_members(kind, extras)), kind, optional=optional)
        else:
            yield Group(name, (), kind)


def parameters_of(function: Callable[..., None]) -> Iterator[Parameter]:
    """Yield each option and argument of a command."""
    for group in groups_of(function):
        yield from group.members


def command(app: typer.Typer, name: str | None = None, panel: str | None = None) -> Callable[[Function], Function]:
    """Make a command of a function, which itself stays as it is."""

    def add(function: Function) -> Function:
        app.command(name, cls=Command, rich_help_panel=panel)(_expanded(function))
        return function

    return add


def _expanded(function: Callable[..., None]) -> Callable[..., None]:
    """Return a function for Typer, with a parameter for each option."""
    groups = tuple(groups_of(function))

    @wraps(function)
    def run(**given: Any) -> None:
        function(**{group.name: group.take(given) for group in groups})

    parameters = [one for group in groups for one in group.for_typer()]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    return run


def _members(group: type, extras: Sequence[Any]) -> Iterator[Parameter]:
    hints = get_type_hints(group, include_extras=True)
    found: dict[str, Parameter] = {}
    for field in fields(group):
        default = None if field.default_factory is not MISSING else field.default
        if member := _parameter(field.name, hints[field.name], default, getattr(group, "PANEL", None)):
            found[field.name] = member
    wanted = next((one.names for one in extras if isinstance(one, Only)), found)
    assert set(wanted) <= set(found), wanted
    yield from (member for name, member in found.items() if name in wanted)


def _parameter(name: str, hint: Any, default: Any, panel: str | None) -> Parameter | None:
    option = option_of(hint)
    if option is None:
        return None
    kind, _, _ = _taken_apart(hint)
    several = get_origin(kind) is tuple
    return Parameter(
        field=name,
        option=option,
        type=option.type or (str if option.parse else get_args(kind)[0] if several else kind),
        many=several or option.many,
        required=default is MISSING and option.default is None,
        default=None if default is MISSING else default,
        panel=panel,
    )


def _taken_apart(hint: Any) -> tuple[Any, Sequence[Any], bool]:
    """Return a hint's type, what is annotated, and whether it may be None as well."""
    extras: Sequence[Any] = ()
    if get_origin(hint) is Annotated:
        hint, *extras = get_args(hint)
    kind, optional = without_none(hint)
    return kind, extras, optional


def _only_value(name: str, default: Any, /, **found: Any) -> Any:
    return found.get(name, default)
