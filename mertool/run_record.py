"""The form of the entries of run.json that later stages read; a run may come from anybody."""

from collections.abc import Callable
from typing import Any

from mertool.features import Recipe, is_provenance


def is_valid_entry(name: str, value: Any) -> bool:
    """Return True unless an entry has another form than the one that stages write, and later stages count on."""
    return name not in _FORMS or _FORMS[name](value)


def _is_recipe(value: Any) -> bool:
    try:
        Recipe.from_json(value)
    except ValueError:
        return False
    return True


def _is_encoder(value: Any) -> bool:
    return isinstance(value, dict) and is_provenance({"encoder": value}) and isinstance(value.get("weights"), str)


def _is_window(value: Any) -> bool:
    return value is None or (isinstance(value, list) and len(value) == 2 and all(type(layer) is int for layer in value))


def _is_name_of_clip(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(name, str) for name in value.values())


_FORMS: dict[str, Callable[[Any], bool]] = {
    "adapter_of_clip": _is_name_of_clip,
    "aligner_of_clip": _is_name_of_clip,
    "encoder": _is_encoder,
    "held_out_clips": lambda value: isinstance(value, list) and all(isinstance(clip, str) for clip in value),
    "folds": lambda value: isinstance(value, dict) and all(type(fold) is int for fold in value.values()),
    "origin": lambda value: is_provenance(value) and isinstance(value.get("encoder"), dict),
    "recipe": _is_recipe,
    "sizes": lambda value: isinstance(value, dict),
    "video": _is_recipe,
    "window": _is_window,
}
