"""Members trained at once are what each would have been alone."""

import pytest
import torch
from torch import nn

from mertool.fusion import ensemble as stacks
from mertool.fusion import heads as fusion
from mertool.fusion.batches import drop_modalities
from mertool.fusion.ensemble import Member, Schedule, ensemble_logits, train_members
from mertool.fusion.random_bits import Factors, Noise

SHAPES = [(2, 6), (1, 4)]
PLAIN = Schedule(batch=8, modality_dropout=0.0)
ROWS = [torch.arange(0, 30), torch.arange(10, 40), torch.arange(0, 40)[torch.arange(40) % 4 != 1]]


@pytest.fixture
def data():
    torch.manual_seed(5)
    labels = torch.randint(0, 3, (40,))
    features = [torch.randn(40, 2, 6) + labels[:, None, None], 10 * torch.randn(40, 1, 4) + 3]
    present = torch.rand(40, 2) < 0.8
    present[~present.any(1), 0] = True
    return features, present, labels


def build(width, dropout):
    return fusion.build("attention", SHAPES, 3, width, dropout)


def member(rows, labels, seed, **options):
    return Member(rows, labels, seed, **{"width": 8, "dropout": 0.0, "epochs": 5, **options})


def train(data, members, schedule=PLAIN):
    return train_members(build, data[0], data[1], members, 3, schedule)


def logits(data, result, width=8):
    state = {name: value[None] for name, value in result.state.items()}
    return ensemble_logits(build(width, 0.0), state, data[0], data[1])[0]


def test_together_equals_alone(data):
    """Whatever else is trained: members of another width, rate, number of rows or epochs too."""
    labels = data[2]
    members = [
        *(member(rows, labels, seed) for seed, rows in enumerate(ROWS)),
        member(ROWS[0], labels, 7, learning_rate=1e-2),
        member(ROWS[1], labels, 8, width=5),
        member(torch.arange(0, 13), labels, 9),
        member(ROWS[2], labels, 10, epochs=2),
    ]
    for one, result in zip(members, train(data, members), strict=True):
        (alone,) = train(data, [one])
        torch.testing.assert_close(
            logits(data, result, one.width), logits(data, alone, one.width), atol=1e-4, rtol=1e-4
        )


