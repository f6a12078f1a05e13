"""`--config FILE`: values of a command's options from a TOML file."""

import tomllib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import typer

from mertool.errors import MertoolError, combine_errors, suggest
from mertool.options import Option
from mertool.untrusted import read_bytes

NOT_IN_FILE = ("config", "help")


def config_reader(options: Sequence[Option]) -> Callable[[typer.Context, Path | None], Path | None]:
    """Return the callback of `--config` for a command with these options.

    The values become defaults of the command: the command line takes precedence over them. Keys at the top of the file
    are for every command that reads it, those of a table such as [fuse] or [extract.audio] for that command only.
    """
    known = {option.name: option for option in options}

    def read_config(context: typer.Context, path: Path | None) -> Path | None:
        if path is not None:
            context.default_map = _read_values(path, context, known)
        return path

    return read_config


def _read_values(path: Path, context: typer.Context, known: dict[str, Option]) -> dict[str, Any]:
    """Values by parameter name; raises one MertoolError for all faults of the file."""
    names = context.command_path.split()[len(context.find_root().command_path.split()) :]
    parameters = {
        parameter.opts[0].removeprefix("--"): parameter
        for parameter in context.command.params
        if parameter.opts[0].startswith("--") and parameter.name not in NOT_IN_FILE
    }
    values: dict[str, Any] = {}
    faults = []
    for key, value in _entries(path, names, context.find_root().command):
        parameter = parameters.get(key.replace("_", "-"))
        try:
            if parameter is None:
                hint = f"{suggest(key.replace('_', '-'), parameters)}`mertool {' '.join(names)} --help` lists them"
                raise MertoolError(f"unknown option '{key}': {hint}")
            values[str(parameter.name)] = _convert(
                key, value, parameter=parameter, option=known.get(str(parameter.name))
            )
        except MertoolError as error:
            faults.append(str(error))
    if faults:
        raise combine_errors(str(path), faults)
    return values


def _entries(path: Path, names: list[str], group: Any) -> Iterator[tuple[str, Any]]:
    """Keys and values of the file that are for command `names`, those of its own table last."""
    table = _load(path)
    # From the outside in, so that a value in the command's own table replaces one that is for several commands.
    for name in [*names, ""]:
        commands = getattr(group, "commands", {})
        for key, value in table.items():
            if not isinstance(value, dict):
                yield key, value
            elif key not in commands:
                valid = f"a table is named after a command: {', '.join(commands)}" if commands else "there is none here"
                raise MertoolError(f"{path}: unknown table [{key}]: {suggest(key, commands)}{valid}")
        if not isinstance(table.get(name), dict):
            return
        table, group = table[name], commands[name]


def _load(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise MertoolError(f"--config {path} does not exist: give a TOML file")
    content = read_bytes(path, "give a TOML file as --config")
    try:
        return tomllib.loads(content.decode())
    except RecursionError as error:
        raise MertoolError(f"--config {path} cannot be read (it is nested too deeply): give a TOML file") from error
    except ValueError as error:
        raise MertoolError(f"--config {path} cannot be read ({error}): give a TOML file") from error


def _convert(key: str, value: Any, *, parameter: Any, option: Option | None) -> Any:
    """The value as the command line would give it; raises MertoolError where it is not valid."""
    if option is not None:
        converted = option.convert(value)
        # Typer reads these options as text, and the command parses them, wherever they come from.
        if option.parse:
            return ",".join(map(str, converted)) if isinstance(converted, tuple) else str(converted)
        return list(converted) if isinstance(converted, tuple) else converted
    if isinstance(value, bool) != bool(parameter.is_flag) or isinstance(value, list):
        raise MertoolError(f"{key} {value}: give {'true or false' if parameter.is_flag else 'one value'}")
    return value
