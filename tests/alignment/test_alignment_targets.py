"""The acoustic vectors that faces are drawn to, and the parts of the clips."""

import numpy as np
import pytest

from mertool.alignment import targets as module
from mertool.alignment.targets import MOST_HELD_OUT, common_clips, load_acoustic_targets, split
from mertool.errors import MertoolError
from mertool.store import FeatureStore


@pytest.fixture
def values():
    random = np.random.default_rng(0)
    scale = np.array([1.0, 50.0, 0.01])[:, None]
    return {f"c{number}": (random.normal(2, 1, (3, 5)) * scale).astype(np.float32) for number in range(30)}


@pytest.fixture
def store(values, make_store, tmp_path):
    with FeatureStore(make_store(tmp_path / "a.h5", "audio", values)) as opened:
        yield opened


def test_anchors_are_means_of_standardised_layers(store, values, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 7)
    clips, train = [f"c{number}" for number in range(29, 4, -1)], np.arange(3, 20)
    stacked = np.stack([values[clip] for clip in clips]).astype(np.float64)
    wanted = ((stacked - stacked[train].mean(0)) / stacked[train].std(0)).mean(1)
    found = load_acoustic_targets(store, clips, train)
    assert found.dtype == np.float16
    np.testing.assert_allclose(found, wanted, atol=2e-3)


def test_a_channel_that_never_changes_does_no_harm(values, make_store, tmp_path):
    still = {clip: np.concatenate([value, np.ones((3, 1), np.float32)], 1) for clip, value in values.items()}
    with FeatureStore(make_store(tmp_path / "s.h5", "audio", still)) as store:
        assert np.abs(load_acoustic_targets(store, list(still), np.arange(30))[:, -1]).max() < 1e-3


def test_a_clip_that_is_no_number_is_named(values, make_store, tmp_path):
    values["c7"][1, 2] = np.nan
    path = make_store(tmp_path / "n.h5", "audio", values)
    with FeatureStore(path) as store:
        with pytest.raises(MertoolError, match="the features of clip 'c7' hold NaN"):
            load_acoustic_targets(store, list(values), np.arange(20))
        others = [clip for clip in values if clip != "c7"]
        assert np.isfinite(load_acoustic_targets(store, others, np.arange(20))).all()


def test_clips_in_common_come_in_the_order_of_the_frames(store, make_store, tmp_path):
    frames = {clip: np.ones((2, 3), np.float32) for clip in ["x", *(f"c{n}" for n in range(20, 2, -1))]}
    with FeatureStore(make_store(tmp_path / "f.h5", "frames", frames)) as sight:
        assert common_clips(store, sight) == [f"c{n}" for n in range(20, 2, -1)]


@pytest.mark.parametrize(("clips", "scored", "stops"), [(8, 2, 2), (100, 20, 12), (115_595, MOST_HELD_OUT, 2000)])
def test_no_clip_is_in_two_parts(clips, scored, stops):
    parts = split(clips, 0)
    together = np.concatenate([parts.train, parts.develop, parts.held_out])
    assert sorted(together) == list(range(clips))
    assert (len(parts.held_out), len(parts.develop)) == (scored, stops)
    assert not np.array_equal(parts.held_out, split(clips, 1).held_out)
