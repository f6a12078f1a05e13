"""Help in plain lines, which any terminal shows whole: options by panel, commands in the order of the work."""

import textwrap
from collections.abc import Sequence
from typing import Any

from typer.core import TyperCommand, TyperGroup

ORDER = ("manifest", "extract", "probe-layers", "finetune", "align", "fuse", "predict", "evaluate", "store")
PANELS = ("Arguments", "Options")  # come first
MAX_NAME_WIDTH = 30  # of options; the text of a longer one begins below it


class HelpCommand(TyperCommand):
    """A command whose help lists options below the name of their panel."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        panels: dict[str, list[tuple[str, str]]] = {name: [] for name in PANELS}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            default = PANELS[0] if parameter.param_type_name == "argument" else PANELS[1]
            if record is not None:
                panels.setdefault(getattr(parameter, "rich_help_panel", None) or default, []).append(record)
        for name, records in panels.items():
            if records:
                with formatter.section(name):
                    _write_definitions(formatter, records)


class CommandGroup(TyperGroup):
    """A group whose commands are listed in the order of the work, each with the first sentence of its help."""

    def list_commands(self, ctx: Any) -> list[str]:
        names = super().list_commands(ctx)
        return [*(name for name in ORDER if name in names), *(name for name in names if name not in ORDER)]

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        commands = ((name, self.get_command(ctx, name)) for name in self.list_commands(ctx))
        records = [(name, first_sentence(command.help or "")) for name, command in commands if command]
        with formatter.section("Commands"):
            _write_definitions(formatter, records)


def _write_definitions(formatter: Any, records: Sequence[tuple[str, str]]) -> None:
    """Write names and their texts in two columns; unlike click's own lists, names with hyphens are never divided."""
    longest = max(len(name) for name, _ in records)
    indent = " " * formatter.current_indent
    column = " " * (min(longest, MAX_NAME_WIDTH) + 2)
    for name, text in records:
        width = formatter.width - len(indent) - len(column)
        lines = textwrap.wrap(text, width, break_on_hyphens=False, break_long_words=False) or [""]
        if len(name) > MAX_NAME_WIDTH:
            formatter.write(f"{indent}{name}\n")
        else:
            formatter.write(f"{indent}{name.ljust(len(column))}{lines.pop(0)}".rstrip() + "\n")
        for line in lines:
            formatter.write(f"{indent}{column}{line}\n")


def first_sentence(text: str) -> str:
    """Return the first sentence of a help text, on one line."""
    sentence, stop, _ = " ".join(text.split()).partition(". ")
    return sentence + stop.strip()
