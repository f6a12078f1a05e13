"""The number format of stored values: float16, with room for clips whose values float16 cannot hold.

A recipe that stores float16 describes each clip for itself. Its values are rounded to float16; if one of them is beyond
65,504, the clip keeps float32 and is not rounded. So the values of a clip depend neither on the other clips nor on the
order in which clips are written, and a resumed run, parts by several processes and merged stores agree. A dataset has
one type for all clips: it is float32 as soon as one clip needs it.
"""

from collections.abc import Iterable

import numpy as np

FLOAT16, FLOAT32 = np.dtype(np.float16), np.dtype(np.float32)
LARGEST_FLOAT16 = float(np.finfo(np.float16).max)


def as_stored(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Return finite values in the number format of a recipe; in float32 if they should be float16 and one is beyond it.

    >>> as_stored(np.array([0.1, 70_000.0]), FLOAT16).dtype
    dtype('float32')
    """
    with np.errstate(over="ignore"):
        stored = values.astype(dtype, copy=False)
    return values.astype(FLOAT32, copy=False) if dtype == FLOAT16 and not np.isfinite(stored).all() else stored


def valid_dtypes(dtype: np.dtype) -> tuple[np.dtype, ...]:
    """Return the types that `values` may have in a file whose recipe says `dtype`."""
    return (FLOAT16, FLOAT32) if dtype == FLOAT16 else (dtype,)


def widest_dtype(dtypes: Iterable[np.dtype], default: np.dtype) -> np.dtype:
    """Return the type that holds the values of all files; `default` if there are none."""
    found = list(dtypes)
    return np.result_type(*found) if found else default
