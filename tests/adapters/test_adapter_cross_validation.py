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
def test_development_clips_are_among_those_outside_the_fold(n_speakers):
    examples = make_examples(120, n_speakers)
    splits = adapter_splits(examples, make_folds(examples, 4, 0), 0)
    assert [split.name for split in splits] == ["fold0", "fold1", "fold2", "fold3", "final"]
    for split in splits:
        train, development, held_out = (set(rows.tolist()) for rows in (split.train, split.development, split.held_out))
        assert len(train) + len(development) + len(held_out) == len(train | development | held_out) == 120
        assert 0.05 < len(development) / (len(train) + len(development)) < 0.25
        if n_speakers:
            speakers = [{examples.speakers[row] for row in rows} for rows in (train, development, held_out)]
            assert not (speakers[0] & speakers[1] or speakers[0] & speakers[2] or speakers[1] & speakers[2])


def test_too_few_clips_to_divide_are_both_training_and_development():
    examples = LabelledClips(("a", "b", "c", "d"), np.array([0, 1, 0, 1]), ("s", "s", "t", "t"))
    splits = adapter_splits(examples, make_folds(examples, 2, 0), 0)
    assert all(len(split.development) >= 1 for split in splits)
    assert all(len(set(examples.labels[split.train])) == 2 for split in splits)


def test_held_out_logits_of_all_folds_are_in_the_order_of_the_clips():
    examples = make_examples(30, 0)
    splits = adapter_splits(examples, make_folds(examples, 3, 0), 0)
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
