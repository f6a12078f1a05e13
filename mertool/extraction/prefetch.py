"""Doing the next work in a thread of its own while the last result is being used."""

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")
PATIENCE = 0.2  # seconds between looks at whether the work is still wanted


class Prefetcher(Generic[T]):
    """Iterates over `items` in a thread, at most `size` of them ahead. Use as a context manager.

    What the thread raises is raised here. Leaving early lets the thread end at its next item.
    """

    def __init__(self, items: Iterable[T], size: int):
        self._queue: queue.Queue[tuple[bool, T | BaseException | None]] = queue.Queue(size)
        self._unwanted = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(items,), daemon=True)

    def __enter__(self) -> Iterator[T]:
        self._thread.start()
        return self._results()

    def __exit__(self, *_: object) -> None:
        self._unwanted.set()

    def _results(self) -> Iterator[T]:
        while True:
            more, value = self._queue.get()
            if more:
                yield value  # type: ignore[misc]
            elif isinstance(value, BaseException):
                raise value
            else:
                return

    def _work(self, items: Iterable[T]) -> None:
        try:
            for item in items:
                if not self._put(True, item):
                    return
            self._put(False, None)
        except BaseException as error:  # whatever it is belongs to the thread that asked
            self._put(False, error)

    def _put(self, more: bool, value: T | BaseException | None) -> bool:
        while not self._unwanted.is_set():
            try:
                self._queue.put((more, value), timeout=PATIENCE)
                return True
            except queue.Full:
                pass
        return False
