"""Features of several stores in memory: shapes, frames pooled to spans, absent and unusable ones."""

import numpy as np
import pytest

from mertool.errors import MertoolError
from mertool.features import Recipe, faces_recipe
from mertool.learning.cached_features import SPANS, feature_shape, load_features, span_count
from mertool.store import ClipFeatures, FeatureStore, StoreWriter


def adaptive_averages(frames):
    """Mean of frames floor(i T / SPANS) to ceil((i + 1) T / SPANS) of each span i."""
    edges = [(i * len(frames) // SPANS, -(-(i + 1) * len(frames) // SPANS)) for i in range(SPANS)]
    return np.stack([frames[start:stop].mean(0) for start, stop in edges])


@pytest.fixture
def stores(make_store, tmp_path):
    """Three clips of pooled audio (3, 5), of which one lacks it, and frames (T, 4) of two."""
    rng = np.random.default_rng(0)
    audio = {clip: rng.normal(size=(3, 5)).astype(np.float32) for clip in "abc"}
    frames = {clip: rng.normal(size=(count, 4)).astype(np.float32) for clip, count in (("b", 40), ("d", 3))}
    paths = (
        make_store(tmp_path / "audio.h5", "audio", audio),
        make_store(tmp_path / "frames.h5", "frames", frames),
    )
    with FeatureStore(paths[0]) as audio_store, FeatureStore(paths[1]) as video_store:
        yield audio_store, video_store, audio, frames


def test_shapes_order_and_zeros_for_absent_features(stores):
    audio_store, video_store, audio, frames = stores
    (audio_values, video_values), present = load_features([audio_store, video_store], ["d", "b", "a"])
    assert audio_values.shape == (3, 3, 5)
    assert video_values.shape == (3, SPANS, 4)
    assert audio_values.dtype == video_values.dtype == np.float32
    np.testing.assert_array_equal(present, [[False, True], [True, True], [True, False]])
    np.testing.assert_array_equal(audio_values, [np.zeros((3, 5)), audio["b"], audio["a"]])
    np.testing.assert_allclose(video_values[1], adaptive_averages(frames["b"]), atol=1e-6)
    assert (video_values[2] == 0).all()


def test_the_shape_is_known_before_anything_is_read(stores):
    audio_store, video_store, *_ = stores
    assert (feature_shape(audio_store), span_count(audio_store)) == ((3, 5), None)
    assert (feature_shape(video_store), span_count(video_store)) == ((SPANS, 4), SPANS)


@pytest.mark.parametrize("count", [1, 3, 15, 16, 17, 100])
def test_frames_are_pooled_to_spans(count, make_store, tmp_path):
    frames = np.random.default_rng(count).normal(size=(count, 7)).astype(np.float32)
    with FeatureStore(make_store(tmp_path / "f.h5", "frames", {"a": frames})) as store:
        (values,), _ = load_features([store], ["a"])
    np.testing.assert_allclose(values[0], adaptive_averages(frames), atol=1e-6)


def test_a_clip_does_not_depend_on_the_other_clips(stores):
    _, video_store, *_ = stores
    with_others, by_itself = (
        load_features([video_store], ["b", "d", "none"])[0][0],
        load_features([video_store], ["d"])[0][0],
    )
    np.testing.assert_array_equal(with_others[1], by_itself[0])


def test_no_clip_gives_empty_arrays_of_the_right_shape(stores):
    audio_store, video_store, *_ = stores
    (audio_values, video_values), present = load_features([audio_store, video_store], [])
    assert (audio_values.shape, video_values.shape, present.shape) == ((0, 3, 5), (0, SPANS, 4), (0, 2))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_infinity_are_refused_with_the_clip(value, make_store, tmp_path):
    values = {clip: np.ones((1, 2), np.float32) for clip in "ab"}
    values["b"][0, 1] = value
    with (
        FeatureStore(make_store(tmp_path / "x.h5", "audio", values)) as store,
        pytest.raises(MertoolError, match=r"x\.h5 holds NaN or infinity \(first in clip 'b'\)"),
    ):
        load_features([store], ["a", "b"])


def test_face_crops_are_refused(tmp_path):
    with StoreWriter(tmp_path / "faces.h5", faces_recipe({"fps": 5}), {}) as writer:
        writer.add(ClipFeatures("a", "digest", np.zeros((2, 224, 224, 3), np.uint8)))
        writer.finish(["a"])
    with FeatureStore(tmp_path / "faces.h5") as store, pytest.raises(MertoolError, match="holds face crops: give"):
        feature_shape(store)


def test_frames_of_several_layers_are_refused(tmp_path):
    with StoreWriter(
        tmp_path / "x.h5", Recipe(modality="video", encoder="made", weights="w", layers=(1, 2), pool="none"), {}
    ) as writer:
        writer.add(ClipFeatures("a", "digest", np.zeros((2, 5, 4), np.float32)))
        writer.finish(["a"])
    with FeatureStore(tmp_path / "x.h5") as store, pytest.raises(MertoolError, match="holds frames of 2 layers"):
        feature_shape(store)
