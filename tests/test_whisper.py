"""A Whisper through every stage: probed, adapted, extracted, fused, and used for prediction."""

import json

import numpy as np
import pytest

from mertool.errors import MertoolError
from mertool.predictions import Predictions
from mertool.store import FeatureStore


@pytest.fixture(scope="module")
def chain(workspace, tiny_encoders, call, tmp_path_factory):
    """The folder of the stores and runs of all stages."""
    folder, manifest = tmp_path_factory.mktemp("whisper"), workspace.manifest
    quick = ["--folds", 2, "-q"]
    extract = ["extract", "audio", manifest, "--storage", "float32", "-q"]
    call(*extract, "-o", folder / "audio.h5", "--encoder", tiny_encoders["whisper"])
    probe = ["--seeds", 1, "--no-mlp", "--estimator", "ridge", "--width", 1, "--injection", *quick]
    call("probe-layers", folder / "audio.h5", "-m", manifest, "-o", folder / "probe", *probe)
    adapt = ["--layers", "2-3", "--size", 4, "--epochs", 4, "--learning-rate", 0.02, *quick]
    call("finetune", manifest, "--probe", folder / "probe", "-o", folder / "acoustic", *adapt)
    call(*extract, "-o", folder / "acoustic.h5", "--adapter", folder / "acoustic")
    fuse = ["--seeds", 1, "--epochs", 2, "--width", 8, "-q"]
    call("fuse", folder / "acoustic.h5", "-m", manifest, "-o", folder / "fusion", *fuse)
    return folder


def test_the_injection_ranking_has_every_window(chain):
    ranking = json.loads((chain / "probe" / "metrics.json").read_text())["injection"]
    assert sorted(row["window"] for row in ranking) == [[1, 1], [2, 2], [3, 3]]


def test_features_differ_from_the_adapted_layers_on(chain):
    with FeatureStore(chain / "audio.h5") as plain, FeatureStore(chain / "acoustic.h5") as store:
        assert plain.recipe.media == store.recipe.media == {"sample_rate": 16_000, "window": "clip"}
        frozen, adapted = plain.read(plain.ids), store.read(plain.ids)
    difference = np.abs(adapted - frozen).max((0, 2))
    assert difference[:2].max() < 1e-6
    assert difference[2:].min() > 1e-5


def test_the_bundle_carries_the_window(chain, workspace, demo_rows, write_manifest, call, tmp_path):
    """Prediction makes the features that extraction makes for a clip of no fold."""
    source = write_manifest(tmp_path / "new.csv", [{**demo_rows["spk01_003"], "label": "", "split": "test"}])
    call("predict", chain / "fusion", source, "-o", tmp_path / "p.csv", "-q")
    found = Predictions.read(tmp_path / "p.csv")
    assert found.clips == ("spk01_003",)
    call(
        "extract",
        "audio",
        source,
        "-o",
        tmp_path / "a.h5",
        "--adapter",
        chain / "acoustic",
        "--storage",
        "float32",
        "-q",
    )
    with FeatureStore(tmp_path / "p.csv.features" / "acoustic.h5") as made, FeatureStore(tmp_path / "a.h5") as expected:
        assert made.recipe.media["window"] == "clip"
        np.testing.assert_allclose(made.read(), expected.read(), atol=1e-5)


def test_stores_of_two_windows_are_never_mixed(chain, workspace, tiny_encoders, invoke):
    arguments = ["--encoder", tiny_encoders["whisper"], "--storage", "float32", "--whisper-window", "30"]
    result = invoke("extract", "audio", workspace.manifest, "-o", chain / "audio.h5", *arguments)
    assert isinstance(result.exception, MertoolError)
    assert "'window': 'clip'" in str(result.exception)


def test_another_encoder_has_no_window(workspace, tiny_encoders, invoke, tmp_path):
    arguments = ["--encoder", tiny_encoders["hubert"], "--whisper-window", "clip"]
    result = invoke("extract", "audio", workspace.manifest, "-o", tmp_path / "a.h5", *arguments)
    assert isinstance(result.exception, MertoolError)
    assert "'tiny-random-hubert' (hubert) takes clips of any length as they are: leave it out" in str(result.exception)


def test_an_unknown_window(workspace, tiny_encoders, invoke, tmp_path):
    arguments = ["--encoder", tiny_encoders["whisper"], "--whisper-window", "20"]
    result = invoke("extract", "audio", workspace.manifest, "-o", tmp_path / "a.h5", *arguments)
    assert isinstance(result.exception, MertoolError)
    assert str(result.exception) == "unknown window '20': valid: 30, clip"
