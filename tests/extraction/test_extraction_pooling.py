"""From frames to the values of a store: the mean, the standard deviation, or the frames themselves."""

import numpy as np
import pytest
import torch

from mertool.extraction.pooling import FeaturePooling
from mertool.features import Recipe
from mertool.store import FeatureStore

FRAMES = torch.from_numpy(np.random.default_rng(0).normal(3, 2, (3, 7, 4)).astype(np.float32))  # layers 0 to 2


def pool(mode, layers=(1, 2)):
    recipe = Recipe(modality="audio", encoder="e", weights="w", layers=layers, pool=mode, storage_dtype="float32")
    return FeaturePooling(recipe, (0, 1, 2))(FRAMES, "a").numpy()


def test_mean_and_deviation_stand_side_by_side():
    frames = FRAMES.numpy()[1:]
    expected = np.concatenate([frames.mean(1), frames.std(1)], 1)
    np.testing.assert_allclose(pool("mean-std"), expected, rtol=1e-5)
    np.testing.assert_array_equal(pool("mean-std")[:, :4], pool("mean"))
    assert pool("none").shape == (2, 7, 4)


def test_the_deviation_of_a_single_frame_is_zero():
    recipe = Recipe(modality="audio", encoder="e", weights="w", layers=(0,), pool="mean-std", storage_dtype="float32")
    values = FeaturePooling(recipe, (0,))(FRAMES[:1, :1], "a")
    assert not values[:, 4:].any()
    torch.testing.assert_close(values[:, :4], FRAMES[:1, 0])


def test_a_store_of_means_and_deviations(invoke, workspace, tiny_encoders, audio_store, tmp_path):
    arguments = ["extract", "audio", workspace.manifest, "--encoder", tiny_encoders["hubert"], "--pool", "mean-std"]
    assert invoke(*arguments, "-o", tmp_path / "both.h5", "-q").exit_code == 0
    with FeatureStore(tmp_path / "both.h5") as both, FeatureStore(audio_store) as mean:
        assert both.pooled
        assert both.validate() == []
        assert both.ids == mean.ids
        values = both.read(both.ids)
        assert values.shape[-1] == 2 * mean.read(mean.ids).shape[-1]
        np.testing.assert_array_equal(values[..., : values.shape[-1] // 2], mean.read(mean.ids))
    probed = invoke(
        *("probe-layers", tmp_path / "both.h5", "-m", workspace.manifest, "-o", tmp_path / "probe", "-q"),
        *("--folds", 3, "--seeds", 1, "--no-mlp", "--estimator", "ridge"),
    )
    assert probed.exit_code == 0, probed.exception


@pytest.mark.parametrize("mode", ["none", "mean-std"])
def test_an_aligner_has_its_own_pooling(mode, invoke, workspace, tmp_path):
    arguments = ["extract", "video", workspace.manifest, "-o", tmp_path / "v.h5", "--aligner", tmp_path, "--pool", mode]
    assert f"leave out --pool {mode}" in str(invoke(*arguments).exception)
