"""Putting decoded clips into batches: on a GPU of like length and bounded cost, on a CPU one by one."""

from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")
WINDOW = 256  # clips looked at together, to find such of like length

# Padded cost of a batch on a GPU: seconds of sound, face crops, characters of text.
GPU_BUDGET = {"audio": 320.0, "video": 512.0, "text": 16_000.0}


def budget(modality: str, device_type: str) -> float:
    """Largest padded cost of a batch. On a CPU one clip at a time is fastest, and exact on every run."""
    return 0.0 if device_type == "cpu" else GPU_BUDGET.get(modality, 0.0)


def batches(
    items: Iterable[T],
    cost: Callable[[T], float],
    most: float,
    group: Callable[[T], Hashable] = lambda _: None,
) -> Iterator[list[T]]:
    """Batches of one `group` each, whose number of items times their largest cost is at most `most`.

    A batch holds at least one item. With `most` 0 the order is kept; else items are sorted by cost
    within a window.
    """
    if most <= 0:
        yield from ([item] for item in items)
        return
    window: list[T] = []
    for item in items:
        window.append(item)
        if len(window) >= WINDOW:
            yield from _cut(window, cost, most, group)
            window = []
    yield from _cut(window, cost, most, group)


def _cut(window: list[T], cost: Callable[[T], float], most: float, group: Callable[[T], Hashable]) -> Iterator[list[T]]:
    keyed: list[tuple[str, float, Any]] = [(str(group(item)), cost(item), item) for item in window]
    keyed.sort(key=lambda entry: entry[:2])
    batch: list[T] = []
    key = ""
    for name, price, item in keyed:
        # Sorted by cost, so the item at hand is the largest of the batch.
        if batch and (name != key or price * (len(batch) + 1) > most):
            yield batch
            batch = []
        batch.append(item)
        key = name
    if batch:
        yield batch
