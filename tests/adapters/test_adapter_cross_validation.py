"""Splits of the clips for each adapter, the adapters that an unfinished run keeps, candidate windows, CKA."""

import numpy as np
import pytest
import torch

from mertool.adapters.cross_validation import adapter_splits, join_held_out
from mertool.adapters.finished import FinishedAdapters
from mertool.adapters.window_ablation import candidate_windows
from mertool.learning.cka import linear_cka
from mertool.learning.folds import make_folds
from mertool.learning.labelled_clips import LabelledClips


def make_examples(n_clips, n_speakers):
    names = tuple(f"c{number}" for number in range(n_clips))
    speakers = tuple(f"s{number % n_speakers}" if n_speakers else None for number in range(n_clips))
    return LabelledClips(names, np.arange(n_clips) // 3 % 2, speakers)


@pytest.mark.parametrize("n_speakers", [0, 12])
def test_an_adapter_is_trained_on_all_clips_outside_its_fold(n_speakers):
    examples = make_examples(120, n_speakers)
    folds = make_folds(examples, 4, 0)
    splits = adapter_splits(folds)
    assert [split.name for split in splits] == ["fold0", "fold1", "fold2", "fold3", "final"]
    for number, split in enumerate(splits[:4]):
        assert split.held_out.tolist() == folds.held_out(number).tolist()
        assert sorted([*split.train, *split.held_out]) == list(range(120))
        if n_speakers:
            train, held_out = ({examples.speakers[row] for row in rows} for rows in (split.train, split.held_out))
            assert not train & held_out
    assert splits[-1].train.tolist() == list(range(120))
    assert len(splits[-1].held_out) == 0
    assert [split.name for split in adapter_splits(folds, final=False)] == ["fold0", "fold1", "fold2", "fold3"]


def test_held_out_logits_of_all_folds_are_in_the_order_of_the_clips():
    examples = make_examples(30, 0)
    splits = adapter_splits(make_folds(examples, 3, 0))
    logits = [split.held_out[:, None].astype(np.float32) for split in splits]
    assert join_held_out(splits, logits)[:, 0].tolist() == list(range(30))


def test_cka():
    torch.manual_seed(0)
    features = torch.randn(50, 6)
    assert linear_cka(features, features) == pytest.approx(1)
    assert linear_cka(features, 3 * features + 2) == pytest.approx(1)
    assert linear_cka(features, torch.randn(50, 6)) < 0.3
    large = torch.cat([1000 * features[:, :1], features[:, 1:]], 1)
    changed = torch.cat([large[:, :1], torch.randn(50, 5)], 1)
    assert linear_cka(large, changed) < 0.6  # a single large channel does not dominate


def test_finished_adapters_of_another_command_are_removed(tmp_path):
    finished = FinishedAdapters(tmp_path / "run", is_writer=True)
    finished.open("a")
    (finished.folder / "fold0.safetensors").write_bytes(b"x")
    finished.open("a")
    assert (finished.folder / "fold0.safetensors").exists()
    assert finished.load("fold0") is None  # without its adapter
    finished.open("b")
    assert not (finished.folder / "fold0.safetensors").exists()
    finished.remove()
    assert not finished.folder.exists()


def test_candidate_windows_tile_the_layers_from_the_last_one_down():
    assert candidate_windows(24, 6, (16, 21)) == [(1, 6), (7, 12), (13, 18), (16, 21), (19, 24)]
    assert candidate_windows(8, 3, (3, 5)) == [(3, 5), (6, 8)]
