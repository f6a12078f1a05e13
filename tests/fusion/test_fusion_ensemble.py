"""Members that are trained at once are what each would have been by itself."""

import pytest
import torch
from torch import nn

from mertool.fusion import ensemble
from mertool.fusion.batches import drop_modalities
from mertool.fusion.ensemble import ensemble_logits, train_members
from mertool.fusion.heads import HeadSpec
from mertool.fusion.heads._layers import Dropout, stack_members
from mertool.fusion.hyperparameters import Trial
from mertool.fusion.modality_features import ModalityFeatures
from mertool.fusion.trainer import EnsembleMember, FusionTraining

SPEC = HeadSpec("attention", [(2, 6), (1, 4)], 3)
PLAIN = FusionTraining(batch=8, modality_dropout=0.0)
FULL = FusionTraining(batch=8, modality_dropout=0.2, label_smoothing=0.1, class_weights=True)
ROWS = [torch.arange(0, 30), torch.arange(10, 40), torch.arange(0, 40)[torch.arange(40) % 4 != 1]]


@pytest.fixture
def data():
    """Features of forty clips, of which some lack a modality, and their labels."""
    torch.manual_seed(5)
    labels = torch.randint(0, 3, (40,))
    values = [torch.randn(40, 2, 6) + labels[:, None, None], 10 * torch.randn(40, 1, 4) + 3]
    present = torch.rand(40, 2) < 0.8
    present[~present.any(1), 0] = True
    return ModalityFeatures(values, present), labels


def member(rows, labels, seed, *, validation_rows=None, keep_best=False, **trial):
    return EnsembleMember(
        fold=0,
        rows=rows,
        labels=labels,
        seed=seed,
        trial=Trial(**{"width": 8, "dropout": 0.0, "epochs": 5, **trial}),
        validation_rows=validation_rows,
        keep_best=keep_best,
    )


def train(features, members, training=PLAIN):
    return train_members(SPEC, features, members, training=training)


def logits(features, trained, width=8):
    state = {name: value[None] for name, value in trained.state.items()}
    return ensemble_logits(SPEC.build(width=width), state, features)[0]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_together_equals_alone(data):
    """Whatever else is trained: members of another width, rate, number of rows or epochs, too."""
    features, labels = data
    members = [
        *(member(rows, labels, seed) for seed, rows in enumerate(ROWS)),
        member(ROWS[0], labels, 7, learning_rate=1e-2),
        member(ROWS[1], labels, 8, width=5),
        member(torch.arange(0, 13), labels, 9),
        member(ROWS[2], labels, 10, epochs=2),
    ]
    for one, trained in zip(members, train(features, members), strict=True):
        (alone,) = train(features, [one])
        width = one.trial.width
        expected = logits(features, alone, width)
        torch.testing.assert_close(logits(features, trained, width), expected, atol=1e-4, rtol=1e-4)


def test_members_of_a_stack_may_differ_in_dropout(data):
    features, labels = data
    members = [member(ROWS[0], labels, 1, dropout=rate, epochs=1) for rate in (0.0, 0.5)]
    none, half = (logits(features, trained) for trained in train(features, members))
    alone = logits(features, train(features, members[:1])[0])
    torch.testing.assert_close(none, alone, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(half, alone, atol=1e-3)


def test_each_member_has_labels_of_its_own(data):
    features, labels = data
    others = (labels + 1) % 3
    first, second = train(features, [member(ROWS[0], labels, 1), member(ROWS[0], others, 1)])
    (alone,) = train(features, [member(ROWS[0], others, 1)])
    torch.testing.assert_close(logits(features, second), logits(features, alone), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(logits(features, first), logits(features, second), atol=1e-2)


def test_standardizers_are_fitted_on_the_rows_of_their_member(data):
    features, labels = data
    for rows, trained in zip(ROWS, train(features, [member(r, labels, 1, epochs=1) for r in ROWS]), strict=True):
        for modality, values in enumerate(features.values):
            available = values[rows][features.present[rows, modality]]
            torch.testing.assert_close(trained.state[f"inputs.normalise.mean{modality}"], available.mean(0))
            torch.testing.assert_close(trained.state[f"inputs.normalise.std{modality}"], available.std(0, correction=0))


def test_clips_that_a_member_does_not_train_on_change_nothing(data):
    features, labels = data
    (before,) = train(features, [member(ROWS[0], labels, 1, dropout=0.2)], FULL)
    changed = [values.clone() for values in features.values]
    for values in changed:
        values[30:] = 1000.0
    other_labels = torch.where(torch.arange(40) >= 30, (labels + 1) % 3, labels)
    other_features = ModalityFeatures(changed, features.present)
    (after,) = train(other_features, [member(ROWS[0], other_labels, 1, dropout=0.2)], FULL)
    for name, value in before.state.items():
        assert torch.equal(value, after.state[name]), name


def test_the_same_seed_gives_the_same_members(data, monkeypatch):
    """Also where stacks are trained by several threads."""
    features, labels = data
    monkeypatch.setattr(ensemble, "MIN_STACK_SIZE", 1)
    monkeypatch.setattr(ensemble, "MAX_STACK_WEIGHTS", 1)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        runs = [
            train(
                features,
                [member(rows, labels, seed, dropout=0.3) for rows, seed in zip(ROWS, seeds, strict=True)],
                FULL,
            )
            for seeds in ([1, 2, 3], [1, 2, 3], [1, 2, 4])
        ]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    first, again, other = ([trained.state["classify.weight"] for trained in run] for run in runs)
    assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))
    assert torch.equal(first[0], other[0])
    assert not torch.equal(first[2], other[2])


