"""`option` declares one option beside its field, `Options` checks all options of a stage.

The command line, the configuration file, the checks, the record of a run and the reference page are made from
these declarations, so that an option is declared in one place only.
"""

import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, asdict, dataclass, field, fields, replace
from math import inf
from numbers import Integral, Real
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from mertool.errors import MertoolError, check_choice, combine_errors

Choices = Sequence[str] | Mapping[str, str] | Callable[[], Sequence[str]]
TYPE_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}


@dataclass(frozen=True, kw_only=True)
class Option:
    """One option of a stage.

    help: one sentence, which ends with a full stop; choices and ranges are added to it.
    minimum, maximum: closed ends of the range; above, below: open ends; unit: follows the numbers in messages.
    choices: valid values, with their meanings where it is a mapping; a function where a folder is the registry.
    noun: what a value is called in messages about choices; default: the name of the option.
    default_help: what None or an empty list stands for, by command where it is a mapping.
    parse: reads the value from text, and raises MertoolError.
    validate: raises MertoolError for a value of the right type that is not valid.
    only_for: commands of the stage that have the option; default: all.
    on_command_line: whether commands have it; without, only the Python function does.
    affects_result: whether the result depends on it; runs that differ in other options only are reused.
    group: the panel of `--help` that shows it.
    name, type, default: of the field, filled in by `options_of`.
    """

    help: str
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    below: float | None = None
    unit: str = ""
    choices: Choices = ()
    noun: str | None = None
    default_help: str | Mapping[str, str] | None = None
    metavar: str | None = None
    parse: Callable[[str], Any] | None = None
    validate: Callable[[Any], object] | None = None
    only_for: tuple[str, ...] = ()
    on_command_line: bool = True
    affects_result: bool = True
    group: str | None = None
    name: str = ""
    type: Any = None
    default: Any = None

    @property
    def flag(self) -> str:
        """The name on the command line: `--learning-rate`."""
        return "--" + self.name.replace("_", "-")

    @property
    def valid_choices(self) -> Sequence[str]:
        """Names of the valid values; empty where any value is valid."""
        return list(self.choices() if callable(self.choices) else self.choices)

    @property
    def is_closed_range(self) -> bool:
        """True where the range includes its ends; on the command line a number outside it is a usage error."""
        return (self.minimum, self.maximum) != (None, None) and self.above is None and self.below is None

    @property
    def value_types(self) -> tuple[Any, ...]:
        """The types of a value, without None: (int, Path) for `int | Path | None`."""
        members = get_args(self.type) if isinstance(self.type, types.UnionType) else (self.type,)
        return tuple(member for member in members if member is not types.NoneType)

    @property
    def default_text(self) -> str | None:
        """The default as it is written on the command line; None where there is none."""
        if self.default is None or self.default == ():
            return None
        return ",".join(map(str, self.default)) if isinstance(self.default, tuple) else str(self.default)

    def convert(self, value: Any) -> Any:
        """Return the value in the type of the field; raise MertoolError where it is not valid.

        Whole numbers become floats, text becomes paths and lists become tuples, so that equal options are equal
        however they were given.
        """
        if value is None and types.NoneType in get_args(self.type):
            return None
        if self.parse and isinstance(value, str):
            value = self.parse(value)
        try:
            value = _convert(value, self.value_types)
        except TypeError:
            expected = " or ".join(map(_type_name, self.value_types))
            raise MertoolError(f"{self.flag} {value}: give {expected}") from None
        for item in value if isinstance(value, tuple) else (value,):
            # Read now, not at import: a file that was added to a registry folder is a choice at once.
            if valid := self.valid_choices:
                check_choice(self.noun or self.name.replace("_", " "), item, valid)
            self.check_range(item)
        if self.validate:
            self.validate(value)
        return value

    def check_range(self, value: Any) -> None:
        """Raise MertoolError for a number outside the range; NaN is outside every range."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            return
        inside = (
            (self.minimum is None or value >= self.minimum)
            and (self.maximum is None or value <= self.maximum)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )
        if not inside or value != value:
            # A whole number may be too large for the format of a float.
            shown = f"{value:g}" if isinstance(value, float) else str(value)[:20]
            raise MertoolError(f"{self.flag} {shown}: give {self.range_text or 'a number'}")

    @property
    def range_text(self) -> str:
        """The range in words: `a number from 0 to below 1`; empty where every number is valid."""
        unit = f" {self.unit}" if self.unit else ""
        if self.above is not None and self.below is not None:
            return f"a number between {self.above:g} and {self.below:g}{unit}"
        if self.minimum is not None and self.maximum is not None:
            return f"a number from {self.minimum:g} to {self.maximum:g}{unit}"
        if self.minimum is not None and self.below is not None and self.below < inf:
            return f"a number from {self.minimum:g} to below {self.below:g}{unit}"
        words = {"more than": self.above, "at least": self.minimum, "below": self.below, "at most": self.maximum}
        return " and ".join(f"{word} {end:g}{unit}" for word, end in words.items() if end not in (None, inf))

    @property
    def full_help(self) -> str:
        """The help with the choices or the range."""
        text = self.help.removesuffix(".")
        if valid := self.valid_choices:
            meanings = self.choices if isinstance(self.choices, Mapping) else {}
            named = [f"{name} ({meanings[name]})" if meanings.get(name) else name for name in valid]
            text += ": " + " or ".join(filter(None, (", ".join(named[:-1]), named[-1])))
        elif self.range_text:
            text += f" ({self.range_text})"
        return text + "."


def option(default: Any = MISSING, **declaration: Any) -> Any:
    """Return a dataclass field that is an option; `declaration` are attributes of `Option`, `help` is required."""
    return field(default=default, metadata={"option": Option(**declaration)})


def options_of(stage: type["Options"], command: str | None = None) -> tuple[Option, ...]:
    """All options of a stage, or those of one of its commands, in the order of the fields."""
    hints = get_type_hints(stage)
    return tuple(
        _bind(declaration, hints[declaration.name], command)
        for declaration in fields(stage)
        if command is None or _has(declaration.metadata["option"], command)
    )


def _has(declared: Option, command: str) -> bool:
    return declared.on_command_line and (not declared.only_for or command in declared.only_for)


def _bind(declaration: Field[Any], hint: Any, command: str | None) -> Option:
    """The option of a field, with what the field knows: name, type and default."""
    declared: Option = declaration.metadata["option"]
    default_help = declared.default_help
    if isinstance(default_help, Mapping) and command is not None:
        default_help = default_help[command]
    default = None if declaration.default is MISSING else declaration.default
    return replace(declared, name=declaration.name, type=hint, default=default, default_help=default_help)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of a stage: a frozen dataclass whose fields are made by `option`.

    All values are checked when the object is made. Raises one MertoolError for all faults of single options or, where
    there are none, for all options that contradict each other.
    """

    def __post_init__(self) -> None:
        faults = []
        for declared in options_of(type(self)):
            try:
                # The dataclass is frozen for its users; only here the converted value replaces the given one.
                object.__setattr__(self, declared.name, declared.convert(getattr(self, declared.name)))
            except MertoolError as error:
                faults.append(str(error))
        faults = faults or list(self.conflicts())
        if faults:
            raise combine_errors("options", faults) if len(faults) > 1 else MertoolError(faults[0])

    def conflicts(self) -> Iterator[str]:
        """Messages about options that contradict each other; a stage overrides this."""
        yield from ()

    def affecting_result(self) -> dict[str, Any]:
        """Values of the options that the result depends on, by name; they are part of the key of a run."""
        values = asdict(self)
        return {declared.name: values[declared.name] for declared in options_of(type(self)) if declared.affects_result}


def _convert(value: Any, valid: tuple[Any, ...]) -> Any:
    """Return the value as one of the valid types; raises TypeError."""
    for kind in valid:
        if kind is bool and isinstance(value, bool):
            return value
        if isinstance(value, bool):
            continue
        if kind is int and isinstance(value, Integral):
            return int(value)
        if kind is float and isinstance(value, Real):
            return float(value)
        if kind is str and isinstance(value, str):
            return value
        if kind is Path and isinstance(value, str | Path):
            return Path(value)
        if get_origin(kind) is tuple and isinstance(value, list | tuple):
            return tuple(_convert(item, get_args(kind)[:1]) for item in value)
    raise TypeError


def _type_name(kind: Any) -> str:
    """`a list of paths`, for messages."""
    if get_origin(kind) is tuple:
        return "a list of " + ("paths" if get_args(kind)[0] is Path else "names")
    return TYPE_NAMES[kind]
