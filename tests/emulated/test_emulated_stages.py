"""Every stage on an emulated device, from clips to predictions, gives what it gives on the CPU."""

import csv
import json

import numpy as np
import pytest
from fixtures.emulated_device import KINDS, emulate

from mertool.runs import Run
from mertool.store import FeatureStore

FLOAT32 = ("--dtype", "float32")


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def call_on_device(call, kind):
    """A function like `call` that runs a command on the emulated device and returns the Emulation."""

    def run(*args):
        # The command line looks for a driver before it imports torch.
        with pytest.MonkeyPatch.context() as patch, emulate(kind) as emulation:
            patch.setattr("mertool.cli.preflight.check_device", lambda name: None)
            call(*args, "--device", kind, "-q")
        return emulation

    return run


def read_all(path):
    with FeatureStore(path) as store:
        if store.pooled:
            return store.ids, store.read(store.ids)
        return store.ids, np.concatenate([store.frames(clip) for clip in store.ids])


def assert_same_features(path, expected, tolerance=2e-3):
    """Values of both stores differ by at most `tolerance` of the largest; stores are rounded to float16."""
    (clips, values), (expected_clips, expected_values) = read_all(path), read_all(expected)
    assert clips == expected_clips
    assert np.abs(values - expected_values).max() < tolerance * np.abs(expected_values).max()


# ---------------------------------------------------------------- extraction


def test_audio(workspace, tiny_encoders, audio_store, call_on_device, kind, tmp_path):
    out = tmp_path / "audio.h5"
    emulation = call_on_device(
        "extract", "audio", workspace.manifest, "-o", out, "--encoder", tiny_encoders["hubert"], *FLOAT32
    )
    assert_same_features(out, audio_store)
    assert (emulation.n_pinned_copies > 0) == (kind == "cuda")


def test_video(workspace, tiny_encoders, faces_store, frames_store, call_on_device, tmp_path):
    out = tmp_path / "video.h5"
    options = ["--encoder", tiny_encoders["clip"], "--faces", faces_store, "--fps", 1, "--pool", "none", *FLOAT32]
    assert call_on_device("extract", "video", workspace.manifest, "-o", out, *options).calls
    assert_same_features(out, frames_store)


def test_faces_and_video_at_once(workspace, tiny_encoders, video_store, call_on_device, tmp_path):
    out = tmp_path / "video.h5"
    options = ["--encoder", tiny_encoders["clip"], "--fps", 1, *FLOAT32]
    call_on_device("extract", "video", workspace.manifest, "-o", out, *options)
    assert_same_features(out, video_store)


def test_text(workspace, tiny_encoders, text_store, call_on_device, tmp_path):
    out = tmp_path / "text.h5"
    call_on_device("extract", "text", workspace.manifest, "-o", out, "--encoder", tiny_encoders["bert"], *FLOAT32)
    assert_same_features(out, text_store)


def test_adapted_audio(workspace, tiny_encoders, finetune_run, acoustic_store, call_on_device, tmp_path):
    out = tmp_path / "acoustic.h5"
    options = ["--encoder", tiny_encoders["hubert"], "--adapter", finetune_run, "--storage", "float32", *FLOAT32]
    call_on_device("extract", "audio", workspace.manifest, "-o", out, *options)
    assert_same_features(out, acoustic_store, 1e-5)


# ---------------------------------------------------------------- probes


@pytest.mark.parametrize("estimator", ["logistic", "ridge"])
def test_probe_layers(estimator, workspace, audio_store, call, call_on_device, tmp_path):
    options = ["-m", workspace.manifest, "--folds", 3, "--seeds", 1, "--estimator", estimator]
    call("probe-layers", audio_store, *options, "-o", tmp_path / "cpu", "--device", "cpu", "-q")
    call_on_device("probe-layers", audio_store, *options, "-o", tmp_path / "device")
    expected, found = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("cpu", "device"))
    assert found == expected


# ---------------------------------------------------------------- alignment


def test_align(workspace, acoustic_store, frames_store, call, call_on_device, tmp_path):
    options = ["--audio", acoustic_store, "--video", frames_store, "-m", workspace.manifest, "--width", 8]
    options += ["--epochs", 3]
    call("align", *options, "-o", tmp_path / "cpu", "--aligned", tmp_path / "cpu.h5", "--device", "cpu", "-q")
    call_on_device("align", *options, "-o", tmp_path / "device", "--aligned", tmp_path / "device.h5")
    assert_same_features(tmp_path / "device.h5", tmp_path / "cpu.h5")


# ---------------------------------------------------------------- fusion and prediction


@pytest.fixture(scope="module")
def fused_on_both(workspace, audio_store, video_store, text_store, call, call_on_device, tmp_path_factory):
    """A run made on the CPU and one on the device."""
    folder = tmp_path_factory.mktemp("fused")
    options = [audio_store, video_store, text_store, "-m", workspace.manifest, "--folds", 3, "--seeds", 1]
    options += ["--epochs", 3, "--width", 8, "--class-weights", "--dropout", 0]
    call("fuse", *options, "-o", folder / "cpu", "--device", "cpu", "-q")
    call_on_device("fuse", *options, "-o", folder / "device")
    return folder / "cpu", folder / "device"


def read_probabilities(path):
    with open(path, newline="", encoding="utf-8") as file:
        return {row["clip"]: row for row in csv.DictReader(file)}


def test_fuse(fused_on_both):
    scores = [Run.read(run, "fuse").metrics["cross_validation"] for run in fused_on_both]
    assert scores[0] == scores[1]


def test_predict(fused_on_both, workspace, call, call_on_device, tmp_path):
    for name in ("cpu", "device"):
        (tmp_path / name).mkdir()
    source = fused_on_both[0]
    call("predict", source, workspace.manifest, "-o", tmp_path / "cpu" / "p.csv", "--device", "cpu", "-q")
    call_on_device("predict", source, workspace.manifest, "-o", tmp_path / "device" / "p.csv")
    expected, found = (read_probabilities(tmp_path / name / "p.csv") for name in ("cpu", "device"))
    assert list(found) == list(expected)
