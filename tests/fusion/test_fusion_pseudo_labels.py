"""Self-training: what is taken, and that no label of a fold reaches the members that score it."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from mertool.errors import MertoolError
from mertool.fusion.objective import UNUSED
from mertool.fusion.pseudo_labels import LEAST, Round, SelfTraining, UnimodalPredictions, select, self_train
from mertool.learning.folds import Folds

CLASSES = 3
UNIFORM = np.full(CLASSES, 1 / CLASSES)


def sure_of(*classes, by=5.0):
    """Logits (U, 3) that name these classes."""
    return by * np.eye(CLASSES)[list(classes)]


def chosen(fusion, votes=(), available=None, prior=UNIFORM, quota=100.0, confidence=0.8):
    there = [np.ones(len(fusion), bool)] * len(votes) if available is None else available
    return select(fusion, votes, there, prior, quota, confidence)


# ---------------------------------------------------------------- select


def test_a_clip_is_taken_where_most_modalities_say_what_fusion_says():
    fusion = sure_of(0, 0, 0, 0)
    votes = [sure_of(0, 0, 0, 1), sure_of(0, 0, 1, 1), sure_of(0, 1, 1, 1)]
    assert chosen(fusion, votes).labels.tolist() == [0, 0, UNUSED, UNUSED]


def test_half_of_the_votes_is_no_majority():
    assert chosen(sure_of(0, 0), [sure_of(0, 0), sure_of(0, 1)]).labels.tolist() == [0, UNUSED]


def test_absent_modalities_have_no_vote():
    fusion = sure_of(0, 0, 0)
    votes = [sure_of(0, 0, 0), sure_of(0, 0, 0), sure_of(1, 1, 1)]
    here = np.ones(3, bool)
    some = [here, np.array([True, False, False]), np.array([False, True, False])]
    # Two for it; one against one; a single vote, which is what fusion said anyway.
    assert chosen(fusion, votes, some).labels.tolist() == [0, UNUSED, UNUSED]


def test_a_single_system_has_nothing_to_agree_with():
    assert chosen(sure_of(2, 1), [sure_of(2, 0)]).labels.tolist() == [2, 1]


def test_of_each_class_its_share_of_the_quota_and_the_surest():
    fusion = np.concatenate([sure_of(0, 0, 0, 0, by=4.0), sure_of(1, 1, by=6.0)])
    fusion[2, 0] = 9.0
    found = chosen(fusion, prior=np.array([0.25, 0.5, 0.25]), quota=4.0)
    assert found.labels.tolist() == [UNUSED, UNUSED, 0, UNUSED, 1, 1]
    assert found.taken.tolist() == [1, 2, 0]
    assert found.agreed.tolist() == [4, 2, 0]


def test_an_easy_class_does_not_crowd_out_a_hard_one():
    """A hundred clips of class 0 that fusion is sure of, ten of class 1 that it is less sure of."""
    fusion = np.concatenate([sure_of(*[0] * 100, by=8.0), sure_of(*[1] * 10, by=1.5)])
    assert chosen(fusion, quota=30.0).taken.tolist() == [10, 10, 0]


def test_a_class_that_fusion_is_seldom_sure_of_has_a_lower_threshold():
    fusion = np.concatenate([sure_of(*[0] * 10, by=8.0), sure_of(*[1] * 8, by=8.0), sure_of(2, 2)])
    thresholds = chosen(fusion, confidence=0.9).thresholds
    # FlexMatch: 0.9 x with x = degree / (2 - degree); degree 1, 0.8, 0.2, and never below the half.
    np.testing.assert_allclose(thresholds, [0.9, 0.9 * 0.8 / 1.2, LEAST])


def test_the_degree_of_learning_is_counted_against_the_prior():
    fusion = np.concatenate([sure_of(*[0] * 9, by=8.0), sure_of(*[1] * 3, by=8.0)])
    thresholds = chosen(fusion, prior=np.array([0.6, 0.2, 0.2]), confidence=0.9).thresholds
    np.testing.assert_allclose(thresholds[:2], 0.9)


def test_no_clip_is_taken_below_the_half():
    fusion = np.log(np.array([[0.45, 0.3, 0.25], [0.55, 0.25, 0.2]]))
    assert chosen(fusion).labels.tolist() == [UNUSED, 0]


def test_nothing_that_can_be_taken():
    found = chosen(np.zeros((4, 3)))
    assert (found.labels == UNUSED).all()
    assert chosen(np.zeros((0, 3))).labels.shape == (0,)


# ---------------------------------------------------------------- rounds, with a small real trainer


class Data:
    """Two modalities of labelled and unlabelled clips; each is noisy by itself. Five folds.

    `train` gives what a fusion stage gives: a linear classifier on both modalities, one per fold.
    """

    def __init__(self, labelled=60, unlabelled=300, seed=0):
        rng = np.random.default_rng(seed)
        self.labels = np.arange(labelled) % CLASSES
        self.truth = rng.integers(0, CLASSES, unlabelled)
        centres = rng.normal(0, 1, (2, CLASSES, 20))
        of = np.concatenate([self.labels, self.truth])
        self.views = [0.3 * centres[m][of] + rng.normal(0, 1, (len(of), 20)) for m in range(2)]
        self.folds = Folds(np.arange(labelled) // CLASSES % 5, 5, "five")
        self.seen: list[np.ndarray] = []

    @property
    def count(self):
        return len(self.labels)

    def fit(self, x, rows, pseudo):
        """Logits (N + U, C) of a classifier of labelled `rows` and of the clips that `pseudo` (U,) names."""
        extra = np.flatnonzero(pseudo != UNUSED)
        inputs = np.concatenate([x[rows], x[self.count + extra]])
        model = LogisticRegression(C=0.1, max_iter=200).fit(inputs, np.concatenate([self.labels[rows], pseudo[extra]]))
        return model.decision_function(x)

    def witnesses(self):
        unused = np.full(len(self.truth), UNUSED)
        return [
            UnimodalPredictions(
                np.stack([self.fit(x, self.folds.train(fold), unused)[self.count :] for fold in range(5)]),
                np.ones(len(self.truth), bool),
            )
            for x in self.views
        ]

    def train(self, pseudo):
        self.seen.append(pseudo)
        both = np.concatenate(self.views, 1)
        logits = np.stack([self.fit(both, self.folds.train(fold), pseudo[fold]) for fold in range(5)])
        held_out = logits[self.folds.fold_of, np.arange(self.count)]
        return Round(held_out, logits[:, self.count :], kept=len(self.seen))

    def run(self, **options):
        given = SelfTraining(**options)
        return self_train(self.train, len(self.truth), self.witnesses(), self.labels, self.folds, given)


@pytest.fixture(scope="module")
def trained():
    data = Data()
    return data, data.run(rounds=3)


def test_the_first_round_has_no_pseudo_label_and_later_ones_more_and_more(trained):
    data, _ = trained
    counts = [(pseudo != UNUSED).sum(1) for pseudo in data.seen]
    assert len(counts) == 4
    assert (counts[0] == 0).all()
    assert (counts[1] > 0).all()
    assert (counts[2] > counts[1]).all()
    assert (counts[3] > counts[2]).all()


def test_at_most_as_many_as_labelled_training_clips_and_by_class_in_their_shares(trained):
    data, done = trained
    for fold in range(5):
        labels = data.labels[data.folds.train(fold)]
        taken = np.bincount(done.pseudo[fold][done.pseudo[fold] != UNUSED], minlength=CLASSES)
        assert taken.sum() <= len(labels)
        assert taken.max() <= np.ceil(len(labels) / CLASSES)


def test_pseudo_labels_are_mostly_true(trained):
    data, done = trained
    used = done.pseudo != UNUSED
    right = (done.pseudo == data.truth[None])[used].mean()
    alone = (done.last.unlabelled.argmax(2) == data.truth).mean()
    assert right > 0.9
    assert right > alone


def test_unlabelled_clips_help(trained):
    """On clips nobody labelled, where there are enough to tell; the last round is what is kept."""
    data, done = trained
    alone = Data().train(np.full_like(done.pseudo, UNUSED))
    before, after = ((found.unlabelled.argmax(2) == data.truth).mean() for found in (alone, done.last))
    assert after > before + 0.01
    assert done.last.kept == 4


def test_the_report_of_each_round(trained):
    _, done = trained
    report = done.report
    assert report["unlabelled_clips"] == 300
    assert len(report["rounds"]) == 3
    last = report["rounds"][-1]
    assert set(last) == {"agreed", "thresholds", "taken", "waf", "gain"}
    assert last["gain"]["difference"] == pytest.approx(last["waf"]["value"] - report["before"]["value"])
    mean = [(done.pseudo == index).sum() / 5 for index in range(CLASSES)]
    np.testing.assert_allclose(last["taken"], mean)


def test_labels_of_a_fold_change_nothing_of_its_pseudo_labels():
    """The held-out labels of fold 2 are shuffled and made nonsense: its own pseudo-labels stay, others' do not."""
    plain, shuffled = Data(), Data()
    rows = plain.folds.held_out(2)
    shuffled.labels = shuffled.labels.copy()
    shuffled.labels[rows] = (shuffled.labels[rows] + 1) % CLASSES
    first, second = plain.run(rounds=3), shuffled.run(rounds=3)
    for before, after in zip(plain.seen, shuffled.seen, strict=True):
        np.testing.assert_array_equal(before[2], after[2])
    assert any((first.pseudo[fold] != second.pseudo[fold]).any() for fold in (0, 1, 3, 4))
    np.testing.assert_array_equal(first.last.held_out[rows], second.last.held_out[rows])


def test_pseudo_labelled_clips_stand_in_no_fold(trained):
    """What is scored is the labelled clips, each once, whatever the unlabelled ones are said to be."""
    data, done = trained
    assert done.last.held_out.shape == (data.count, CLASSES)
    assert done.pseudo.shape == (data.folds.count, len(data.truth))
    assert sum(len(data.folds.held_out(fold)) for fold in range(5)) == data.count


def test_a_clip_without_modalities_is_never_taken():
    data = Data(unlabelled=50)
    witnesses = [UnimodalPredictions(w.logits, np.arange(50) >= 10) for w in data.witnesses()]
    done = self_train(data.train, 50, witnesses, data.labels, data.folds, SelfTraining())
    assert (done.pseudo[:, :10] == UNUSED).all()
    assert (done.pseudo[:, 10:] != UNUSED).any()


@pytest.mark.parametrize(
    "given, message",
    [({"rounds": 0}, "0 rounds"), ({"share": 0.0}, "a share of 0"), ({"confidence": 0.3}, "from 0.5 to below 1")],
)
def test_options_are_checked(given, message):
    with pytest.raises(MertoolError, match=message):
        SelfTraining(**given)
