"""Compute the next items in a background thread while the current one is being used."""

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")
POLL_SECONDS = 0.2  # interval at which a thread that waits for room checks whether it was cancelled


class Prefetcher(Generic[T]):
    """Iterate over `items` in a background thread, at most `size` items ahead of the consumer.

    Use it as a context manager; entering gives the iterator. An exception of the thread is raised in the consumer,
    after the items that came before it. Leaving early cancels the thread, which then ends at its next item.
    """

    def __init__(self, items: Iterable[T], size: int):
        self._queue: queue.Queue[tuple[bool, T | BaseException | None]] = queue.Queue(size)
        self._cancelled = threading.Event()
        # A daemon, so that a decoder that hangs in it cannot keep the interpreter from exiting.
        self._thread = threading.Thread(target=self._produce, args=(items,), daemon=True)

    def __enter__(self) -> Iterator[T]:
        self._thread.start()
        return self._consume()

    def __exit__(self, *_: object) -> None:
        self._cancelled.set()

    def _consume(self) -> Iterator[T]:
        while True:
            is_item, value = self._queue.get()
            if is_item:
                yield value  # type: ignore[misc]
            elif isinstance(value, BaseException):
                raise value
            else:
                return

    def _produce(self, items: Iterable[T]) -> None:
        try:
            for item in items:
                if not self._put(True, item):
                    return
            self._put(False, None)
        except BaseException as error:  # of any kind: it is raised again in the consumer's thread
            self._put(False, error)

    def _put(self, is_item: bool, value: T | BaseException | None) -> bool:
        """Put a value into the queue; False if the consumer left before there was room."""
        while not self._cancelled.is_set():
            try:
                self._queue.put((is_item, value), timeout=POLL_SECONDS)
                return True
            except queue.Full:
                pass
        return False
