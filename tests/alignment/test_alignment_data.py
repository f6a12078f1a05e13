"""Clips out of a frame store: all of them, in an order of the seed's, a few in memory at a time."""

import numpy as np
import pytest

from mertool.alignment import data as stream
from mertool.alignment.data import Frames, frame_statistics
from mertool.errors import MertoolError
from mertool.store import FeatureStore

CLIPS = 50


@pytest.fixture(scope="module")
def values():
    random = np.random.default_rng(0)
    return {f"c{n}": random.normal(n, 1, (random.integers(1, 12), 3)).astype(np.float32) for n in range(CLIPS)}


@pytest.fixture
def frames(values, make_store, tmp_path, monkeypatch):
    """Every other clip of the store, at most six frames of each, in small blocks."""
    monkeypatch.setattr(stream, "BLOCK", 4)
    monkeypatch.setattr(stream, "BUFFER", 8)
    with FeatureStore(make_store(tmp_path / "f.h5", "frames", values)) as store:
        yield Frames(store, np.arange(0, CLIPS, 2), 6)


def take(batches):
    with batches as some:
        return list(some)


def test_every_clip_once_an_epoch_with_its_own_frames(frames, values):
    chosen = np.arange(3, 25)
    found = take(frames.mixed(chosen, 4, (0, 0)))
    assert sorted(np.concatenate([clips for clips, _ in found])) == chosen.tolist()
    assert [len(clips) for clips, _ in found] == [6, 6, 5, 5]
    for clips, some in found:
        for clip, one in zip(clips, some, strict=True):
            whole = values[f"c{2 * clip}"]
            wanted = whole if len(whole) <= 6 else whole[np.linspace(0, len(whole) - 1, 6).round().astype(int)]
            np.testing.assert_array_equal(one, wanted)


def test_the_order_is_mixed_and_of_the_seed_alone(frames):
    def order(*seed):
        return np.concatenate([clips for clips, _ in take(frames.mixed(np.arange(25), 3, seed))]).tolist()

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(0, epoch)) for epoch in range(5)}) == 5
    neighbours = np.mean([np.mean(np.abs(np.diff(order(0, epoch))) == 1) for epoch in range(20)])
    assert neighbours < 0.25  # of a random order 2 in 25


def test_a_resumed_epoch_goes_on_with_the_same_batches(frames):
    whole, rest = (take(frames.mixed(np.arange(25), 5, (0, 1), first)) for first in (0, 3))
    assert [clips.tolist() for clips, _ in rest] == [clips.tolist() for clips, _ in whole[3:]]
    np.testing.assert_array_equal(rest[-1][1][-1], whole[-1][1][-1])


def test_a_few_clips_are_in_memory_at_a_time(frames, monkeypatch):
    """What was read and not yet given out: the buffer, a block, and less than a batch."""
    read, most, given = 0, 0, 0
    original = Frames.read

    def counting(self, clips):
        nonlocal read
        read += len(clips)
        return original(self, clips)

    monkeypatch.setattr(Frames, "read", counting)
    for clips, _ in frames._mix(np.arange(25), 12, (0, 0), 0):
        most, given = max(most, read - given), given + len(clips)
    assert given == 25
    assert most <= 8 + 4 + 3


def test_clips_in_order_come_block_by_block(frames):
    found = take(frames.in_order(np.array([0, 1, 2, 9, 24])))
    assert [clips.tolist() for clips, _ in found] == [[0, 1], [2], [9], [24]]
    assert take(frames.in_order(np.zeros(0, np.int64))) == []


def test_mean_and_deviation_are_those_of_all_frames(frames, values):
    mean, deviation = frame_statistics(Frames(frames.store, np.arange(CLIPS), None), np.arange(10, 40))
    together = np.concatenate([values[f"c{n}"] for n in range(10, 40)])
    np.testing.assert_allclose(mean, together.mean(0), rtol=1e-5)
    np.testing.assert_allclose(deviation, together.std(0), rtol=1e-4)


def test_a_clip_that_is_no_number_is_named(make_store, tmp_path):
    values = {f"c{n}": np.ones((2, 3), np.float32) for n in range(5)}
    values["c3"][1, 1] = np.inf
    path, words = make_store(tmp_path / "n.h5", "frames", values), "the frames of clip 'c3' hold NaN or infinity"
    with FeatureStore(path) as store, pytest.raises(MertoolError, match=words):
        take(Frames(store, np.arange(5), 4).mixed(np.arange(5), 2, (0,)))
