"""Batches: bounded, of one group, nothing lost."""

import random

import pytest

from mertool.extraction.batching import (
    MAX_BUFFERED_BATCHES,
    MAX_BUFFERED_CLIPS,
    BatchBudget,
    bucket_batches,
    default_budget,
)
from mertool.features import MODALITIES


def costs(seed: int, count: int) -> list[tuple[int, float]]:
    draw = random.Random(seed)
    return [(number, draw.uniform(0.5, 30)) for number in range(count)]


@pytest.mark.parametrize("count", [0, 1, 7, 100, 2050])
def test_every_item_is_in_exactly_one_batch(count):
    items = costs(1, count)
    batched = [
        item
        for batch in bucket_batches(iter(items), cost=lambda item: item[1], budget=BatchBudget(60.0))
        for item in batch
    ]
    assert sorted(batched) == items


@pytest.mark.parametrize("max_cost", [1.0, 30.0, 100.0])
def test_the_padded_cost_of_a_batch_is_bounded(max_cost):
    for batch in bucket_batches(costs(2, 500), cost=lambda item: item[1], budget=BatchBudget(max_cost)):
        assert batch
        assert len(batch) == 1 or len(batch) * max(item[1] for item in batch) <= max_cost


def test_batches_are_filled():
    """Items of one cost share a batch as long as they fit."""
    assert [len(batch) for batch in bucket_batches(range(10), cost=lambda _: 2.0, budget=BatchBudget(8.0))] == [4, 4, 2]


def test_a_batch_holds_one_group():
    items = costs(3, 400)
    for batch in bucket_batches(
        items, cost=lambda item: item[1], budget=BatchBudget(200.0), group=lambda item: item[0] % 3
    ):
        assert len({number % 3 for number, _ in batch}) == 1


def test_items_of_similar_cost_share_batches():
    items = costs(4, 500)
    padding = sum(
        max(item[1] for item in batch) - cost
        for batch in bucket_batches(items, cost=lambda i: i[1], budget=BatchBudget(100.0))
        for _, cost in batch
    )
    assert padding < 0.15 * sum(cost for _, cost in items)


def test_without_a_budget_the_order_is_kept_one_by_one():
    items = costs(5, 50)
    assert list(
        bucket_batches(items, cost=lambda item: item[1], budget=BatchBudget(0.0), group=lambda item: item[0] % 2)
    ) == [[item] for item in items]


def test_items_are_taken_as_they_come():
    """Decoded clips are large: no more than a few batches of them, or a number of clips, are held."""
    taken = 0

    def endless():
        nonlocal taken
        while True:
            taken += 1
            yield taken

    next(bucket_batches(endless(), cost=lambda _: 1.0, budget=BatchBudget(4.0)))
    assert taken <= 4 * MAX_BUFFERED_BATCHES
    taken = 0
    next(bucket_batches(endless(), cost=lambda _: 1.0, budget=BatchBudget(1e9)))
    assert taken <= MAX_BUFFERED_CLIPS


def test_as_many_are_taken_as_were_given():
    """The decoders keep the device's pace; they do not stop while a window of clips is encoded."""
    taken = 0

    def endless():
        nonlocal taken
        while True:
            taken += 1
            yield taken

    stream = bucket_batches(endless(), cost=lambda _: 1.0, budget=BatchBudget(4.0))
    next(stream)
    for _ in range(10):
        before = taken
        assert len(next(stream)) == 4
        assert taken - before == 4


def test_batches_are_smaller_once_one_did_not_fit():
    budget = BatchBudget(8.0)
    stream = bucket_batches(range(40), cost=lambda _: 1.0, budget=budget)
    assert len(next(stream)) == 8
    budget.too_large(8.0)
    assert len(next(stream)) == 4
    budget.too_large(8.0)  # another one that was cut before
    assert len(next(stream)) == 4


def test_a_cpu_takes_one_clip_at_a_time_but_several_texts():
    assert default_budget("audio", "cpu") == default_budget("video", "cpu") == 0.0
    assert default_budget("text", "cpu") > 0
    assert all(default_budget(modality, "cuda") > 0 for modality in MODALITIES)
