"""Progress of one step within a longer computation."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class ProgressSpan:
    """The share of a progress bar, from `start` to `end` (0 to 1), that one step of a computation fills.

    report: called with per cent done and 100.
    """

    report: Callable[[int, int], None]
    start: float = 0.0
    end: float = 1.0

    def __call__(self, done: int, total: int) -> None:
        """Report that `done` of the step's `total` units are done."""
        fraction = self.start + (self.end - self.start) * done / total
        self.report(int(100 * fraction + 1e-6), 100)

    def split(self, costs: list[float]) -> list["ProgressSpan"]:
        """Return one span for each part of this step, in proportion to the costs of the parts."""
        total, spans, start = sum(costs), [], self.start
        for cost in costs:
            end = start + (self.end - self.start) * cost / total
            spans.append(ProgressSpan(self.report, start, end))
            start = end
        return spans
