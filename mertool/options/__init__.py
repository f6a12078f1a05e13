"""Options of the stages, one dataclass each: what a command, a configuration file and a Python call can set."""

from mertool.options.option import Option, Options, option, options_of

__all__ = ["Option", "Options", "option", "options_of"]
