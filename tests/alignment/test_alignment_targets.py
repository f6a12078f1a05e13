"""The acoustic targets, and the split of the clips."""

import numpy as np
import pytest

from mertool.alignment import targets as module
from mertool.alignment.targets import MAX_HELD_OUT_CLIPS, common_clips, load_acoustic_targets, split_clips
from mertool.errors import MertoolError
from mertool.store import FeatureStore


@pytest.fixture
def values():
    random = np.random.default_rng(0)
    scale = np.array([1.0, 50.0, 0.01])[:, None]
    return {f"c{number}": (random.normal(2, 1, (3, 5)) * scale).astype(np.float32) for number in range(30)}


@pytest.fixture
def store(values, make_store, tmp_path):
    with FeatureStore(make_store(tmp_path / "a.h5", "audio", values)) as store:
        yield store


def test_targets_are_means_of_standardised_layers(store, values, monkeypatch):
    monkeypatch.setattr(module, "BLOCK_CLIPS", 7)
    clips, train = [f"c{number}" for number in range(29, 4, -1)], np.arange(3, 20)
    states = np.stack([values[clip] for clip in clips]).astype(np.float64)
    expected = ((states - states[train].mean(0)) / states[train].std(0)).mean(1)
    targets = load_acoustic_targets(store, clips, train)
    assert targets.dtype == np.float16
    np.testing.assert_allclose(targets, expected, atol=2e-3)


def test_targets_beyond_float16_are_kept_and_the_others_rounded(values, make_store, tmp_path):
    """A clip that trains nothing may be any number of deviations away."""
    values["c3"][0, 1] = 1e7
    clips, train = list(values), np.arange(5, 25)
    states = np.stack(list(values.values())).astype(np.float64)
    expected = ((states - states[train].mean(0)) / states[train].std(0)).mean(1)
    assert np.abs(expected[3]).max() > 65_504
    with FeatureStore(make_store(tmp_path / "s.h5", "audio", values)) as store:
        targets = load_acoustic_targets(store, clips, train)
    assert targets.dtype == np.float32
    np.testing.assert_allclose(targets, expected, rtol=1e-3, atol=2e-3)
    np.testing.assert_allclose(targets[3], expected[3], rtol=1e-5)
    others = np.delete(targets, 3, 0)
    np.testing.assert_array_equal(others, others.astype(np.float16))


def test_a_constant_channel_becomes_zero(values, make_store, tmp_path):
    with_constant = {clip: np.concatenate([value, np.ones((3, 1), np.float32)], 1) for clip, value in values.items()}
    with FeatureStore(make_store(tmp_path / "s.h5", "audio", with_constant)) as store:
        targets = load_acoustic_targets(store, list(with_constant), np.arange(30))
    assert np.abs(targets[:, -1]).max() < 1e-3


def test_a_clip_with_nan_is_named(values, make_store, tmp_path):
    values["c7"][1, 2] = np.nan
    path = make_store(tmp_path / "n.h5", "audio", values)
    with FeatureStore(path) as store:
        with pytest.raises(MertoolError, match="the features of clip 'c7' hold NaN"):
            load_acoustic_targets(store, list(values), np.arange(20))
        others = [clip for clip in values if clip != "c7"]
        assert np.isfinite(load_acoustic_targets(store, others, np.arange(20))).all()


def test_common_clips_are_sorted(store, make_store, tmp_path):
    frames = {clip: np.ones((2, 3), np.float32) for clip in ["x", *(f"c{n}" for n in range(20, 2, -1))]}
    with FeatureStore(make_store(tmp_path / "f.h5", "frames", frames)) as video_store:
        assert common_clips(store, video_store) == sorted(f"c{n}" for n in range(3, 21))


@pytest.mark.parametrize(
    ("count", "held_out", "development"), [(8, 2, 2), (100, 20, 12), (115_595, MAX_HELD_OUT_CLIPS, 2000)]
)
def test_split_is_disjoint_and_follows_the_seed(count, held_out, development):
    split = split_clips(np.arange(count), 0)
    assert sorted(np.concatenate([split.train, split.development, split.held_out])) == list(range(count))
    assert (len(split.held_out), len(split.development)) == (held_out, development)
    assert not np.array_equal(split.held_out, split_clips(np.arange(count), 1).held_out)
