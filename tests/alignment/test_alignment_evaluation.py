"""Scores of an aligner: retrieval, similarity of the spaces, and the gain of a linear probe."""

import numpy as np
import pytest
import torch

from mertool.alignment.evaluation import (
    DIRECTIONS,
    alignment_distance,
    evaluate_alignment,
    probe_folds,
    probe_gain,
    retrieval_scores,
    uniformity,
)
from mertool.errors import MertoolError
from mertool.learning.labelled_clips import LabelledClips
from mertool.significance import score


@pytest.fixture
def vectors():
    random = np.random.default_rng(0)
    return random.normal(0, 1, (40, 6)), random.normal(0, 1, (40, 6))


def test_retrieval_of_equal_and_of_unrelated_vectors(vectors):
    first, second = vectors
    equal, unrelated = retrieval_scores(first, 5 * first), retrieval_scores(first, second)
    chance = unrelated["chance"]
    for direction in DIRECTIONS:
        assert equal[direction]["recall@1"] == {"value": 1.0, "low": pytest.approx(0.91, abs=0.01), "high": 1.0}
        assert equal[direction]["median_rank"] == 1.0
        assert unrelated[direction]["recall@1"]["value"] < 0.2
        recall = unrelated[direction]["recall@10"]
        assert recall["low"] < chance["recall@10"] < recall["high"] + 0.1
    assert chance == {"recall@1": 1 / 40, "recall@5": 5 / 40, "recall@10": 10 / 40, "median_rank": 20.5}


def test_retrieval_ranks_are_those_of_a_plain_search(vectors):
    first, second = vectors
    first = first + second
    ranks = []
    for query in range(40):
        cosines = [first[query] @ row / np.linalg.norm(first[query]) / np.linalg.norm(row) for row in second]
        ranks.append(sorted(cosines, reverse=True).index(cosines[query]) + 1)
    scores = retrieval_scores(first, second)["video_to_audio"]
    assert scores["recall@5"]["value"] == pytest.approx(np.mean(np.array(ranks) <= 5))
    assert scores["median_rank"] == np.median(ranks)


def test_retrieval_intervals_are_those_of_accuracy_over_speakers(vectors):
    """Recall is the accuracy of finding, so its interval is that of `score` on hits and misses."""
    first, second = vectors
    first, speakers = first + second, np.arange(40) // 5
    unit_first, unit_second = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (first, second))
    similarities = unit_first @ unit_second.T
    ranks = (similarities >= np.diagonal(similarities)[:, None]).sum(1)
    for groups, unit in ((speakers, "speakers"), (None, "clips")):
        scores = retrieval_scores(first, second, groups)
        assert scores["interval"] == unit
        hits = (ranks <= 5).astype(np.int64)
        expected = score(np.ones(40, np.int64), hits, 2, groups=groups)["accuracy"].to_json()
        assert scores["video_to_audio"]["recall@5"] == pytest.approx(expected)


def test_retrieval_of_equal_vectors_for_all_clips_is_chance(vectors):
    scores = retrieval_scores(np.ones((40, 6)), vectors[1])
    assert scores["video_to_audio"]["recall@10"]["value"] == pytest.approx(0.25, abs=0.06)
    assert scores["audio_to_video"]["recall@10"]["value"] == 0.0
    assert scores["audio_to_video"]["median_rank"] == 20.5


def test_cka_is_reported_with_that_of_shuffled_clips(vectors):
    few = torch.from_numpy(vectors[0][:8])
    cka = evaluate_alignment(few, few, seed=0)["cka"]
    assert cka["value"] == pytest.approx(1)
    assert 0.3 < cka["shuffled"] < 0.9  # high by chance, with eight clips of six channels


def test_alignment_and_uniformity_of_known_points():
    points = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    assert alignment_distance(points, 3 * points) == pytest.approx(0)
    assert alignment_distance(points, points.flip(0)) == pytest.approx(2)
    assert uniformity(points) == pytest.approx(-4)  # squared distance 2, twice
    assert uniformity(torch.ones(5, 3)) == pytest.approx(0)


@pytest.fixture
def examples():
    labels = np.arange(60) % 3
    return LabelledClips(tuple(f"c{n}" for n in range(60)), labels, tuple(f"s{n // 10}" for n in range(60)))


def test_probe_gain_of_features_that_predict_the_class(examples):
    random = np.random.default_rng(0)
    noise = random.normal(0, 1, (60, 5)).astype(np.float32)
    predictive = noise + 3 * np.eye(3, 5, dtype=np.float32)[examples.labels]
    settings = {"folds": probe_folds(examples, 0), "classes": 3}
    better, worse = (
        probe_gain(noise, predictive, examples, **settings),
        probe_gain(predictive, noise, examples, **settings),
    )
    assert better["aligned"]["waf"]["value"] > 0.9
    assert better["gain"]["low"] > 0.2
    assert better["interval"] == "speakers"
    assert "speaker-disjoint" in better["folds"]
    assert worse["gain"]["high"] < -0.2


def test_probe_folds_of_few_clips_are_fewer():
    few = LabelledClips(("a", "b", "c", "d"), np.array([0, 0, 1, 1]), (None,) * 4)
    assert probe_folds(few, 0).count == 2
    with pytest.raises(MertoolError, match="leave out --manifest"):
        probe_folds(LabelledClips(("a", "b"), np.array([0, 1]), (None,) * 2), 0)
