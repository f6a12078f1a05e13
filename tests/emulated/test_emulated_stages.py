"""Every stage on an emulated device, and on a real GPU, from clips to predictions: what it gives on the CPU."""

import csv
import json

import numpy as np
import pytest
from fixtures.emulated_device import DEVICES, use_device

from mertool.runs import Run
from mertool.store import FeatureStore

FLOAT32 = ("--dtype", "float32")


@pytest.fixture(scope="module", params=DEVICES)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def call_on_device(call, kind):
    """A function like `call` that runs a command on the device."""

    def run(*args):
        # The command line looks for a driver before it imports torch.
        with pytest.MonkeyPatch.context() as patch, use_device(kind) as device:
            patch.setattr("mertool.cli.preflight.check_device", lambda name: None)
            call(*args, "--device", device, "-q")

    return run


def read_all(path):
    with FeatureStore(path) as store:
        if store.pooled:
            return store.ids, store.read(store.ids)
        return store.ids, np.concatenate([store.frames(clip) for clip in store.ids])


def assert_same_features(path, expected, tolerance=5e-3):
    """Values of both stores differ by at most `tolerance` of the largest; stores are rounded to float16."""
    (clips, values), (expected_clips, expected_values) = read_all(path), read_all(expected)
    assert clips == expected_clips
    assert np.abs(values - expected_values).max() < tolerance * np.abs(expected_values).max()


# ---------------------------------------------------------------- extraction


def test_audio(workspace, tiny_encoders, audio_store, call_on_device, tmp_path):
    out, encoder = tmp_path / "audio.h5", tiny_encoders["hubert"]
    call_on_device("extract", "audio", workspace.manifest, "-o", out, "--encoder", encoder, *FLOAT32)
    assert_same_features(out, audio_store)


def test_audio_in_bfloat16(workspace, tiny_encoders, audio_store, call_on_device, tmp_path):
    out, encoder = tmp_path / "audio.h5", tiny_encoders["hubert"]
    call_on_device("extract", "audio", workspace.manifest, "-o", out, "--encoder", encoder, "--dtype", "bfloat16")
    values, expected = read_all(out)[1], read_all(audio_store)[1]
    cosines = (values * expected).sum(-1) / np.linalg.norm(values, axis=-1) / np.linalg.norm(expected, axis=-1)
    assert cosines.min() > 0.999


def test_video(workspace, tiny_encoders, faces_store, frames_store, call_on_device, tmp_path):
    out = tmp_path / "video.h5"
    options = ["--encoder", tiny_encoders["clip"], "--faces", faces_store, "--fps", 1, "--pool", "none", *FLOAT32]
    call_on_device("extract", "video", workspace.manifest, "-o", out, *options)
    assert_same_features(out, frames_store)


def test_text(workspace, tiny_encoders, text_store, call_on_device, tmp_path):
    out, encoder = tmp_path / "text.h5", tiny_encoders["bert"]
    call_on_device("extract", "text", workspace.manifest, "-o", out, "--encoder", encoder, *FLOAT32)
    assert_same_features(out, text_store)


def test_adapted_audio(workspace, tiny_encoders, finetune_run, acoustic_store, call_on_device, tmp_path):
    out = tmp_path / "acoustic.h5"
    options = ["--encoder", tiny_encoders["hubert"], "--adapter", finetune_run, "--storage", "float32", *FLOAT32]
    call_on_device("extract", "audio", workspace.manifest, "-o", out, *options)
    assert_same_features(out, acoustic_store)


# ---------------------------------------------------------------- training


def test_probe_layers(workspace, text_store, call, call_on_device, tmp_path):
    options = ["-m", workspace.manifest, "--folds", 3, "--seeds", 1]
    call("probe-layers", text_store, *options, "-o", tmp_path / "cpu", "--device", "cpu", "-q")
    call_on_device("probe-layers", text_store, *options, "-o", tmp_path / "device")
    scores = [json.loads((tmp_path / name / "metrics.json").read_text())["layers"] for name in ("cpu", "device")]
    for layer, expected in scores[0].items():
        assert scores[1][layer]["waf"]["value"] == pytest.approx(expected["waf"]["value"], abs=0.1)


@pytest.mark.slow  # the many operators of four adapters
def test_finetune(workspace, probe_run, call_on_device, tmp_path):
    options = ["--folds", 3, "--epochs", 1, "--size", 4, "--dtype", "bfloat16"]
    call_on_device("finetune", workspace.manifest, "--probe", probe_run, "-o", tmp_path / "run", *options)
    assert np.isfinite(Run.read(tmp_path / "run", "finetune").metrics["adapted"]["waf"]["value"])


def test_align(workspace, acoustic_store, frames_store, call_on_device, tmp_path):
    options = ["--audio", acoustic_store, "--video", frames_store, "-m", workspace.manifest, "--width", 8]
    options += ["--epochs", 2, "--aligned", tmp_path / "aligned.h5"]
    call_on_device("align", *options, "-o", tmp_path / "run")
    assert read_all(tmp_path / "aligned.h5")[0] == read_all(frames_store)[0]


# ---------------------------------------------------------------- fusion and prediction


@pytest.fixture(scope="module")
def fused(workspace, audio_store, text_store, call_on_device, tmp_path_factory):
    """A run of audio and text, made on the device."""
    run = tmp_path_factory.mktemp("fused") / "run"
    options = ["--folds", 3, "--seeds", 1, "--epochs", 3, "--width", 8]
    call_on_device("fuse", audio_store, text_store, "-m", workspace.manifest, "-o", run, *options)
    return run


def read_probabilities(path):
    with open(path, newline="", encoding="utf-8") as file:
        rows = {row["clip"]: row for row in csv.DictReader(file)}
    return {clip: [float(row[name]) for name in row if name.startswith("p_")] for clip, row in rows.items()}


def test_fuse(fused):
    assert set(Run.read(fused, "fuse").metrics["cross_validation"]) == {"audio", "text", "fusion"}


def test_predict(fused, workspace, demo_rows, write_manifest, call, call_on_device, tmp_path):
    clips = write_manifest(tmp_path / "clips.csv", [demo_rows[clip] for clip in workspace.clips[:3]])
    for name in ("cpu", "device"):
        (tmp_path / name).mkdir()
    call("predict", fused, clips, "-o", tmp_path / "cpu" / "p.csv", "--device", "cpu", "-q")
    call_on_device("predict", fused, clips, "-o", tmp_path / "device" / "p.csv")
    expected, found = (read_probabilities(tmp_path / name / "p.csv") for name in ("cpu", "device"))
    assert list(found) == list(expected)
    np.testing.assert_allclose(list(found.values()), list(expected.values()), atol=0.02)