def test_training_leaves_the_global_generator_alone(data):
    features, labels = data
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    train(features, [member(ROWS[0], labels, 1, epochs=1, dropout=0.5)], FULL)
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize(
    "options",
    [{}, {"label_smoothing": 0.1}, {"class_weights": True}, {"modality_dropout": 0.0}],
    ids=lambda options: next(iter(options), "default"),
)
def test_training_learns(data, options):
    features, labels = data
    offsets = labels[:, None, None]
    clear = ModalityFeatures([features.values[0] + 4 * offsets, features.values[1] + 40 * offsets], features.present)
    members = [member(rows, labels, 1, epochs=15, learning_rate=1e-2) for rows in ROWS]
    for trained in train(clear, members, FusionTraining(batch=8, **options)):
        assert trained.losses[-1] < 0.75 * trained.losses[0]
        assert (logits(clear, trained).argmax(-1) == labels).float().mean() > 0.75


def test_validation_rows_are_scored_and_the_best_epoch_is_kept(data):
    from sklearn.metrics import f1_score

    features, labels = data
    # Unequally many rows, so that those of the second member are padded.
    splits = [torch.arange(30, 40), torch.arange(30, 37)]
    members = [
        member(ROWS[0], labels, seed, validation_rows=rows, keep_best=True, learning_rate=0.03)
        for seed, rows in enumerate(splits)
    ]
    for rows, trained in zip(splits, train(features, members), strict=True):
        assert trained.validation_scores.shape == (5,)
        predicted = logits(features, trained).argmax(-1)[rows]
        waf = f1_score(labels[rows], predicted, average="weighted", zero_division=0)
        assert waf == pytest.approx(trained.validation_scores.max())


def test_progress_counts_epochs_of_members(data):
    features, labels = data
    steps = []
    members = [member(ROWS[0], labels, 0, epochs=3), member(ROWS[0], labels, 0, epochs=1)]
    train_members(SPEC, features, members, training=PLAIN, progress=lambda *step: steps.append(step))
    assert sorted(steps) == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_an_error_in_a_stack_is_raised(data):
    features, labels = data
    with pytest.raises(IndexError):
        train(features, [member(torch.arange(30, 50), labels, 0)])


# ---------------------------------------------------------------- parity with a plain loop


def encoder(size, width):
    layers = [layer for inputs in (size, width, width) for layer in (nn.Linear(inputs, width), nn.ReLU())]
    return nn.Sequential(*layers)


class Official(nn.Module):
    """The official attention fusion in plain PyTorch, for three vectors per clip."""

    def __init__(self, inputs, width, classes):
        super().__init__()
        self.encoders = nn.ModuleList(encoder(size, width) for size in [*inputs, 3 * width])
        self.weights, self.out = nn.Linear(width, 3), nn.Linear(width, classes)

    def forward(self, vectors):
        hidden = [encode(vector) for encode, vector in zip(self.encoders, vectors, strict=False)]
        weights = self.weights(self.encoders[3](torch.cat(hidden, 1)))
        return self.out(torch.einsum("bm,bmw->bw", weights, torch.stack(hidden, 1)))


