"""The start of decoder processes: never by plain fork, silently, and without the script that the user runs."""

import multiprocessing
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

# Plain fork would copy locks that threads of torch and HDF5 may hold at that moment; Windows has spawn alone.
METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
_Context: Any = type(multiprocessing.get_context(METHOD))
_main_lock = threading.Lock()


class DecoderProcess(_Context.Process):
    """A process that does not run the main module of its parent."""

    @staticmethod
    def _Popen(process: Any) -> Any:
        with _without_main_module():
            return _Context.Process._Popen(process)


class DecoderContext(_Context):
    """The multiprocessing context of decoder processes."""

    Process = DecoderProcess


def decoder_context(preload: tuple[str, ...]) -> DecoderContext:
    """Return the context of decoder processes, which have imported the modules `preload` already."""
    context = DecoderContext()
    if METHOD == "forkserver":
        from multiprocessing import forkserver  # not available on Windows

        context.set_forkserver_preload(list(preload))
        with _silenced_stderr():
            forkserver.ensure_running()
    return context


@contextmanager
def _without_main_module() -> Iterator[None]:
    """Hide the module `__main__` while a process is started.

    A new process runs the main module of its parent again to find what is defined there. Decoders need nothing of it,
    and a script that calls `mertool.extract` outside `if __name__ == "__main__"` would start itself without end.
    """
    with _main_lock:
        main = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = main


@contextmanager
def _silenced_stderr() -> Iterator[None]:
    """Give processes that are started meanwhile no standard error.

    C libraries print decoder warnings that are not useful to the user, and failures are returned as reasons. It also
    hides the traceback of a process that is still starting when the run ends.
    """
    sys.stderr.flush()
    stderr_copy, devnull = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(devnull, 2)
        yield
    finally:
        os.dup2(stderr_copy, 2)
        os.close(stderr_copy)
        os.close(devnull)
