"""The moving average of weights."""

import torch

from mertool.learning.weight_average import AVERAGED_SHARE, WeightAverage


def test_the_first_steps_weigh_the_same_and_the_start_does_not_count():
    average = WeightAverage({"a": torch.tensor([100.0])}, n_steps=100)
    for value in (1.0, 2.0, 6.0):
        average.update({"a": torch.tensor([value])})
    torch.testing.assert_close(average.values["a"], torch.tensor([3.0]))


def test_later_steps_decay_exponentially():
    average = WeightAverage({"a": torch.zeros(1)}, n_steps=200)
    for _ in range(200):
        average.update({"a": torch.ones(1)})
    average.update({"a": torch.zeros(1)})
    average.update({"a": torch.zeros(1)})
    torch.testing.assert_close(average.values["a"], torch.tensor([(1 - 1 / (AVERAGED_SHARE * 200)) ** 2]))


def test_a_training_of_one_step_keeps_its_weights():
    average = WeightAverage({"a": torch.zeros(1)}, n_steps=1)
    average.update({"a": torch.ones(1)})
    assert average.values["a"].item() == 1


def test_the_average_is_copied_into_the_weights():
    weight = torch.nn.Parameter(torch.zeros(2))
    average = WeightAverage({"a": weight}, n_steps=10)
    average.update({"a": torch.tensor([1.0, 2.0])})
    assert not weight.any()
    average.copy_to({"a": weight})
    assert weight.tolist() == [1.0, 2.0]
    assert weight.requires_grad