def test_the_official_head_has_the_losses_of_a_plain_loop():
    """Same folds, initial weights and order of batches, Adam with weight decay, no dropout: losses to 1e-4."""
    torch.manual_seed(0)
    sizes, epochs = [12, 9, 7], 4
    labels = torch.randint(0, 6, (70,))
    values = [torch.randn(70, 1, size) + labels[:, None, None] / 3 for size in sizes]
    folds = [torch.arange(70)[torch.arange(70) % 5 != fold] for fold in range(5)]
    members = [
        member(rows, labels, seed, width=16, epochs=epochs)
        for fold, rows in enumerate(folds)
        for seed in (fold, fold + 10)
    ]
    training = FusionTraining(weight_decay=1e-5, decoupled=False, cosine=False, modality_dropout=0.0)
    spec = HeadSpec("attention-mertools", [(1, size) for size in sizes], 6)
    features = ModalityFeatures(values, torch.ones(70, 3, dtype=torch.bool))
    results = train_members(spec, features, members, training=training)
    for one, result in zip(members, results, strict=True):
        torch.manual_seed(one.seed)
        ours, model = spec.build(width=16), Official(sizes, 16, 6)
        own = [module for module in ours.modules() if isinstance(module, type(ours.classify))]
        plain = [module for module in model.modules() if isinstance(module, nn.Linear)]
        for a, b in zip(own, plain, strict=True):
            b.weight.data.copy_(a.weight.T)
            b.bias.data.copy_(a.bias)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-5)
        order = torch.Generator().manual_seed(one.seed)
        for epoch in range(epochs):
            shuffled = one.rows[torch.randperm(len(one.rows), generator=order)]
            losses = []
            for rows in shuffled.split(32):
                loss = nn.functional.cross_entropy(model([modality[rows, 0] for modality in values]), labels[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
            assert result.losses[epoch] == pytest.approx(sum(losses) / len(losses), abs=1e-4)


# ---------------------------------------------------------------- random numbers


@pytest.mark.parametrize("rate", [0.3, 0.99])
def test_the_last_modality_is_never_dropped(rate):
    torch.manual_seed(0)
    present = torch.rand(5000, 3) < 0.6
    remaining = drop_modalities(present, rate, generator())
    assert not (remaining & ~present).any()
    assert torch.equal(remaining.any(1), present.any(1))


def test_modalities_are_dropped_at_the_given_rate():
    remaining = drop_modalities(torch.ones(20_000, 6, dtype=torch.bool), 0.25, generator())
    assert abs(remaining.float().mean() - 0.75) < 0.01


def test_a_single_modality_and_rate_zero_drop_nothing():
    present = torch.rand(100, 1) < 0.5
    assert torch.equal(drop_modalities(present, 0.9, generator()), present)
    several = torch.rand(100, 3) < 0.5
    assert torch.equal(drop_modalities(several, 0.0, generator()), several)


def stacked_dropout(rates, seed=0):
    """Dropout with one rate per member, in training; the linear layer is the parameter that a stack needs."""
    layers = [nn.Sequential(Dropout(rate), nn.Linear(1, 1)) for rate in rates]
    return stack_members(layers, generator(seed)).train()[0]


def test_dropout_by_member_keeps_the_share_and_the_mean():
    rates = [0.0, 0.2, 0.5]
    for rate, values in zip(rates, stacked_dropout(rates)(torch.ones(3, 100, 1001)), strict=True):
        remaining = values[values > 0]
        assert torch.equal(remaining, torch.full_like(remaining, remaining[0].item()))
        assert remaining[0] == pytest.approx(1 / (1 - rate))
        assert values.eq(0).float().mean() == pytest.approx(rate, abs=0.005)
        assert values.mean() == pytest.approx(1.0, abs=0.01)


def test_dropout_is_new_every_time_and_the_same_for_a_seed():
    dropout, again, values = stacked_dropout([0.5]), stacked_dropout([0.5]), torch.ones(1, 50, 50)
    first, second = dropout(values), dropout(values)
    assert not torch.equal(first, second)
    assert torch.equal(first, again(values))


def test_dropout_is_off_outside_training():
    values = torch.ones(2, 5, 5)
    assert torch.equal(stacked_dropout([0.5, 0.2]).eval()(values), values)


def test_products_stay_exact_while_members_are_trained(data):
    """Whichever library multiplies them; and torch's setting is restored."""
    features, labels = data
    setting = torch.backends.mkldnn.matmul
    precision, errors = setting.fp32_precision, []

    def measure(*_):
        values, weights = torch.randn(8, 32, 1024), torch.randn(8, 1024, 64)
        errors.append(float((torch.bmm(values, weights) - values.double() @ weights.double()).abs().max()))

    train_members(SPEC, features, [member(ROWS[0], labels, 0)], training=PLAIN, progress=measure)
    assert max(errors) < 1e-3  # rounding to bfloat16 errs by 0.2
    assert setting.fp32_precision == precision
