"""Frames streamed from a store: each clip once, in an order that follows the seed, few in memory at a time."""

import numpy as np
import pytest

from mertool.alignment import data
from mertool.alignment.data import FrameStream, frame_statistics
from mertool.errors import MertoolError
from mertool.store import FeatureStore

CLIPS = 50


@pytest.fixture(scope="module")
def values():
    random = np.random.default_rng(0)
    return {f"c{n}": random.normal(n, 1, (random.integers(1, 12), 3)).astype(np.float32) for n in range(CLIPS)}


@pytest.fixture
def stream(values, make_store, tmp_path, monkeypatch):
    """Every other clip of the store, at most six frames of each, in small blocks."""
    monkeypatch.setattr(data, "BLOCK_CLIPS", 4)
    monkeypatch.setattr(data, "SHUFFLE_BUFFER_CLIPS", 8)
    with FeatureStore(make_store(tmp_path / "f.h5", "frames", values)) as store:
        yield FrameStream(store, np.arange(0, CLIPS, 2), 6)


def read_all(prefetcher):
    with prefetcher as batches:
        return list(batches)


def test_every_clip_is_in_one_batch_with_its_own_frames(stream, values):
    rows = np.arange(3, 25)
    batches = read_all(stream.shuffled_batches(rows, 4, seed=(0, 0)))
    assert sorted(np.concatenate([batch.rows for batch in batches])) == rows.tolist()
    assert [len(batch.rows) for batch in batches] == [6, 6, 5, 5]
    for batch in batches:
        for row, frames in zip(batch.rows, batch.frames, strict=True):
            stored = values[f"c{2 * row}"]
            expected = stored if len(stored) <= 6 else stored[np.linspace(0, len(stored) - 1, 6).round().astype(int)]
            np.testing.assert_array_equal(frames, expected)


def test_the_order_is_shuffled_and_follows_the_seed(stream):
    def order(*seed):
        batches = read_all(stream.shuffled_batches(np.arange(25), 3, seed=seed))
        return np.concatenate([batch.rows for batch in batches]).tolist()

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(0, epoch)) for epoch in range(5)}) == 5
    neighbours = np.mean([np.mean(np.abs(np.diff(order(0, epoch))) == 1) for epoch in range(20)])
    assert neighbours < 0.25  # of a random order 2 in 25


def test_a_resumed_epoch_has_the_same_batches(stream):
    complete, resumed = (
        read_all(stream.shuffled_batches(np.arange(25), 5, seed=(0, 1), first=first)) for first in (0, 3)
    )
    assert [batch.rows.tolist() for batch in resumed] == [batch.rows.tolist() for batch in complete[3:]]
    np.testing.assert_array_equal(resumed[-1].frames[-1], complete[-1].frames[-1])


def test_few_clips_are_in_memory_at_a_time(stream, monkeypatch):
    """Clips that were read and are in no batch yet: the buffer, a block, and less than a batch."""
    read, most, yielded = 0, 0, 0
    original = FrameStream.read

    def counting(self, rows):
        nonlocal read
        read += len(rows)
        return original(self, rows)

    monkeypatch.setattr(FrameStream, "read", counting)
    for batch in stream._shuffle(np.arange(25), 12, (0, 0), first=0):
        most, yielded = max(most, read - yielded), yielded + len(batch.rows)
    assert yielded == 25
    assert most <= 8 + 4 + 3


def test_clips_in_order_come_block_by_block(stream):
    batches = read_all(stream.in_order(np.array([0, 1, 2, 9, 24])))
    assert [batch.rows.tolist() for batch in batches] == [[0, 1, 2], [9], [24]]
    assert read_all(stream.in_order(np.zeros(0, np.int64))) == []


def test_statistics_are_those_of_all_frames(stream, values):
    mean, std = frame_statistics(FrameStream(stream.store, np.arange(CLIPS), None), np.arange(10, 40))
    frames = np.concatenate([values[f"c{n}"] for n in range(10, 40)])
    np.testing.assert_allclose(mean, frames.mean(0), rtol=1e-5)
    np.testing.assert_allclose(std, frames.std(0), rtol=1e-4)


def test_a_clip_with_infinity_is_named(make_store, tmp_path):
    values = {f"c{n}": np.ones((2, 3), np.float32) for n in range(5)}
    values["c3"][1, 1] = np.inf
    path, words = make_store(tmp_path / "n.h5", "frames", values), "the frames of clip 'c3' hold NaN or infinity"
    with FeatureStore(path) as store, pytest.raises(MertoolError, match=words):
        read_all(FrameStream(store, np.arange(5), 4).shuffled_batches(np.arange(5), 2, seed=(0,)))
