"""The choice of a window of layers, and predictions by it."""

import numpy as np

from mertool.learning.folds import Folds
from mertool.probing.window import choose_window, predict_by_windows


def test_a_given_width():
    window = choose_window([0, 1, 2, 3, 4], np.array([0.9, 0.2, 0.6, 0.5, 0.1]), standard_error=0.5, width=2)
    assert (window.first, window.last) == (2, 3)
    assert window.reason == "highest mean weighted F1 of 2 neighbouring layers"


def test_the_width_is_that_of_the_layers_as_good_as_the_best():
    wafs = np.array([0.9, 0.2, 0.3, 0.58, 0.6, 0.59, 0.3, 0.6, 0.1, 0.1, 0.1, 0.1, 0.1])
    window = choose_window(range(13), wafs, standard_error=0.03, width=None)
    assert (window.first, window.last) == (3, 5)
    assert "best layer, 4, with the neighbours within one standard error (3.0 points)" in window.reason


def test_a_window_has_a_third_of_the_layers_at_most():
    wafs = np.array([0.5, 0.50, 0.51, 0.52, 0.55, 0.54, 0.53])
    window = choose_window(range(7), wafs, standard_error=1.0, width=None)
    assert (window.first, window.last) == (4, 5)
    assert "a third of the layers" in window.reason


def test_positions_of_a_window_among_some_layers():
    window = choose_window([0, 4, 8, 12], np.array([0.0, 0.5, 0.6, 0.1]), standard_error=0, width=2)
    assert window.positions_of([0, 4, 8, 12]) == [1, 2]


def test_a_clip_is_predicted_by_the_window_of_its_fold():
    folds = Folds(np.array([0, 0, 1, 1]), 2, "")
    logits = np.zeros((2, 4, 2), np.float32)
    logits[0, :, 1] = 5  # layer 1 says class 1, layer 2 class 0
    logits[1, :, 0] = 5
    windows = [choose_window([1, 2], np.array(wafs), standard_error=0, width=1) for wafs in ([1.0, 0.0], [0.0, 1.0])]
    predicted = predict_by_windows([1, 2], folds, logits, windows=windows, estimator="logistic")
    assert predicted.tolist() == [1, 1, 0, 0]
