"""Errors of the system that a user can mend: in one line that says how, instead of a traceback."""

import errno
import os
from contextlib import suppress

from mertool.errors import MertoolError

MAX_OPEN_FILES = 65_536


def prepare_process() -> None:
    """Allow as many open files as the system does; raise MertoolError if the working folder does not exist any more."""
    try:
        os.getcwd()
    except OSError as error:
        raise MertoolError("the working folder was deleted or cannot be read: change to another one with cd") from error
    with suppress(ImportError, ValueError, OSError):
        import resource  # not available on Windows

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        limit = MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_OPEN_FILES)
        if soft != resource.RLIM_INFINITY and soft < limit:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


def explain_system_error(error: BaseException) -> str | None:
    """Return one line for an error of the system that a user can mend; None for any other, which may be a bug.

    An error that was raised from one of the system, as that of a pool that cannot start its processes, counts as it.
    """
    if error.__cause__ is not None and (explained := explain_system_error(error.__cause__)):
        return explained
    if isinstance(error, MemoryError):
        return f"there is not enough memory{_detail(error)}: give fewer or smaller inputs, or use a larger machine"
    if not isinstance(error, OSError):
        return None
    file = f" ({error.filename})" if error.filename else ""
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return f"too many files are open{_open_file_limit()}: allow more with `ulimit -n 4096`, and run it again"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"no space is left on a disk or in /dev/shm, which processes share{file}: free some, and run it again"
    if error.errno == errno.ENOMEM:
        return "there is not enough memory: give fewer or smaller inputs, or use a larger machine"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) and error.filename:
        return f"no permission for {error.filename}: change its permissions, or give another path"
    return None


def _detail(error: BaseException) -> str:
    return f" ({str(error).splitlines()[0]})" if str(error) else ""


def _open_file_limit() -> str:
    with suppress(ImportError):
        import resource

        return f", the limit is {resource.getrlimit(resource.RLIMIT_NOFILE)[0]}"
    return ""