def test_members_of_a_stack_may_differ_in_dropout(data):
    members = [member(ROWS[0], data[2], 1, dropout=rate, epochs=1) for rate in (0.0, 0.5)]
    none, half = train(data, members)
    (alone,) = train(data, members[:1])
    torch.testing.assert_close(logits(data, none), logits(data, alone), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(logits(data, half), logits(data, alone), atol=1e-3)


def test_each_member_has_labels_of_its_own(data):
    labels = data[2]
    others = (labels + 1) % 3
    first, second = train(data, [member(ROWS[0], labels, 1), member(ROWS[0], others, 1)])
    (alone,) = train(data, [member(ROWS[0], others, 1)])
    torch.testing.assert_close(logits(data, second), logits(data, alone), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(logits(data, first), logits(data, second), atol=1e-2)


def test_a_row_of_weight_zero_teaches_nothing(data):
    labels, weights = data[2], (torch.arange(40) < 20).float()
    (weighed,) = train(data, [member(ROWS[0], labels, 1, weights=weights)])
    changed = torch.where(weights > 0, labels, (labels + 1) % 3)
    (other,) = train(data, [member(ROWS[0], changed, 1, weights=weights)])
    assert all(torch.equal(value, other.state[name]) for name, value in weighed.state.items())


def test_the_normaliser_sees_only_its_own_rows(data):
    features, present, labels = data
    for rows, result in zip(ROWS, train(data, [member(r, labels, 1, epochs=1) for r in ROWS]), strict=True):
        for part, values in enumerate(features):
            there = values[rows][present[rows, part]]
            torch.testing.assert_close(result.state[f"inputs.normalise.mean{part}"], there.mean(0))
            torch.testing.assert_close(result.state[f"inputs.normalise.std{part}"], there.std(0, correction=0))


FULL = Schedule(8, modality_dropout=0.2, feature_noise=0.1, mixup=0.4, class_weights=True, contrast=0.1)


def test_held_out_clips_do_not_matter(data):
    """Not to any way of training."""
    features, present, labels = data
    (before,) = train(data, [member(ROWS[0], labels, 1, dropout=0.2)], FULL)
    changed = [values.clone() for values in features]
    for values in changed:
        values[30:] = 1000.0
    other = torch.where(torch.arange(40) >= 30, (labels + 1) % 3, labels)
    (after,) = train((changed, present, other), [member(ROWS[0], other, 1, dropout=0.2)], FULL)
    for name, value in before.state.items():
        assert torch.equal(value, after.state[name]), name


def triples(labels, seeds):
    return [(rows, labels, seed) for rows, seed in zip(ROWS, seeds, strict=True)]


def test_the_same_seed_gives_the_same_members(data, monkeypatch):
    """Also where stacks are computed by several threads."""
    monkeypatch.setattr(stacks, "LEAST", 1)
    monkeypatch.setattr(stacks, "WEIGHTS", 1)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        seeds = ([1, 2, 3], [1, 2, 3], [1, 2, 4])
        runs = [train(data, [member(*given, dropout=0.3) for given in triples(data[2], some)], FULL) for some in seeds]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    a, b, c = ([result.state["classify.weight"] for result in run] for run in runs)
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert torch.equal(a[0], c[0])
    assert not torch.equal(a[2], c[2])


def test_training_leaves_the_global_generator_alone(data):
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    train(data, [member(ROWS[0], data[2], 1, epochs=1, dropout=0.5)], FULL)
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize(
    "options",
    [{}, {"feature_noise": 0.1}, {"mixup": 0.4}, {"label_smoothing": 0.1}, {"class_weights": True}, {"contrast": 0.1}],
    ids=lambda options: next(iter(options), "plain"),
)
def test_training_learns(data, options):
    features, present, labels = data
    clear = [features[0] + 4 * labels[:, None, None], features[1] + 40 * labels[:, None, None]]
    members = [member(rows, labels, 1, epochs=15, learning_rate=1e-2) for rows in ROWS]
    results = train((clear, present, labels), members, Schedule(batch=8, **options))
    for result in results:
        assert result.losses[-1] < 0.75 * result.losses[0]
        assert (logits((clear, present), result).argmax(-1) == labels).float().mean() > 0.75


def test_watched_rows_are_scored_and_the_best_epoch_is_kept(data):
    from sklearn.metrics import f1_score

    labels, held_out = data[2], torch.arange(30, 40)
    watching = [member(ROWS[0], labels, seed, watched=held_out, keep_best=True, learning_rate=0.03) for seed in (1, 2)]
    for result in train(data, watching):
        assert result.scores.shape == (5,)
        guess = logits(data, result).argmax(-1)[held_out]
        assert f1_score(labels[held_out], guess, average="weighted", zero_division=0) == pytest.approx(
            result.scores.max()
        )


def test_progress_counts_epochs_of_members(data):
    steps = []
    members = [member(ROWS[0], data[2], 0, epochs=3), member(ROWS[0], data[2], 0, epochs=1)]
    train_members(build, data[0], data[1], members, 3, PLAIN, lambda *step: steps.append(step))
    assert sorted(steps) == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_an_error_in_a_stack_is_raised(data):
    with pytest.raises(IndexError):
        train(data, [member(torch.arange(30, 50), data[2], 0)])


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
    features = [torch.randn(70, 1, size) + labels[:, None, None] / 3 for size in sizes]
    folds = [torch.arange(70)[torch.arange(70) % 5 != fold] for fold in range(5)]
    members = [
        Member(rows, labels, seed, width=16, dropout=0.0, epochs=epochs)
        for fold, rows in enumerate(folds)
        for seed in (fold, fold + 10)
    ]
    schedule = Schedule(weight_decay=1e-5, decoupled=False, cosine=False, modality_dropout=0.0)

    def official(width, dropout):
        return fusion.build("attention-mertools", [(1, size) for size in sizes], 6, width, dropout)

    results = train_members(official, features, torch.ones(70, 3, dtype=torch.bool), members, 6, schedule)
    for one, result in zip(members, results, strict=True):
        torch.manual_seed(one.seed)
        ours, model = official(16, 0.0), Official(sizes, 16, 6)
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
                loss = nn.functional.cross_entropy(model([values[rows, 0] for values in features]), labels[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
            assert result.losses[epoch] == pytest.approx(sum(losses) / len(losses), abs=1e-4)


# ---------------------------------------------------------------- random numbers


def make_noise(seed=0):
    return Noise([seed], torch.device("cpu"))


@pytest.mark.parametrize("share", [0.3, 0.99])
def test_the_last_modality_is_never_dropped(share):
    torch.manual_seed(0)
    present = torch.rand(5000, 3) < 0.6
    kept = drop_modalities(present, share, make_noise())
    assert not (kept & ~present).any()
    assert torch.equal(kept.any(1), present.any(1))


def test_modalities_are_dropped_at_the_rate_asked():
    kept = drop_modalities(torch.ones(20_000, 6, dtype=torch.bool), 0.25, make_noise())
    assert abs(kept.float().mean() - 0.75) < 0.01


def test_a_single_modality_and_no_share_drop_nothing():
    present = torch.rand(100, 1) < 0.5
    assert torch.equal(drop_modalities(present, 0.9, make_noise()), present)
    several = torch.rand(100, 3) < 0.5
    assert torch.equal(drop_modalities(several, 0.0, make_noise()), several)


def test_dropout_by_member_keeps_the_share_and_the_mean():
    rates = [0.0, 0.2, 0.5]
    factors = Factors(make_noise(), rates)(torch.Size([3, 100, 1001]))
    for rate, values in zip(rates, factors, strict=True):
        kept = values[values > 0]
        assert torch.equal(kept, torch.full_like(kept, kept[0]))
        assert kept[0] == pytest.approx(1 / (1 - rate))
        assert values.eq(0).float().mean() == pytest.approx(rate, abs=0.005)
        assert values.mean() == pytest.approx(1.0, abs=0.01)


def test_dropout_is_new_every_time_and_the_same_for_a_seed():
    factors, again = Factors(make_noise(), [0.5]), Factors(make_noise(), [0.5])
    first, second = factors(torch.Size([1, 50, 50])), factors(torch.Size([1, 50, 50]))
    assert not torch.equal(first, second)
    assert torch.equal(first, again(torch.Size([1, 50, 50])))
    # No row repeats another, as it would if bits were used twice.
    assert len(first[0].unique(dim=0)) == 50


def test_products_stay_exact_while_members_are_trained(data):
    """Whichever library multiplies them; and torch is left as it was."""
    setting = torch.backends.mkldnn.matmul
    before, errors = setting.fp32_precision, []

    def measure(*_):
        values, weights = torch.randn(8, 32, 1024), torch.randn(8, 1024, 64)
        errors.append(float((torch.bmm(values, weights) - values.double() @ weights.double()).abs().max()))

    train_members(build, data[0], data[1], [member(ROWS[0], data[2], 0)], 3, PLAIN, measure)
    assert max(errors) < 1e-3  # rounding to bfloat16 errs by 0.2
    assert setting.fp32_precision == before
