"""Linear probes of frozen and adapted features: their penalties are chosen on frozen features of the other folds."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import PredefinedSplit, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mertool.adapters.cross_validation import adapter_splits
from mertool.adapters.layer_probes import FrozenProbes
from mertool.adapters.model import side_by_side
from mertool.learning.folds import Folds
from mertool.probing.nested_cv import PENALTIES

N_CLIPS, N_CHANNELS, N_CLASSES = 90, 12, 3
FOLD_OF = np.arange(N_CLIPS) % 4
SPLITS = adapter_splits(Folds(FOLD_OF, 4, "4 folds"))


@pytest.fixture
def setup():
    """Frozen features of two blocks: the first says much of the label, the second little."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, N_CLASSES, N_CLIPS)
    centres = rng.normal(0, 1, (N_CLASSES, N_CHANNELS))
    features = [each * centres[labels] + rng.normal(0, 1, (N_CLIPS, N_CHANNELS)) for each in (0.5, 0.2)]
    frozen = torch.from_numpy(np.stack(features)).float()
    return SimpleNamespace(
        frozen_features=frozen,
        window_features=side_by_side(frozen),
        labels=np.append(labels, -100),  # an unlabelled clip comes last
        labelled_rows=np.arange(N_CLIPS),
        n_classes=N_CLASSES,
    )


def sklearn_probe(inverse_penalty):
    return make_pipeline(StandardScaler(), LogisticRegression(C=inverse_penalty, max_iter=5000, tol=1e-8))


def chosen_penalty(features, labels, folds):
    """The C of least cross-entropy by scikit-learn's own cross-validation."""

    def loss(inverse):
        guesses = cross_val_predict(
            sklearn_probe(inverse), features, labels, cv=PredefinedSplit(folds), method="predict_proba"
        )
        return log_loss(labels, guesses)

    return min(PENALTIES["logistic"], key=loss)


def expected_logits(frozen, adapted, labels, split):
    """Logits of held-out clips by scikit-learn, of frozen and of adapted features (N, D)."""
    inverse = chosen_penalty(frozen[split.train], labels[split.train], FOLD_OF[split.train])
    logits = [
        sklearn_probe(inverse).fit(each[split.train], labels[split.train]).decision_function(each[split.held_out])
        for each in (frozen, adapted)
    ]
    return inverse, [each - each.mean(1, keepdims=True) for each in logits]


def test_probes_of_frozen_and_adapted_features_are_scikit_learns(setup):
    labels = setup.labels[:N_CLIPS]
    # An adapter that has learned the labels of the training clips by heart: its own features would choose C = 1.
    memorised = torch.nn.functional.one_hot(torch.from_numpy(labels), N_CHANNELS) * 5.0
    probes = FrozenProbes.fit(setup, SPLITS)
    chosen = set()
    for split in SPLITS[:-1]:
        adapted = setup.frozen_features.clone()
        adapted[:, split.train] += memorised[split.train]
        for layer in range(2):
            frozen = setup.frozen_features[layer].double().numpy()
            inverse, expected = expected_logits(frozen, adapted[layer].double().numpy(), labels, split)
            chosen.add(inverse)
            ours = [logits[layer] for logits in probes.layer_logits(split, adapted)]
            for each, reference in zip(ours, expected, strict=True):
                np.testing.assert_allclose(each, reference, atol=0.02)
        windows = (side_by_side(each).double().numpy() for each in (setup.frozen_features, adapted))
        _, expected = expected_logits(*windows, labels, split)
        for each, reference in zip(probes.window_logits(split, adapted), expected, strict=True):
            np.testing.assert_allclose(each, reference, atol=0.02)
    assert len(chosen) > 1
    assert 1.0 not in chosen


def test_labels_of_the_held_out_fold_choose_nothing(setup):
    before = FrozenProbes.fit(setup, SPLITS)
    rows = SPLITS[0].held_out
    setup.labels[rows] = (setup.labels[rows] + 1) % N_CLASSES
    after = FrozenProbes.fit(setup, SPLITS)
    for name in ("layers", "window"):
        old, new = getattr(before, name), getattr(after, name)
        assert torch.equal(old.inverse_penalty[:, 0], new.inverse_penalty[:, 0])
        torch.testing.assert_close(old.weight[:, 0], new.weight[:, 0], atol=1e-3, rtol=1e-3)
        assert not torch.allclose(old.weight[:, 1], new.weight[:, 1], atol=1e-2)


def test_the_adapter_of_all_clips_has_no_held_out_logits(setup):
    probes = FrozenProbes.fit(setup, SPLITS)
    assert [each.shape for each in probes.layer_logits(SPLITS[-1], setup.frozen_features)] == [(2, 0, N_CLASSES)] * 2
    assert [each.shape for each in probes.window_logits(SPLITS[-1], setup.frozen_features)] == [(0, N_CLASSES)] * 2
