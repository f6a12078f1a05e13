"""Typer commands from options: each field of an Options dataclass becomes an option of the command."""

import inspect
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from types import GenericAlias
from typing import Annotated, Any, get_args, get_origin

import typer

from mertool.cli.config import config_reader
from mertool.errors import MertoolError
from mertool.options import Option, Options, options_of

Command = Callable[..., None]


def add_command(
    app: typer.Typer,
    name: str,
    function: Command,
    *,
    example: str,
    help: str | None = None,
    fixed: dict[str, Any] | None = None,
) -> None:
    """Add a function to `app` as command `name`, with an example below its help (default: its docstring).

    A parameter of the function that is annotated with an Options class is replaced by one option per field, and the
    command gets `--config FILE`. `fixed` are values of fields that the command itself sets. Faults of the options are
    reported before the function is called.
    """
    app.command(name, help=help, epilog=example)(_expand(function, name, fixed or {}))


def _expand(function: Command, name: str, fixed: dict[str, Any]) -> Command:
    """Return a function of the single options that calls `function` with the Options object."""
    signature = inspect.signature(function, eval_str=True)
    stages = {
        parameter.name: parameter.annotation for parameter in signature.parameters.values() if _is_stage(parameter)
    }
    if not stages:
        return function
    ((argument, stage),) = stages.items()
    options = options_of(stage, name)

    @wraps(function)
    def run(**values: Any) -> None:
        values.pop("config")
        chosen = {one.name: _read(one, values.pop(one.name)) for one in options}
        function(**{argument: stage(**chosen, **fixed)}, **values)

    parameters: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        expanded = [*map(_parameter, options), _config(options)] if parameter.name == argument else [parameter]
        parameters += [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in expanded]
    # Typer reads the signature and the annotations of a function.
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _is_stage(parameter: inspect.Parameter) -> bool:
    return isinstance(parameter.annotation, type) and issubclass(parameter.annotation, Options)


def _parameter(one: Option) -> inspect.Parameter:
    """The parameter of the command, annotated for Typer."""
    is_flag = one.value_types == (bool,)
    decoration = typer.Option(
        f"{one.flag}/--no-{one.flag[2:]}" if is_flag else one.flag,
        help=one.full_help,
        metavar=one.metavar,
        show_default=_shown_default(one),
        rich_help_panel=one.group,
    )
    default = one.default_text if one.parse else None if one.default == () else one.default
    annotation = Annotated[_annotation(one), decoration]  # type: ignore[valid-type]
    return inspect.Parameter(one.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _annotation(one: Option) -> Any:
    """The type that Typer reads: text where the option parses it itself."""
    optional = one.default is None or one.default == ()
    kind: Any = str if one.parse else one.value_types[0]
    if get_origin(kind) is tuple:
        kind = GenericAlias(list, get_args(kind)[:1])
    return kind | None if optional else kind


def _shown_default(one: Option) -> bool | str:
    if one.default_text is None:
        return str(one.default_help or "") or False
    # With spaces, because a narrow terminal would cut a long word.
    return one.default_text.replace(",", ", ") if "," in one.default_text else True


def _read(one: Option, value: Any) -> Any:
    """The value of one option; a number outside a range with closed ends is a usage error."""
    if value is None:
        return one.default
    if one.parse:
        value = one.parse(value)
    if one.is_closed_range:
        try:
            one.check_range(value)
        except MertoolError as error:
            message = str(error).removeprefix(f"{one.flag} ")
            raise typer.BadParameter(message, param_hint=f"'{one.flag}'") from error
    return value


def _config(options: Sequence[Option]) -> inspect.Parameter:
    """The parameter `--config`: eager, so that the file is read before the other options get their values."""
    decoration = typer.Option(
        metavar="FILE",
        help="TOML file with values of these options; the command line takes precedence.",
        is_eager=True,
        callback=config_reader(options),
    )
    annotation = Annotated[Path | None, decoration]
    return inspect.Parameter("config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
