"""A background thread that writes results, so that the device does not wait for the disk."""

import queue
import threading
from collections.abc import Callable


class BackgroundWriter:
    """Run the calls that are put into it one after the other in a background thread. Use as a context manager.

    Leaving waits for all pending calls, also after an error or an interrupt, so that what was computed is written.
    If a call fails, its exception is raised by the next `put` or on leaving, and later calls are skipped.
    """

    def __init__(self, max_pending: int) -> None:
        # Bounded: if the disk is the slowest part, `put` blocks and results do not pile up in memory.
        self._calls: queue.Queue[Callable[[], None] | None] = queue.Queue(max_pending)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run_calls, daemon=True)

    def __enter__(self) -> "BackgroundWriter":
        self._thread.start()
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        self._calls.put(None)
        self._thread.join()
        if error is None and self._error:
            raise self._error

    def put(self, call: Callable[[], None]) -> None:
        """Add `call` to the queue; blocks while the queue is full."""
        if self._error:
            raise self._error
        self._calls.put(call)

    def _run_calls(self) -> None:
        while (call := self._calls.get()) is not None:
            if self._error:
                continue  # the queue is still emptied, or `put` would block for ever
            try:
                call()
            except BaseException as error:  # of any kind: it is raised again in the thread that puts
                self._error = error
