"""Which clips train which aligner."""

import numpy as np
import pytest

from mertool.alignment.cross_fitting import plan_alignment
from mertool.errors import MertoolError
from mertool.learning.folds import Folds
from mertool.learning.labelled_clips import LabelledClips


def plan(n_labelled: int, n_others: int, n_folds: int = 4):
    clips = [f"c{number:03d}" for number in range(n_labelled + n_others)]
    examples = LabelledClips(tuple(clips[:n_labelled]), np.arange(n_labelled) % 3, (None,) * n_labelled)
    folds = Folds(np.arange(n_labelled) % n_folds, n_folds, "")
    return clips, plan_alignment(clips, (examples, folds), seed=0)


@pytest.mark.parametrize(("n_labelled", "n_others"), [(40, 0), (40, 39), (8, 7)])
def test_no_aligner_is_trained_or_stopped_by_the_clips_that_it_encodes(n_labelled, n_others):
    clips, planned = plan(n_labelled, n_others)
    assert list(planned.splits)[-1] == "final"
    assert set(planned.aligner_of_clip) == set(clips[:n_labelled])
    for clip, name in planned.aligner_of_clip.items():
        split, row = planned.splits[name], clips.index(clip)
        assert row in split.held_out
        assert row not in split.train
        assert row not in split.development
    for split in planned.splits.values():
        parts = np.concatenate([split.train, split.development, split.held_out])
        assert sorted(parts) == list(range(len(clips)))


@pytest.mark.parametrize(("n_labelled", "n_others"), [(40, 40), (40, 400), (4, 8)])
def test_labelled_clips_are_held_out_where_enough_others_are_left(n_labelled, n_others):
    _, planned = plan(n_labelled, n_others)
    assert planned.aligner_of_clip == {}
    assert list(planned.splits) == ["final"]
    assert planned.final.held_out.tolist() == list(range(n_labelled))
    assert len(planned.final.train) + len(planned.final.development) == n_others


def test_without_labels_there_is_one_aligner():
    planned = plan_alignment([f"c{number}" for number in range(50)], None, seed=0)
    assert list(planned.splits) == ["final"]
    assert len(planned.final.held_out) == 10


@pytest.mark.parametrize("n_labelled", [0, 20, 60])
def test_test_clips_train_nothing(n_labelled):
    clips = [f"c{number:03d}" for number in range(120)]
    labelled = None
    if n_labelled:
        examples = LabelledClips(tuple(clips[:n_labelled]), np.arange(n_labelled) % 3, (None,) * n_labelled)
        labelled = examples, Folds(np.arange(n_labelled) % 4, 4, "")
    planned = plan_alignment(clips, labelled, test_clips=clips[80:], seed=0)
    for split in planned.splits.values():
        assert max(*split.train, *split.development) < 80
    assert not set(planned.aligner_of_clip) & set(clips[80:])


@pytest.mark.parametrize("n_usable", [0, 1, 5])
def test_too_few_clips_outside_the_test_split_are_refused(n_usable):
    clips = [f"c{number:03d}" for number in range(30)]
    with pytest.raises(MertoolError, match=rf"{n_usable} clips are left to train an aligner.*split 'test'"):
        plan_alignment(clips, None, test_clips=clips[n_usable:], seed=0)


def test_a_fold_that_holds_nearly_all_clips_is_refused():
    clips = [f"c{number}" for number in range(9)]
    examples = LabelledClips(tuple(clips), np.arange(9) % 3, (None,) * 9)
    folds = Folds(np.array([0] * 6 + [1] * 3), 2, "")
    with pytest.raises(MertoolError, match="3 clips are left to train an aligner"):
        plan_alignment(clips, (examples, folds), seed=0)
