"""The data of adaptation: stores of frozen layers that several runs share, and audio for the front end."""

from contextlib import contextmanager

import numpy as np
import pytest
import soundfile
import torch

from mertool import encoders
from mertool.adapters import data as adaptation_data
from mertool.adapters.data import AdaptationDataSpec, read_adaptation_data, sample_unlabelled
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
    (tmp_path / "c2.wav").write_bytes(b"no audio at all")
    return Manifest.read(write_manifest(tmp_path / "clips.csv", rows))


@pytest.fixture
def read(manifest, tiny_encoders, load_tiny, tmp_path):
    """A function (name of the encoder, options of the spec) that reads the data of the manifest."""

    def run(name="hubert_group", **options):
        checkpoint = encoders.resolve_encoder(str(tiny_encoders[name]), "audio")
        spec = AdaptationDataSpec(
            checkpoint=checkpoint,
            weights=checkpoint.digest(),
            dtype=torch.float32,
            device=torch.device("cpu"),
            limits=DecoderLimits(),
            **{"blocks": (1,)} | options,
        )
        cache, encoder = tmp_path / "cache", load_tiny(name, "audio")
        return read_adaptation_data(manifest, spec, cache=cache, encoder=encoder, progress=no_progress)

    return run


def test_frames_of_each_layer_are_those_of_the_encoder(read, load_tiny, tmp_path):
    from mertool.media import read_audio

    data = read(blocks=(1, 2), target_layer=3)
    assert data.names == ("c0", "c1", "c3")
    assert list(data.skipped) == ["c2"]
    encoder = load_tiny("hubert_group", "audio")
    expected = encoder.encode([read_audio(tmp_path / "c3.wav")], (1, 2, 3))[0].numpy()
    for index, frames in enumerate((data.inputs[1][2], data.inputs[2][2], data.reconstruction_frames[2])):
        np.testing.assert_allclose(np.asarray(frames), expected[index], atol=5e-3)
    assert data.lengths().tolist()[2] == expected.shape[1]
    reordered = data.reordered([2, 0, 1])
    assert reordered.names == ("c3", "c0", "c1")
    assert torch.equal(reordered.inputs[2][0], data.inputs[2][2])
    assert np.array_equal(reordered.reconstruction_frames[0], data.reconstruction_frames[2])


def test_from_the_front_end_nothing_is_stored(read, tmp_path):
    data = read(from_frontend=True)
    assert list(data.skipped) == ["c2"]
    assert not (tmp_path / "cache").exists()
    assert data.inputs[0][0].shape[1] == 32  # channels of the last convolution


@pytest.mark.parametrize("options", [{}, {"from_frontend": True}, {"log_mel": True}])
def test_the_frames_of_a_whisper_end_with_the_clip(options, read):
    """Not with its window of 30 s."""
    data = read("whisper", **options)
    assert data.lengths().tolist() == [13, 15, 20]
    assert data.cut == ()
    assert not options.get("log_mel") or [len(frames) for frames in data.reconstruction_frames] == [13, 15, 20]


@pytest.mark.parametrize("options", [{}, {"from_frontend": True}, {"log_mel": True}])
def test_a_clip_longer_than_a_window_is_cut_and_named(options, read, tmp_path):
    soundfile.write(tmp_path / "c1.wav", np.random.default_rng(9).normal(0, 0.1, 20_000), 16_000)
    data = read("whisper_short", **options)
    assert data.cut == ("c1",)
    assert data.lengths().tolist() == [13, 50, 20]
    assert data.reordered([1, 0, 2]).cut == ("c1",)


def test_a_store_that_another_run_writes_is_waited_for(read, tmp_path, monkeypatch):
    """Of two runs that need the same layers at the same time, the second waits and reads what the first wrote."""
    attempts = []
    extract = adaptation_data.extract_to_stores

    def busy_twice(*args):
        attempts.append(args)
        if len(attempts) < 3:
            raise StoreBusy("another extraction is writing")
        return extract(*args)

    monkeypatch.setattr(adaptation_data, "extract_to_stores", busy_twice)
    monkeypatch.setattr(adaptation_data, "RETRY_SECONDS", 0.0)
    read()
    assert len(attempts) == 3
    with FeatureStore(next((tmp_path / "cache").glob("*.h5"))) as store:
        assert store.ids == ["c0", "c1", "c3"]


def test_unlabelled_clips_are_drawn_by_the_seed(manifest):
    assert sample_unlabelled(manifest, 9, 0) == ("c0", "c1", "c2", "c3")
    samples = {sample_unlabelled(manifest, 2, seed) for seed in range(20)}
    assert len(samples) > 1
    assert all(len(sample) == 2 for sample in samples)
    assert sample_unlabelled(manifest, 2, 3) == sample_unlabelled(manifest, 2, 3)
    assert [clip.clip for clip in manifest.subset(["c3", "c0"]).clips] == ["c0", "c3"]
