"""Scores of an aligner: retrieval, likeness of the spaces, and what a linear probe gains."""

import numpy as np
import pytest
import torch

from mertool.alignment.evaluation import alignment, probe_folds, probe_gain, retrieval, uniformity, validate
from mertool.errors import MertoolError
from mertool.learning.labelled_clips import LabelledClips


@pytest.fixture
def rows():
    random = np.random.default_rng(0)
    return random.normal(0, 1, (40, 6)), random.normal(0, 1, (40, 6))


def test_retrieval_of_equal_and_of_unrelated_vectors(rows):
    a, b = rows
    perfect, none = retrieval(a, 5 * a, 0), retrieval(a, b, 0)
    for way in ("video_to_audio", "audio_to_video"):
        assert perfect[way]["recall@1"] == {"value": 1.0, "low": 1.0, "high": 1.0}
        assert perfect[way]["median_rank"]["value"] == 1.0
        assert none[way]["recall@1"]["value"] < 0.2
        assert none[way]["recall@10"]["low"] < none["chance"]["recall@10"] < none[way]["recall@10"]["high"] + 0.1
    assert none["chance"] == {"recall@1": 1 / 40, "recall@5": 5 / 40, "recall@10": 10 / 40, "median_rank": 20.5}


def test_ranks_are_those_of_a_plain_search(rows):
    a, b = rows
    a = a + b
    ranks = []
    for query in range(40):
        similar = [a[query] @ b[other] / np.linalg.norm(a[query]) / np.linalg.norm(b[other]) for other in range(40)]
        ranks.append(sorted(similar, reverse=True).index(similar[query]) + 1)
    found = retrieval(a, b, 0)["video_to_audio"]
    assert found["recall@5"]["value"] == pytest.approx(np.mean(np.array(ranks) <= 5))
    assert found["median_rank"]["value"] == np.median(ranks)


def test_vectors_that_are_all_alike_are_worth_chance(rows):
    found = retrieval(np.ones((40, 6)), rows[1], 0)
    assert found["video_to_audio"]["recall@10"]["value"] == pytest.approx(0.25, abs=0.06)
    assert found["audio_to_video"]["recall@10"]["value"] == 0.0
    assert found["audio_to_video"]["median_rank"]["value"] == 20.5


def test_cka_comes_with_that_of_shuffled_clips(rows):
    few = torch.from_numpy(rows[0][:8])
    found = validate(few, few, 0)["cka"]
    assert found["value"] == pytest.approx(1)
    assert 0.3 < found["shuffled"] < 0.9  # eight clips of six channels are alike by chance


def test_alignment_and_uniformity_of_known_points():
    one = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    assert alignment(one, 3 * one) == pytest.approx(0)
    assert alignment(one, one.flip(0)) == pytest.approx(2)
    assert uniformity(one) == pytest.approx(-4)  # squared distance 2, twice
    assert uniformity(torch.ones(5, 3)) == pytest.approx(0)


@pytest.fixture
def examples():
    labels = np.arange(60) % 3
    return LabelledClips(tuple(f"c{n}" for n in range(60)), labels, tuple(f"s{n // 10}" for n in range(60)))


def test_what_a_probe_gains_by_features_that_tell_the_class(examples):
    random = np.random.default_rng(0)
    noise = random.normal(0, 1, (60, 5)).astype(np.float32)
    telling = noise + 3 * np.eye(3, 5, dtype=np.float32)[examples.labels]
    found = probe_gain(noise, telling, examples, probe_folds(examples, 0), 3, 0)
    assert found["aligned"]["waf"]["value"] > 0.9
    assert found["gain"]["low"] > 0.2
    assert found["interval"] == "speakers"
    assert "speaker-disjoint" in found["folds"]
    back = probe_gain(telling, noise, examples, probe_folds(examples, 0), 3, 0)
    assert back["gain"]["high"] < -0.2


def test_few_labelled_clips_get_fewer_folds():
    few = LabelledClips(("a", "b", "c", "d"), np.array([0, 0, 1, 1]), (None,) * 4)
    assert probe_folds(few, 0).count == 2
    with pytest.raises(MertoolError, match="leave out --manifest"):
        probe_folds(LabelledClips(("a", "b"), np.array([0, 1]), (None,) * 2), 0)
