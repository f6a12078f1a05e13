"""What training starts from: stores of frozen layers that several runs share."""

from contextlib import contextmanager

import numpy as np
import pytest
import soundfile
import torch

from mertool import encoders
from mertool.adapters import data as module
from mertool.adapters.data import Wanted, choose_unlabelled, only, read_clips
from mertool.extraction.decoding import DecoderLimits
from mertool.manifest import Manifest
from mertool.store import FeatureStore, StoreBusy


@contextmanager
def no_progress(title, unit):
    yield lambda *_: None


@pytest.fixture
def manifest(tmp_path, write_manifest):
    rows = []
    for number in range(4):
        path = tmp_path / f"c{number}.wav"
        soundfile.write(path, np.random.default_rng(number).normal(0, 0.1, 4000 + 800 * number), 16_000)
        rows.append({"clip": f"c{number}", "path": str(path), "split": "unlabelled"})
    (tmp_path / "c2.wav").write_bytes(b"no sound at all")
    return Manifest.read(write_manifest(tmp_path / "clips.csv", rows))


@pytest.fixture
def wanted(tiny_encoders):
    source = encoders.find(str(tiny_encoders["hubert_group"]), "audio")

    def make(blocks=(1,), target=None, logmel=False, exact=False):
        device = torch.device("cpu")
        return Wanted(source, source.digest(), blocks, target, logmel, exact, torch.float32, device, DecoderLimits())

    return make


def test_frames_of_each_layer_are_those_of_the_encoder(manifest, wanted, load_tiny, tmp_path):
    from mertool.media import read_audio

    found = read_clips(manifest, wanted((1, 2), 3), tmp_path, None, no_progress)
    assert found.names == ("c0", "c1", "c3")
    assert list(found.skipped) == ["c2"]
    encoder = load_tiny("hubert_group", "audio")
    plain = encoder.encode([read_audio(tmp_path / "c3.wav")], (1, 2, 3))[0].numpy()
    for number, frames in enumerate((found.inputs[1][2], found.inputs[2][2], found.hidden[2])):
        np.testing.assert_allclose(np.asarray(frames), plain[number], atol=5e-3)
    assert found.lengths().tolist()[2] == plain.shape[1]


def test_the_exact_form_stores_nothing(manifest, wanted, load_tiny, tmp_path):
    found = read_clips(
        manifest, wanted(exact=True), tmp_path / "cache", load_tiny("hubert_group", "audio"), no_progress
    )
    assert list(found.skipped) == ["c2"]
    assert not (tmp_path / "cache").exists()
    assert found.inputs[0][0].shape[1] == 32  # channels of the last convolution


def test_a_run_beside_this_one_is_waited_for(manifest, wanted, tmp_path, monkeypatch):
    """Two runs that start together want the same layers: the second waits, and reads what the first wrote."""
    tries = []
    fill = module.extract_to_stores

    def busy_twice(*given):
        tries.append(given)
        if len(tries) < 3:
            raise StoreBusy("another extraction is writing")
        return fill(*given)

    monkeypatch.setattr(module, "extract_to_stores", busy_twice)
    monkeypatch.setattr(module, "SECONDS_BETWEEN_LOOKS", 0.0)
    read_clips(manifest, wanted(), tmp_path, None, no_progress)
    assert len(tries) == 3
    with FeatureStore(next(tmp_path.glob("*.h5"))) as store:
        assert store.ids == ["c0", "c1", "c3"]


def test_unlabelled_clips_are_drawn_by_the_seed(manifest):
    assert choose_unlabelled(manifest, 9, 0) == ("c0", "c1", "c2", "c3")
    draws = {choose_unlabelled(manifest, 2, seed) for seed in range(20)}
    assert len(draws) > 1
    assert all(len(draw) == 2 for draw in draws)
    assert choose_unlabelled(manifest, 2, 3) == choose_unlabelled(manifest, 2, 3)
    assert [clip.clip for clip in only(manifest, ["c3", "c0"]).clips] == ["c0", "c3"]
