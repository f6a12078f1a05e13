"""The training loop: batches, schedule, early stopping, exact resume."""

import numpy as np
import pytest
import torch
from torch import nn

from mertool.adapters.trainer import Rows, Schedule, batches, fit
from mertool.errors import MertoolError
from mertool.learning.accelerator import make_accelerator
from mertool.learning.checkpoint import Checkpoint


class Line:
    """A task of the loop: a straight line through 40 points, of which the development loss is given."""

    mask_weight = 0.0

    def __init__(self, development=None, slope=3.0, piece=4, slow=None):
        torch.manual_seed(0)
        self.objective = nn.Linear(2, 1)
        random = np.random.default_rng(0)
        self.x = torch.from_numpy(random.normal(0, 1, (40, 2)).astype(np.float32))
        self.y = self.x @ torch.tensor([[slope], [1.0]])
        self.development = iter(development) if development else None
        self.piece, self.slow = piece, slow

    def terms(self, objective, rows, epoch):
        loss = (objective(self.x[rows]) - self.y[rows]).square().sum()
        return loss, loss.new_zeros(())

    def weigh(self, rows, epoch):
        return float(len(rows)), 0.0

    def parts(self, rows):
        return [rows[first : first + self.piece] for first in range(0, len(rows), self.piece)]

    def peak(self, name, rate):
        return self.slow if name == "bias" and self.slow else rate

    def penalty(self):
        return self.objective.weight.sum() * 0

    def development_loss(self):
        if self.development:
            return next(self.development)
        with torch.no_grad():
            return float((self.objective(self.x) - self.y).square().mean())


ROWS = Rows(np.arange(40), np.arange(0), np.random.default_rng(1).integers(5, 50, 40))


@pytest.fixture
def accelerator():
    return make_accelerator(torch.device("cpu"), torch.float32)


@pytest.fixture
def train(accelerator, tmp_path):
    def run(task, schedule, rows=ROWS, progress=lambda step: None, every=None):
        return fit(task, rows, schedule, accelerator, Checkpoint(tmp_path / "c.safetensors", interval=every), progress)

    return run


# ---------------------------------------------------------------- batches


def test_every_clip_once_an_epoch_and_of_similar_length():
    rows = Rows(np.arange(400), np.arange(0), np.random.default_rng(0).integers(5, 500, 400))
    found = batches(rows, Schedule(batch=8), 0)
    assert sorted(np.concatenate(found)) == list(range(400))
    assert {len(batch) for batch in found} == {8}
    spread = np.mean([np.ptp(rows.lengths[batch]) for batch in found])
    assert spread < 0.2 * np.ptp(rows.lengths)
    assert np.corrcoef([rows.lengths[batch].mean() for batch in found], range(50))[0, 1] < 0.5  # in no order of length


def test_batches_differ_by_epoch_and_seed_and_by_nothing_else():
    def order(seed, epoch):
        return np.concatenate(batches(ROWS, Schedule(batch=8, seed=seed), epoch)).tolist()

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)


def test_unlabelled_clips_are_spread_over_the_batches():
    rows = Rows(np.arange(20), np.arange(20, 100), np.full(100, 9))
    found = batches(rows, Schedule(batch=4), 0)
    assert [int((batch < 20).sum()) for batch in found] == [4] * 5
    assert [int((batch >= 20).sum()) for batch in found] == [4] * 5
    seen = {int(row) for epoch in range(40) for batch in batches(rows, Schedule(batch=4), epoch) for row in batch}
    assert seen == set(range(100))


# ---------------------------------------------------------------- training


def test_it_learns(train):
    task = Line()
    history = train(task, Schedule(epochs=30, batch=8, learning_rate=0.3, patience=30))
    assert history.development_loss[-1] < 0.01 < history.development_loss[0]
    assert len(history.label_loss) == 30


def test_how_a_batch_is_cut_does_not_matter(train, tmp_path):
    weights = []
    for piece in (1, 3, 8):
        task = Line(piece=piece)
        train(task, Schedule(epochs=3, batch=8, learning_rate=0.1))
        weights.append(task.objective.weight.detach())
    torch.testing.assert_close(weights[0], weights[1])
    torch.testing.assert_close(weights[0], weights[2])


def test_a_parameter_may_have_a_rate_of_its_own(train):
    biases = []
    for slow in (None, 1e-9):
        task = Line(slow=slow)
        before = task.objective.bias.detach().clone()
        train(task, Schedule(epochs=2, batch=8, learning_rate=0.1))
        biases.append(float((task.objective.bias.detach() - before).abs()))
    assert biases[1] < 1e-6 < biases[0]


def test_it_stops_early_and_keeps_the_best_epoch(train):
    losses = [5.0, 3.0, 4.0, 4.0, 4.0, 1.0]
    stopped, short = Line([6.0, *losses]), Line([6.0, *losses])
    history = train(stopped, Schedule(epochs=6, batch=8, learning_rate=0.1, patience=3))
    assert history.development_loss == losses[:5]
    assert history.best_epoch == 2
    # What is left is what it was after two of six epochs.
    after = []
    train(
        short,
        Schedule(epochs=6, batch=8, learning_rate=0.1, patience=3),
        progress=lambda step: after.append(short.objective.weight.detach().clone()),
    )
    assert torch.equal(stopped.objective.weight, after[9])


def test_training_that_does_harm_is_not_kept(train):
    task = Line([1.0, 3.0, 2.0, 4.0])
    before = task.objective.weight.detach().clone()
    history = train(task, Schedule(epochs=6, batch=8, learning_rate=0.1, patience=3))
    assert (history.best_epoch, history.start_loss, len(history.development_loss)) == (0, 1.0, 3)
    assert torch.equal(task.objective.weight, before)


def test_a_loss_that_is_no_number_ends_in_one_line(train):
    task = Line(slope=float("inf"))
    with pytest.raises(MertoolError, match=r"in epoch 1: give a smaller --learning-rate"):
        train(task, Schedule(epochs=2, batch=8))


def test_a_development_loss_that_is_no_number_is_not_the_best(train):
    with pytest.raises(MertoolError, match="the loss became nan in epoch 2"):
        train(Line([9.0, 5.0, float("nan"), 4.0]), Schedule(epochs=3, batch=8))


@pytest.mark.parametrize("killed_at", [1, 5, 7, 14])
def test_a_killed_training_goes_on_exactly(killed_at, train, tmp_path):
    schedule = Schedule(epochs=3, batch=8, learning_rate=0.1)
    whole = Line()
    history = train(whole, schedule)

    def die(step):
        if step == killed_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(Line(), schedule, progress=die, every=0.0)
    resumed, steps = Line(), []
    # The step that was killed had not been saved yet.
    again = train(resumed, schedule, progress=steps.append, every=1e9)
    assert steps[0] == killed_at
    assert torch.equal(whole.objective.weight, resumed.objective.weight)
    assert again == history


def test_a_damaged_checkpoint_is_begun_anew(tmp_path):
    (tmp_path / "c.safetensors").write_bytes(b"\x09\x00\x00\x00\x00\x00\x00\x00not json")
    assert Checkpoint(tmp_path / "c.safetensors").load() is None


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"batch": 0}, {"patience": 0}, {"learning_rate": 1.5}])
def test_wrong_settings(wrong):
    with pytest.raises(MertoolError):
        Schedule(**wrong)
