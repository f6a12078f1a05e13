"""Worker processes end with the process that started them, however it ends."""

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from multiprocessing.process import BaseProcess
from typing import Any

PR_SET_PDEATHSIG = 1  # of Linux's prctl(2)


def end_with_parent() -> None:
    """Make this worker process end when its parent does, also if that is ended by SIGKILL.

    Otherwise a decoder that hangs in a damaged file would go on for ever, with nobody to stop it.
    """
    if sys.platform == "linux":
        # The kernel also ends a worker that hangs in C code with Python's lock held, where no thread of ours runs.
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        _release_fork_server()
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_exit_after, args=(parent,), daemon=True, name="parent watch").start()


def _release_fork_server() -> None:
    """Close this process's hold on the fork server, so that the server ends with the process that started both.

    To the kernel, the fork server is the parent of a worker. It ends when no process is left that may ask it for
    another one, and Python lets every worker do that.
    """
    from multiprocessing import forkserver  # not available on Windows

    server: Any = getattr(forkserver, "_forkserver", None)
    alive_fd = getattr(server, "_forkserver_alive_fd", None)
    if alive_fd is not None:
        os.close(alive_fd)
        server._forkserver_alive_fd = None


def _exit_after(parent: BaseProcess) -> None:
    parent.join()  # returns when the operating system closes the parent's end of a pipe
    os._exit(1)
