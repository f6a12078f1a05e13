"""Which clips an adapter learns from, is chosen on and judged on; how alike features stay."""

import numpy as np
import pytest
import torch

from mertool.adapters.adapter import linear_cka
from mertool.adapters.cross_validation import Unfinished, plan_jobs
from mertool.adapters.window_ablation import candidates
from mertool.learning.folds import make_folds
from mertool.learning.labelled_clips import LabelledClips


def examples(clips, speakers):
    names = tuple(f"c{number}" for number in range(clips))
    who = tuple(f"s{number % speakers}" if speakers else None for number in range(clips))
    return LabelledClips(names, np.arange(clips) // 3 % 2, who)


@pytest.mark.parametrize("speakers", [0, 12])
def test_development_parts_are_of_the_training_part_alone(speakers):
    some = examples(120, speakers)
    folds = make_folds(some, 4, 0)
    jobs = plan_jobs(some, folds, 0)
    assert [job.name for job in jobs] == ["fold0", "fold1", "fold2", "fold3", "final"]
    for job in jobs:
        parts = [set(rows.tolist()) for rows in (job.part.train, job.part.develop, job.part.held_out)]
        assert sum(map(len, parts)) == len(set.union(*parts)) == 120
        assert 0.05 < len(parts[1]) / (len(parts[0]) + len(parts[1])) < 0.25
        if speakers:
            voices = [{some.speakers[row] for row in part} for part in parts]
            assert not (voices[0] & voices[1] or voices[0] & voices[2] or voices[1] & voices[2])


def test_too_few_clips_for_a_development_part_are_all_both():
    some = LabelledClips(("a", "b", "c", "d"), np.array([0, 1, 0, 1]), ("s", "s", "t", "t"))
    jobs = plan_jobs(some, make_folds(some, 2, 0), 0)
    assert all(len(job.part.develop) >= 1 for job in jobs)
    assert all(len(set(some.labels[job.part.train])) == 2 for job in jobs)


def test_cka():
    torch.manual_seed(0)
    features = torch.randn(50, 6)
    assert linear_cka(features, features) == pytest.approx(1)
    assert linear_cka(features, 3 * features + 2) == pytest.approx(1)
    assert linear_cka(features, torch.randn(50, 6)) < 0.3
    large = torch.cat([1000 * features[:, :1], features[:, 1:]], 1)
    changed = torch.cat([large[:, :1], torch.randn(50, 5)], 1)
    assert linear_cka(large, changed) < 0.6  # one large channel does not decide it


def test_another_command_begins_anew(tmp_path):
    first = Unfinished(tmp_path / "run", "a", True)
    (first.folder / "fold0.training.safetensors").write_bytes(b"x")
    assert (Unfinished(tmp_path / "run", "a", True).folder / "fold0.training.safetensors").exists()
    assert not (Unfinished(tmp_path / "run", "b", True).folder / "fold0.training.safetensors").exists()


def test_windows_tile_the_layers_from_the_last_one_down():
    assert candidates(24, 6, (16, 21)) == [(1, 6), (7, 12), (13, 18), (16, 21), (19, 24)]
    assert candidates(8, 3, (3, 5)) == [(3, 5), (6, 8)]
