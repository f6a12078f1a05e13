"""Conversion between simplified and traditional Chinese by OpenCC."""

from functools import cache
from typing import Any

CONVERSIONS = {"simplified": "t2s", "traditional": "s2t"}  # OpenCC's configurations
LANGUAGES = ("zh", "yue")  # Japanese has the same characters, which must stay


def convert_chinese(text: str, language: str, script: str | None) -> str:
    """Return a text in the script `simplified` or `traditional`; of another language, or without script, as it is."""
    if script is None or language not in LANGUAGES:
        return text
    converted: str = _converter(CONVERSIONS[script]).convert(text)
    return converted


@cache
def _converter(configuration: str) -> Any:
    from opencc import OpenCC

    return OpenCC(configuration)
