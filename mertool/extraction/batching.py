"""Batches of clips of similar length whose padded cost is bounded."""

from bisect import bisect
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
# Clips that are buffered to find some of similar length: by number, and by cost in batches.
MAX_BUFFERED_CLIPS, MAX_BUFFERED_BATCHES = 2048, 16

# Largest padded cost of a batch: seconds of audio, face crops, tokens of text.
GPU_BUDGET = {"audio": 320.0, "video": 512.0, "text": 8192.0}
# On a CPU padding costs more than batches gain, except for texts, which are short beside the weights that
# each forward pass reads.
CPU_BUDGET = {"audio": 0.0, "video": 0.0, "text": 512.0}


def default_budget(modality: str, device_type: str) -> float:
    """Return the largest padded cost of a batch, in the unit of the modality; 0 means one clip at a time."""
    return (CPU_BUDGET if device_type == "cpu" else GPU_BUDGET)[modality]


class BatchBudget:
    """The largest padded cost of a batch; it shrinks whenever a batch did not fit the device."""

    def __init__(self, max_cost: float):
        self.max_cost = max_cost

    def too_large(self, cost: float) -> None:
        """Report that a batch of this padded cost did not fit: later batches cost at most half of it."""
        self.max_cost = min(self.max_cost, cost / 2)


def bucket_batches(
    items: Iterable[T],
    *,
    cost: Callable[[T], float],
    budget: BatchBudget,
    group: Callable[[T], str] = lambda _: "",
) -> Iterator[list[T]]:
    """Yield batches of similar items whose number of items times their largest cost is within the budget.

    All items of a batch are of one `group`. A batch holds at least one item, however costly. With a budget of 0
    every item is a batch, in the order of `items`. Otherwise some items are buffered, sorted by group and cost, and
    batches are cut in descending order of cost down to the cheapest, then from the costliest again (elevator order).
    """
    if budget.max_cost <= 0:
        yield from ([item] for item in items)
        return
    buffer: list[tuple[str, float, int, T]] = []
    total_cost = 0.0
    # Elevator order: always cutting from the top would leave only cheap items to pair with a costly newcomer.
    position = 0
    for number, item in enumerate(items):
        entry = (group(item), cost(item), number, item)
        index = bisect(buffer, entry[:3], key=_sort_key)
        buffer.insert(index, entry)
        position += index < position
        total_cost += entry[1]
        while len(buffer) >= MAX_BUFFERED_CLIPS or total_cost >= MAX_BUFFERED_BATCHES * budget.max_cost:
            position, batch = _pop_batch(buffer, position, budget.max_cost)
            total_cost -= sum(entry[1] for entry in batch)
            yield [entry[3] for entry in batch]
    while buffer:
        position, batch = _pop_batch(buffer, position, budget.max_cost)
        yield [entry[3] for entry in batch]


def _sort_key(entry: tuple[str, float, int, T]) -> tuple[str, float, int]:
    return entry[:3]


def _pop_batch(
    buffer: list[tuple[str, float, int, T]], position: int, max_cost: float
) -> tuple[int, list[tuple[str, float, int, T]]]:
    """Remove the costliest batch of one group below `position` (0: from the top).

    Returns the position at which the next batch ends, and the batch.
    """
    end = position or len(buffer)
    group, largest_cost, _, _ = buffer[end - 1]
    start = end - 1
    while start and buffer[start - 1][0] == group and largest_cost * (end - start + 1) <= max_cost:
        start -= 1
    batch = buffer[start:end]
    del buffer[start:end]
    return start, batch
