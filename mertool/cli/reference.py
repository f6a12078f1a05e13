"""The page docs/reference.md: every command with its options. `python -m mertool.cli.reference` prints it."""

from collections.abc import Iterator
from typing import Any

import typer

from mertool.cli import app

INTRODUCTION = """# Command reference

This page is generated from the declarations of the options, by `make docs`.

Every command that has `--config FILE` reads the values of its options from a TOML file. The keys are the names of the
options, with `-` or `_`. Keys at the top are for every command that reads the file; a table is for the command of that
name. A value on the command line takes precedence over the file. Relative paths start in the current folder.

```toml
device = "cuda"

[extract.audio]
encoder = "hubert-large-zh"

[fuse]
seeds = 5
unlabelled = ["pool/audio.h5", "pool/text.h5"]
calibrate = false
```

Exit codes: 0 done; 1 an error of the user, in one line; 2 a command line that cannot be read; 3 too many clips failed.
"""


def write_reference() -> str:
    """Return the page, in Markdown."""
    sections = (_section(name, command) for name, command in _commands(typer.main.get_command(app), "mertool"))
    return "\n".join([INTRODUCTION, *sections])


def _commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    """All commands below one, with their full names."""
    if not hasattr(command, "commands"):
        yield name, command
        return
    for below, inner in command.commands.items():
        yield from _commands(inner, f"{name} {below}")


def _section(name: str, command: Any) -> str:
    example = command.epilog.removeprefix("Example: ")
    lines = [
        f"## {name}",
        "",
        command.help,
        "",
        "```sh",
        example,
        "```",
        "",
        "| option | default | meaning |",
        "|---|---|---|",
    ]
    return "\n".join([*lines, *map(_row, command.params), ""])


def _row(parameter: Any) -> str:
    flags = [*parameter.opts, *parameter.secondary_opts]
    if parameter.param_type_name == "argument":
        flags = [parameter.name.upper() + ("..." if parameter.nargs != 1 else "")]
    named = ", ".join(f"`{flag}`" for flag in flags) + (f" {parameter.metavar}" if parameter.metavar else "")
    return "| " + " | ".join(text.replace("|", "\\|") for text in (named, _default(parameter), parameter.help)) + " |"


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    if isinstance(parameter.show_default, str):
        return parameter.show_default
    if isinstance(parameter.default, bool):
        return "yes" if parameter.default else "no"
    return "" if parameter.default is None else f"`{parameter.default}`"


if __name__ == "__main__":
    print(write_reference(), end="")
