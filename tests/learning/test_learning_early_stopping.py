"""Early stopping: the best epoch, its weights, the end of training, NaN."""

import pytest
import torch

from mertool.errors import MertoolError
from mertool.learning.early_stopping import EarlyStopping, check_finite


def weights(value):
    return {"weight": torch.full((2,), float(value))}


def record(stopping, losses, first_epoch=1):
    """The epoch after which training stops, and the weights (all equal to the epoch) of each."""
    for epoch, loss in enumerate(losses, first_epoch):
        stopping.update(epoch, loss, weights(epoch))
        if stopping.should_stop:
            return epoch
    return None


def test_stops_after_patience_epochs_without_improvement():
    stopping = EarlyStopping(patience=2)
    assert record(stopping, [5.0, 3.0, 4.0, 4.0, 1.0]) == 4
    assert (stopping.best_epoch, stopping.best_loss) == (2, 3.0)
    assert stopping.best_weights["weight"].tolist() == [2.0, 2.0]


def test_of_equal_losses_the_first_epoch_is_the_best():
    stopping = EarlyStopping(patience=3)
    record(stopping, [2.0, 1.0, 1.0])
    assert stopping.best_epoch == 2


def test_the_initial_weights_may_be_the_best():
    stopping = EarlyStopping(patience=2)
    assert record(stopping, [1.0, 2.0, 3.0], first_epoch=0) == 2
    assert stopping.best_epoch == 0
    assert stopping.best_weights["weight"].tolist() == [0.0, 0.0]


def test_without_patience_training_does_not_stop():
    assert record(EarlyStopping(), [1.0, *[2.0] * 50]) is None


def test_best_weights_are_copies_and_are_restored_in_place():
    stopping, tensors = EarlyStopping(patience=2), weights(1)
    stopping.update(1, 1.0, tensors)
    tensors["weight"] += 5
    stopping.update(2, 2.0, tensors)
    stopping.restore(tensors)
    assert tensors["weight"].tolist() == [1.0, 1.0]


def test_resumed_early_stopping_continues_exactly():
    undisturbed, first, second = (EarlyStopping(patience=2) for _ in range(3))
    losses = [3.0, 2.0, 4.0, 5.0]
    record(undisturbed, losses)
    record(first, losses[:3])
    second.resume(first.to_json(), first.best_weights)
    assert record(second, losses[3:], first_epoch=4) == 4
    assert second.to_json() == undisturbed.to_json()


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_nan_or_infinite_loss_aborts_training(loss):
    with pytest.raises(MertoolError, match="in epoch 3: give a smaller --learning-rate"):
        EarlyStopping(patience=2).update(3, loss, weights(1))
    with pytest.raises(MertoolError, match=f"the loss became 1 and {loss:g} in epoch 2"):
        check_finite(1.0, loss, epoch=2)
    with pytest.raises(MertoolError, match="before training: try --dtype float32"):
        check_finite(loss, epoch=0)
