"""The choice of a window of layers, and predictions by it."""

import numpy as np
import pytest
from sklearn.metrics import f1_score

from mertool.learning.folds import Folds
from mertool.probing.window import choose_window, choose_window_by_predictions, predict_by_windows
from mertool.significance import ClassMeasure, score
from mertool.targets import Classes


def test_a_given_width():
    window = choose_window([0, 1, 2, 3, 4], np.array([0.9, 0.2, 0.6, 0.5, 0.1]), standard_errors=None, width=2)
    assert (window.first, window.last) == (2, 3)
    assert window.reason == "highest mean score of 2 neighbouring layers"


def test_the_width_is_that_of_the_layers_as_good_as_the_best():
    wafs = np.array([0.9, 0.2, 0.3, 0.58, 0.6, 0.59, 0.3, 0.6, 0.1, 0.1, 0.1, 0.1, 0.1])
    errors = np.full(13, 0.03)
    window = choose_window(range(13), wafs, standard_errors=errors, width=None)
    assert (window.first, window.last) == (3, 5)
    beaten = "the best layer, 4, with the neighbours that are worse by at most one standard error of the difference"
    assert window.reason == beaten
    errors[3] = 0.01  # a smaller difference than before can be told from none
    assert choose_window(range(13), wafs, standard_errors=errors, width=None).first == 4


def draw_predictions(spread: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels (N,), speakers (N,) and predictions (1, 7, N) of layers 0 to 6; layers 3 to 5 are alike, the others worse.

    `spread` is how much speakers differ in difficulty, for all layers alike.
    """
    random = np.random.default_rng(3)
    speakers = np.repeat(np.arange(12), 40)
    labels = random.integers(0, 4, len(speakers))
    difficulty = random.normal(0, 1, len(speakers)) + spread * random.normal(0, 1, 12)[speakers]
    ability = np.array([-1, 0.0, 0.0, 0.8, 0.85, 0.8, 0.2])[:, None]
    is_right = difficulty + 0.3 * random.normal(0, 1, (7, len(speakers))) < ability
    return labels, speakers, np.where(is_right, labels, (labels + 1) % 4)[None]


@pytest.mark.parametrize("with_speakers", [True, False])
@pytest.mark.parametrize("spread", [0.0, 2.0])
def test_easy_and_hard_speakers_do_not_widen_the_window(spread, with_speakers):
    labels, speakers, predicted = draw_predictions(spread)
    groups = speakers if with_speakers else None
    window = choose_window_by_predictions(
        range(7), labels, predicted, measure=ClassMeasure(4), width=None, groups=groups
    )
    assert 3 <= window.first <= window.last <= 5


def test_what_shifts_all_layers_alike_leaves_the_window_as_it_is():
    """Each speaker says as many more clips, which all layers get right or wrong: half of them each, or all of them."""
    labels, speakers, predicted = draw_predictions(0.0)
    more_labels, more_speakers = np.tile(np.arange(4), 120), np.repeat(np.arange(12), 40)
    all_labels, groups = np.concatenate([labels, more_labels]), np.concatenate([speakers, more_speakers])
    windows, errors, widths = [], [], []
    for is_right in (np.arange(480) // 4 % 2 == 0, more_speakers % 2 == 0):
        more = np.where(is_right, more_labels, (more_labels + 1) % 4)
        both = np.concatenate([predicted, np.broadcast_to(more, (1, 7, 480))], axis=2)
        windows.append(
            choose_window_by_predictions(range(7), all_labels, both, measure=ClassMeasure(4), width=None, groups=groups)
        )
        errors.append(ClassMeasure(4).difference_errors(all_labels, both, 4, groups=groups))
        interval = score(all_labels, both[0, 4], 4, groups=groups)["waf"]
        widths.append(interval.high - interval.low)
    assert windows[0] == windows[1]
    assert errors[1] == pytest.approx(errors[0], rel=0.2)
    assert widths[1] > 4 * widths[0]


@pytest.mark.parametrize("n_speakers", [12, 3])
def test_standard_errors_are_those_of_differences_on_the_same_clips(n_speakers):
    """With fewer than five speakers they are over clips."""
    labels, speakers, predicted = draw_predictions(1.0)
    groups = speakers % n_speakers
    units = groups if n_speakers >= 5 else np.arange(len(labels))

    def difference(rows: np.ndarray, layer: int) -> float:
        best, other = (f1_score(labels[rows], predicted[0, row][rows], average="weighted") for row in (4, layer))
        return best - other

    errors = ClassMeasure(4).difference_errors(labels, predicted, 4, groups=groups)
    for layer in (2, 4, 6):
        left_out = np.array([difference(units != unit, layer) for unit in np.unique(units)])
        count = len(left_out)
        expected = np.sqrt((count - 1) / count * np.square(left_out - left_out.mean()).sum())
        assert errors[layer] == pytest.approx(expected, abs=1e-9)


def test_a_window_has_a_third_of_the_layers_at_most():
    wafs = np.array([0.5, 0.50, 0.51, 0.52, 0.55, 0.54, 0.53])
    window = choose_window(range(7), wafs, standard_errors=np.ones(7), width=None)
    assert (window.first, window.last) == (4, 5)
    assert "a third of the layers" in window.reason


def test_positions_of_a_window_among_some_layers():
    window = choose_window([0, 4, 8, 12], np.array([0.0, 0.5, 0.6, 0.1]), standard_errors=None, width=2)
    assert window.positions_of([0, 4, 8, 12]) == [1, 2]


def test_a_clip_is_predicted_by_the_window_of_its_fold():
    folds = Folds(np.array([0, 0, 1, 1]), 2, "")
    logits = np.zeros((2, 4, 2), np.float32)
    logits[0, :, 1] = 5  # layer 1 says class 1, layer 2 class 0
    logits[1, :, 0] = 5
    windows = [
        choose_window([1, 2], np.array(wafs), standard_errors=None, width=1) for wafs in ([1.0, 0.0], [0.0, 1.0])
    ]
    predicted = predict_by_windows(
        [1, 2], folds, logits, windows=windows, estimator="logistic", target=Classes(("0", "1"))
    )
    assert predicted.tolist() == [1, 1, 0, 0]
