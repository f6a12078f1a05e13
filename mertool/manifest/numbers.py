"""Numbers that a clip may be labelled with: each is a column of the manifest."""

import math

# Ends of the valid range. Corpora rate valence and arousal on different scales (1 to 5, 1 to 7, -5 to 5, ...), so their
# range only excludes what no scale has; sentiment is that of MOSI and MOSEI.
NUMBERS = {"valence": (-1000.0, 1000.0), "arousal": (-1000.0, 1000.0), "sentiment": (-3.0, 3.0)}


def parse_number(cell: str, name: str, faults: list[str]) -> float | None:
    """Return the number in a cell, None for an empty cell; a cell that is not valid is added to the faults.

    >>> parse_number("-1.2", "sentiment", []), parse_number("", "sentiment", [])
    (-1.2, None)
    """
    if not cell:
        return None
    low, high = NUMBERS[name]
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if low <= value <= high:
        return value
    faults.append(f"{name} '{cell[:40]}' is not a number from {low:g} to {high:g}")
    return None
