"""Encoder families: one file each, found by itself.

A file of this folder declares, as literals at its top,

    MODALITY        what it encodes: "audio", "video" or "text"
    MODEL_TYPES     the `model_type`s of config.json that it loads
    OTHER_TYPES     True if it also tries the model types of its modality that no family names (optional)
    WINDOWS         the kinds of windows of a speech encoder that has a choice (optional; see Encoder.windows)

and has `load(folder, *, device, dtype)`, which returns an `Encoder` (see mertool.encoders.base). The literals are read
without importing the file, so the commands that only list families start without torch.
"""

from dataclasses import dataclass
from functools import cache
from types import ModuleType

from mertool import registry
from mertool.errors import MertoolError

PACKAGE = "encoders.families"


@dataclass(frozen=True, kw_only=True)
class EncoderFamily:
    """The declaration of a family: the literals at the top of its file, and its name, that of the file."""

    name: str
    modality: str
    model_types: tuple[str, ...]
    other_types: bool = False
    windows: tuple[str, ...] = ()

    def module(self) -> ModuleType:
        """Import the family's file, and with it torch."""
        return registry.load(PACKAGE, "encoder family", self.name)


@cache
def known_families() -> dict[str, EncoderFamily]:
    """Return all families by name."""
    return {name: _declaration(name) for name in registry.choices(PACKAGE)}


def _declaration(name: str) -> EncoderFamily:
    literals = registry.literals(PACKAGE, name)
    return EncoderFamily(
        name=name,
        modality=literals["MODALITY"],
        model_types=literals["MODEL_TYPES"],
        other_types=literals.get("OTHER_TYPES", False),
        windows=literals.get("WINDOWS", ()),
    )


def family_for(model_type: str, modality: str) -> EncoderFamily:
    """Return the family that loads models of `model_type` as encoders of `modality`; raises MertoolError."""
    named = [family for family in known_families().values() if model_type in family.model_types]
    of_modality = [family for family in named if family.modality == modality]
    if named and not of_modality:
        raise MertoolError(f"a model of type '{model_type}' ({named[0].name}) encodes {named[0].modality}")
    fallbacks = [family for family in known_families().values() if family.modality == modality and family.other_types]
    if not of_modality + fallbacks:
        valid = sorted(kind for family in known_families().values() for kind in family.model_types)
        raise MertoolError(f"no encoder family loads models of type '{model_type}': valid: {', '.join(valid)}")
    return (of_modality + fallbacks)[0]
