"""mertool: multimodal emotion recognition, from a folder of clips to predictions.

The way of the data (each arrow is one command, one module of the same name and one test file):

    folder of clips --manifest--> clips.csv
    clips.csv --extract audio|video|text--> features/*.h5
    features/audio.h5 + labels --probe-layers--> runs/probe
    clips.csv + runs/probe --finetune--> runs/acoustic
    features/acoustic.h5 + video-frames.h5 --align--> runs/visual
    features of 1..n modalities + labels --fuse--> runs/fusion
    runs/fusion + folder of videos --predict--> predictions.csv
    runs + evaluations --report--> report.html

Every stage but the first is also a function: `mertool.predict("runs/fusion", "new-clips")` (see `mertool.api`).
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mertool.api import align, evaluate, extract, finetune, fuse, predict, probe_layers, report

__version__ = "0.2.0"
__all__ = ["align", "evaluate", "extract", "finetune", "fuse", "predict", "probe_layers", "report"]


def __getattr__(name: str) -> Any:
    # A stage imports heavy libraries, so it is imported when it is first used.
    if name in __all__:
        return import_module(f"mertool.{name}")
    raise AttributeError(f"module 'mertool' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


class _Stage(ModuleType):
    """The module of a stage, which is called like the function of that name in `mertool.api`."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self._function(*args, **options)

    @property
    def __signature__(self) -> Any:
        from inspect import signature

        return signature(self._function)

    @property
    def _function(self) -> Any:
        return getattr(import_module("mertool.api"), self.__name__.removeprefix("mertool."))


class _Package(ModuleType):
    """The package: wherever a stage is imported, its module becomes one that can be called.

    Python sets the attribute `mertool.predict` to the module of that name, in place of any function.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if name in __all__ and isinstance(value, ModuleType):
            value.__class__ = _Stage
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
