"""A HuBERT is pre-trained on a few made clips, and is then a model like any other; how good is no matter here."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).parent / "bench"))

import pretrain

pytestmark = pytest.mark.slow

SIZES = {"width": 32, "layers": 2, "heads": 2, "channels": 16, "batch": 2, "units": 8, "seconds": 0.5, "device": "cpu"}
OPTIONS = pretrain.Options(**SIZES, steps=5)
RATE = pretrain.RATE


def tones(count: int = 6) -> list[np.ndarray]:
    """Clips of a rising tone, of 0.4 s and more, in half a second of silence."""
    random = np.random.default_rng(0)
    waves = []
    for number in range(count):
        time = np.arange(int((0.4 + 0.1 * number) * RATE)) / RATE
        tone = np.sin(2 * np.pi * (200 + 100 * number + 400 * time) * time)
        waves.append(np.pad(tone, RATE // 4) + random.normal(0, 1e-4, len(tone) + RATE // 2))
    return waves


def models_frames(samples: int) -> int:
    """How many frames HuBERT makes of a wave."""
    model = pretrain.make_model(pretrain.complete(OPTIONS)).eval()
    with torch.inference_mode():
        return model(torch.zeros(1, samples)).last_hidden_state.shape[1]


def test_a_model_is_pretrained_and_loads(tmp_path):
    from transformers import AutoFeatureExtractor, HubertModel

    folder = tmp_path / "hubert"
    records = pretrain.pretrain(tones(), folder, OPTIONS)
    assert [record["steps"] for record in records] == [2, 3]
    assert all(np.isfinite(record["loss"]) for record in records)
    assert json.loads((folder / "pretrain.json").read_text())["iterations"] == records
    assert list(tmp_path.iterdir()) == [folder]
    model = HubertModel.from_pretrained(folder)
    assert model.config.do_stable_layer_norm and model.config.layerdrop == 0
    extractor = AutoFeatureExtractor.from_pretrained(folder)
    assert extractor.do_normalize and extractor.return_attention_mask


def test_a_run_of_steps_repeats(tmp_path):
    first, second = (pretrain.pretrain(tones(3), tmp_path / name, OPTIONS) for name in "ab")
    assert [record["loss"] for record in first] == pytest.approx([record["loss"] for record in second], rel=1e-4)


def test_every_layer_is_probed(tmp_path):
    folder = tmp_path / "hubert"
    waves = {f"{number}.wav": wave for number, wave in enumerate(tones())}
    pretrain.pretrain(list(waves.values()), folder, OPTIONS)
    parts = {"train": ["0", "1", "4", "5"], "test": ["2", "3"]}
    table = [f"1,{split},flac/{name}.wav,{'low' if name < '3' else 'high'}" for split in parts for name in parts[split]]
    (tmp_path / "folds.csv").write_text("\n".join(["fold,split,file,label", *table]))
    folds = pretrain.read_folds(tmp_path / "folds.csv")
    random, trained = pretrain.check(waves, folder, folds, OPTIONS)
    assert len(random) == len(trained) == 1 + OPTIONS.layers
    assert all(0 <= accuracy <= 1 for accuracy in random + trained)


@pytest.mark.parametrize("samples", [400, 719, 720, 8000, 16_001])
def test_a_unit_stands_at_each_frame_of_the_model(samples):
    features = pretrain.mfcc(np.random.default_rng(0).normal(size=samples))
    assert features.shape == (models_frames(samples), 39)
    assert np.isfinite(features).all()


def test_silent_edges_are_cut_but_for_a_margin():
    wave = np.zeros(3 * RATE)
    wave[RATE : 2 * RATE] = 1.0
    margin = 2 * 10 * pretrain.HOP
    assert RATE + margin <= len(pretrain.trim(wave)) <= RATE + margin + 2 * pretrain.HOP
    assert len(pretrain.trim(np.zeros(RATE))) == RATE


def test_masks_are_spans_and_cover_about_half():
    masked = pretrain.draw_mask(np.random.default_rng(0), (200, 100), OPTIONS)
    assert 0.45 < masked.mean() < 0.6
    inner = masked[:, :90]
    runs = [len(run) for row in inner for run in "".join("x" if bit else " " for bit in row).split()]
    assert np.median(runs) >= OPTIONS.mask_length
