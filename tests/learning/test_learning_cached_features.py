"""Features as fusion heads see them."""

import numpy as np
import pytest
import torch

from mertool.errors import MertoolError
from mertool.features import Recipe, faces_recipe
from mertool.learning.cached_features import SPANS, gather, shape_of, spans_of, to_spans
from mertool.store import ClipFeatures, FeatureStore, StoreWriter


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
    with FeatureStore(paths[0]) as sound, FeatureStore(paths[1]) as sight:
        yield sound, sight, audio, frames


def test_shapes_and_order_and_zeros_for_what_is_absent(stores):
    sound, sight, audio, frames = stores
    (heard, seen), present = gather([sound, sight], ["d", "b", "a"])
    assert heard.shape == (3, 3, 5)
    assert seen.shape == (3, SPANS, 4)
    assert heard.dtype == seen.dtype == np.float32
    np.testing.assert_array_equal(present, [[False, True], [True, True], [True, False]])
    np.testing.assert_array_equal(heard, [np.zeros((3, 5)), audio["b"], audio["a"]])
    np.testing.assert_allclose(seen[1], to_spans(frames["b"]))
    assert (seen[2] == 0).all()


def test_the_shape_is_known_before_anything_is_read(stores):
    sound, sight, *_ = stores
    assert (shape_of(sound), spans_of(sound)) == ((3, 5), None)
    assert (shape_of(sight), spans_of(sight)) == ((SPANS, 4), SPANS)


@pytest.mark.parametrize("count", [1, 3, 15, 16, 17, 100])
def test_spans_are_adaptive_averages(count):
    frames = np.random.default_rng(count).normal(size=(count, 7)).astype(np.float32)
    expected = torch.nn.functional.adaptive_avg_pool1d(torch.from_numpy(frames).T[None], SPANS)[0].T
    np.testing.assert_allclose(to_spans(frames), expected.numpy(), atol=1e-6)


def test_a_clip_is_the_same_in_any_company(stores):
    _, sight, *_ = stores
    together, alone = gather([sight], ["b", "d", "none"])[0][0], gather([sight], ["d"])[0][0]
    np.testing.assert_array_equal(together[1], alone[0])


def test_no_clip_gives_empty_arrays_of_the_right_shape(stores):
    sound, sight, *_ = stores
    (heard, seen), present = gather([sound, sight], [])
    assert (heard.shape, seen.shape, present.shape) == ((0, 3, 5), (0, SPANS, 4), (0, 2))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_no_numbers_are_refused_with_the_clip(value, make_store, tmp_path):
    values = {clip: np.ones((1, 2), np.float32) for clip in "ab"}
    values["b"][0, 1] = value
    with (
        FeatureStore(make_store(tmp_path / "x.h5", "audio", values)) as store,
        pytest.raises(MertoolError, match=r"x\.h5 holds NaN or infinity \(first in clip 'b'\)"),
    ):
        gather([store], ["a", "b"])


def test_face_crops_are_refused(tmp_path):
    with StoreWriter(tmp_path / "faces.h5", faces_recipe({"fps": 5}), {}) as writer:
        writer.add(ClipFeatures("a", "digest", np.zeros((2, 224, 224, 3), np.uint8)))
        writer.finish(["a"])
    with FeatureStore(tmp_path / "faces.h5") as store, pytest.raises(MertoolError, match="holds face crops: give"):
        shape_of(store)


def test_frames_of_several_layers_are_refused(tmp_path):
    with StoreWriter(tmp_path / "x.h5", Recipe("video", "made", "w", (1, 2), "none"), {}) as writer:
        writer.add(ClipFeatures("a", "digest", np.zeros((2, 5, 4), np.float32)))
        writer.finish(["a"])
    with FeatureStore(tmp_path / "x.h5") as store, pytest.raises(MertoolError, match="holds frames of 2 layers"):
        shape_of(store)
