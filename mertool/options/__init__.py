"""Options of the stages, one dataclass each: what a command, a configuration file and a Python call can set."""
