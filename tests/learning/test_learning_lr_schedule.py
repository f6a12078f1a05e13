"""Learning-rate schedules: warm-up, cosine decay, groups with peaks of their own."""

import pytest
import torch

from mertool.learning.lr_schedule import MIN_LR_RATIO, cosine, set_learning_rate, warmup_cosine


def test_warmup_is_linear_over_a_tenth_of_the_steps_and_decay_a_half_cosine():
    factors = [warmup_cosine(step, 100) for step in range(100)]
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert factors[10] == 1.0
    assert factors[55] == pytest.approx(0.5)
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert MIN_LR_RATIO <= factors[99] < 2 * MIN_LR_RATIO


@pytest.mark.parametrize("total_steps", [1, 2, 7])
def test_warmup_takes_one_step_at_least(total_steps):
    assert warmup_cosine(0, total_steps) == 1.0


def test_cosine_starts_at_the_peak_and_falls_to_zero():
    factors = [cosine(step, 50) for step in range(50)]
    assert factors[0] == 1.0
    assert factors[25] == pytest.approx(0.5)
    assert 0 < factors[49] < 2e-3


def test_every_group_keeps_its_own_peak():
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.AdamW([{"params": parameters[:1]}, {"params": parameters[1:], "lr": 0.5}], lr=0.1)
    for factor in (0.2, 1.0, 0.5):
        set_learning_rate(optimizer, factor)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.1 * factor, 0.5 * factor])
