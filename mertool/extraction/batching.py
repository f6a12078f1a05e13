"""Putting clips into batches of like length and bounded cost."""

from bisect import bisect
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
# Clips looked at together, to find such of like length: by number, and by cost in batches.
MOST_CLIPS, MOST_BATCHES = 2048, 16

# Padded cost of a batch: seconds of sound, face crops, tokens of text.
GPU_BUDGET = {"audio": 320.0, "video": 512.0, "text": 8192.0}
# On a CPU padding costs more than batches gain, but for texts, which are short beside the weights that
# each forward pass reads.
CPU_BUDGET = {"audio": 0.0, "video": 0.0, "text": 512.0}


def budget(modality: str, device_type: str) -> float:
    """Largest padded cost of a batch; 0 is one clip at a time."""
    return (CPU_BUDGET if device_type == "cpu" else GPU_BUDGET)[modality]


class BatchBudget:
    """The largest padded cost of a batch, which falls when a batch did not fit the device."""

    def __init__(self, most: float):
        self.most = most

    def too_large(self, cost: float) -> None:
        """A batch of this padded cost did not fit: from now on at most half of it."""
        self.most = min(self.most, cost / 2)


def batches(
    items: Iterable[T], cost: Callable[[T], float], limit: BatchBudget, group: Callable[[T], str] = lambda _: ""
) -> Iterator[list[T]]:
    """Batches of one `group` each, whose number of items times their largest cost is within the limit.

    A batch holds at least one item. With a limit of 0 the order is kept, one by one. Else some items wait,
    sorted by group and cost, and batches are cut from the costliest down, then from the top again, as a lift
    goes: always cutting from the top would leave only cheap items to put with a costly one that comes in.
    """
    if limit.most <= 0:
        yield from ([item] for item in items)
        return
    waiting: list[tuple[str, float, int, T]] = []
    total = 0.0
    position = 0
    for number, item in enumerate(items):
        entry = (group(item), cost(item), number, item)
        place = bisect(waiting, entry[:3], key=_rank)
        waiting.insert(place, entry)
        position += place < position
        total += entry[1]
        while len(waiting) >= MOST_CLIPS or total >= MOST_BATCHES * limit.most:
            position, batch = _take(waiting, position, limit.most)
            total -= sum(entry[1] for entry in batch)
            yield [entry[3] for entry in batch]
    while waiting:
        position, batch = _take(waiting, position, limit.most)
        yield [entry[3] for entry in batch]


def _rank(entry: tuple[str, float, int, T]) -> tuple[str, float, int]:
    return entry[:3]


def _take(
    waiting: list[tuple[str, float, int, T]], position: int, most: float
) -> tuple[int, list[tuple[str, float, int, T]]]:
    """Remove the costliest batch of one group below `position` (at 0: from the top); where to go on, and it."""
    end = position or len(waiting)
    group, largest, _, _ = waiting[end - 1]
    start = end - 1
    while start and waiting[start - 1][0] == group and largest * (end - start + 1) <= most:
        start -= 1
    batch = waiting[start:end]
    del waiting[start:end]
    return start, batch
