"""A thread that writes, so that the device does not wait for the disk."""

import queue
import threading
from collections.abc import Callable


class BackgroundWriter:
    """Calls what is put into it, in order, in a thread of its own. Use as a context manager.

    Leaving waits until everything is done, also after an error or an interrupt: what was computed is kept.
    What a call raises is raised at the next `put`, or on leaving; calls after it are passed over.
    """

    def __init__(self, most_waiting: int) -> None:
        self._calls: queue.Queue[Callable[[], None] | None] = queue.Queue(most_waiting)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> "BackgroundWriter":
        self._thread.start()
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        self._calls.put(None)
        self._thread.join()
        if error is None and self._error:
            raise self._error

    def put(self, call: Callable[[], None]) -> None:
        """Have `call` done; waits while too many others are."""
        if self._error:
            raise self._error
        self._calls.put(call)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            if self._error:
                continue
            try:
                call()
            except BaseException as error:  # whatever it is belongs to the thread that put it
                self._error = error
