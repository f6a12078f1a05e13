"""Typer commands from options: each field of an Options dataclass becomes an option of the command."""

import inspect
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from types import GenericAlias
from typing import Annotated, Any, get_args, get_origin

import typer

from mertool.cli.config import config_reader
from mertool.cli.console import printed_warnings
from mertool.cli.help import HelpCommand
from mertool.cli.preflight import check_before_torch
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
    command = printed_warnings()(_expand(function, name, fixed or {}))
    app.command(name, cls=HelpCommand, help=help, epilog=example)(command)


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
        chosen = {option.name: _read(option, values.pop(option.name)) for option in options}
        options_of_stage = stage(**chosen, **fixed)
        check_before_torch(options_of_stage, values.get("output"))
        function(**{argument: options_of_stage}, **values)

    parameters: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        parameters += [*map(_parameter, options), _config(options)] if parameter.name == argument else [parameter]
    # Typer reads the signature and the annotations, and calls with keywords.
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _is_stage(parameter: inspect.Parameter) -> bool:
    return isinstance(parameter.annotation, type) and issubclass(parameter.annotation, Options)


def _parameter(option: Option) -> inspect.Parameter:
    """The parameter of the command, annotated for Typer."""
    is_flag = option.value_types == (bool,)
    decoration = typer.Option(
        f"{option.flag}/--no-{option.flag[2:]}" if is_flag else option.flag,
        help=option.full_help,
        metavar=option.metavar,
        show_default=_shown_default(option),
        rich_help_panel=option.group,
    )
    default = option.default_text if option.parse else None if option.default == () else option.default
    annotation = Annotated[_annotation(option), decoration]  # type: ignore[valid-type]
    return inspect.Parameter(option.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _annotation(option: Option) -> Any:
    """The type that Typer reads: text where the option parses it itself."""
    optional = option.default is None or option.default == ()
    kind: Any = str if option.parse else option.value_types[0]
    if get_origin(kind) is tuple:
        kind = GenericAlias(list, get_args(kind)[:1])
    return kind | None if optional else kind


def _shown_default(option: Option) -> bool | str:
    if option.default_text is None:
        return str(option.default_help or "") or False
    # With spaces, because a narrow terminal would cut a long word.
    return option.default_text.replace(",", ", ") if "," in option.default_text else True


def _read(option: Option, value: Any) -> Any:
    """The value of one option; a number outside a range with closed ends is a usage error."""
    if value is None:
        return option.default
    if option.parse:
        value = option.parse(value)
    # Other faults are found with those of all options when the Options object is made; they are errors of the user.
    if option.is_closed_range:
        try:
            option.check_range(value)
        except MertoolError as error:
            message = str(error).removeprefix(f"{option.flag} ")
            raise typer.BadParameter(message, param_hint=f"'{option.flag}'") from error
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
