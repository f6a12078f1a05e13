"""Folds: no speaker on both sides, classes spread, the seed decides."""

import numpy as np
import pytest

from mertool.errors import MertoolError
from mertool.training.examples import Examples, keep
from mertool.training.folds import make_folds


def examples(count=120, classes=4, speakers=12, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    who = tuple(f"s{n}" for n in rng.integers(0, speakers, count)) if speakers else (None,) * count
    return Examples(tuple(f"c{n}" for n in range(count)), labels, who)


def test_every_clip_is_held_out_once():
    folds = make_folds(examples(), 5, 0)
    assert sorted(np.concatenate([folds.held_out(fold) for fold in range(5)])) == list(range(120))
    for fold in range(5):
        assert sorted([*folds.train(fold), *folds.held_out(fold)]) == list(range(120))


def test_no_speaker_is_on_both_sides():
    data = examples()
    folds = make_folds(data, 5, 0)
    speakers = np.array(data.speakers)
    for fold in range(5):
        assert not set(speakers[folds.train(fold)]) & set(speakers[folds.held_out(fold)])
    assert "speaker-disjoint (12 speakers)" in folds.kind


def test_as_many_folds_as_speakers_at_most():
    assert make_folds(examples(speakers=3), 5, 0).count == 3


@pytest.mark.parametrize("unknown", ["all", "one", "same"])
def test_without_speakers_folds_are_stratified(unknown):
    data = examples(speakers=0) if unknown == "all" else examples()
    if unknown == "one":
        data = Examples(data.clips, data.labels, (None, *data.speakers[1:]))
    if unknown == "same":
        data = Examples(data.clips, data.labels, ("s1",) * len(data))
    folds = make_folds(data, 5, 0)
    assert "not kept apart" in folds.kind
    for fold in range(5):
        share = np.bincount(data.labels[folds.held_out(fold)], minlength=4)
        np.testing.assert_allclose(share, np.bincount(data.labels, minlength=4) / 5, atol=1)


def test_the_seed_decides():
    data = examples(speakers=0)
    a, b, c = (make_folds(data, 5, seed).of for seed in (1, 1, 2))
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


def test_a_rare_class_is_no_error():
    data = examples(60, speakers=0)
    data.labels[:] = data.labels % 2
    data.labels[7] = 3
    assert make_folds(data, 5, 0).count == 5


def test_fewer_clips_than_folds():
    with pytest.raises(MertoolError, match=r"4 labelled clips with features are fewer than 5 folds"):
        make_folds(examples(4, speakers=0), 5, 0)


def test_a_largest_class_smaller_than_the_folds():
    data = Examples(tuple("abcdef"), np.array([0, 0, 1, 1, 2, 2]), (None,) * 6)
    with pytest.raises(MertoolError, match=r"the largest class has 2 clips, fewer than 5 folds"):
        make_folds(data, 5, 0)


def test_one_fold():
    with pytest.raises(MertoolError, match="give at least 2"):
        make_folds(examples(), 1, 0)


def test_a_training_part_of_one_class():
    data = Examples(tuple("abcd"), np.array([0, 0, 1, 1]), ("x", "x", "y", "y"))
    with pytest.raises(MertoolError, match="has one class only"):
        make_folds(data, 2, 0)


def test_folds_by_clip_id():
    data = examples(20, speakers=0)
    folds = make_folds(data, 4, 0)
    assert folds.to_json(data) == {f"c{n}": int(fold) for n, fold in enumerate(folds.of)}


def test_keeping_some_examples_keeps_them_together():
    data = examples(10)
    some = keep(data, np.arange(10) % 3 == 0)
    assert some.clips == ("c0", "c3", "c6", "c9")
    assert some.labels.tolist() == data.labels[::3].tolist()
    assert some.speakers == data.speakers[::3]
