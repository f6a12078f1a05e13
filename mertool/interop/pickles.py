"""Reading pickles of other toolkits without running code: only the constructors of NumPy's arrays are allowed.

A pickle is a program that may call any function of any module. Files of labels and features need the plain types of
Python, which the format has itself, and arrays; everything else is refused by name.
"""

import pickle
import zipfile
import zlib
from typing import Any, BinaryIO

ALLOWED_GLOBALS = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy.core.numeric", "_frombuffer"),  # arrays since protocol 5
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy._core.numeric", "_frombuffer"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}
# Raised by zipfile, zlib, the header of NumPy and the unpickler for a damaged file, or one of another kind.
UNREADABLE = (
    zipfile.BadZipFile,
    zlib.error,
    pickle.UnpicklingError,
    AttributeError,
    EOFError,
    OSError,
    IndexError,
    KeyError,
    MemoryError,
    NotImplementedError,
    OverflowError,
    RecursionError,
    RuntimeError,
    TypeError,
    ValueError,
)


class _RestrictedUnpickler(pickle.Unpickler):
    """An unpickler that knows the names of ALLOWED_GLOBALS only.

    content: the noun for what the file should hold, for the message.
    """

    def __init__(self, stream: BinaryIO, content: str):
        super().__init__(stream)
        self._content = content

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED_GLOBALS:
            raise pickle.UnpicklingError(f"it wants {module}.{name}, which {self._content} do not need: refused")
        return super().find_class(module, name)


def load_pickle(stream: BinaryIO, content: str) -> Any:
    """Return the object of a pickle. Raises one of UNREADABLE for anything but plain types and arrays.

    `content` says in the message what the file should hold: `labels`, `features`.
    """
    return _RestrictedUnpickler(stream, content).load()
