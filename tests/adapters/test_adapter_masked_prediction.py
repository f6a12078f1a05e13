"""Spans of hidden frames, and what they are compared with."""

import numpy as np
import pytest
import torch

from mertool.adapters.masked_prediction import SHARE, SPAN, Target, log_mel, span_mask
from mertool.adapters.model import Objective


def test_about_the_share_is_hidden_in_spans():
    masks = [span_mask(200, (0, 1, row)) for row in range(200)]
    assert np.mean(masks) == pytest.approx(SHARE, abs=0.02)
    starts = np.flatnonzero(np.diff(np.concatenate([[0], masks[0].astype(int)])) == 1)
    assert all(masks[0][start : start + SPAN].all() for start in starts)


@pytest.mark.parametrize("frames", [1, 2, 5, 11])
def test_short_clips_hide_something_and_never_all(frames):
    for row in range(50):
        mask = span_mask(frames, (0, 0, row))
        assert mask.any()
        assert not mask.all() or frames == 1


def test_masks_are_drawn_from_the_seed_alone():
    assert np.array_equal(span_mask(100, (1, 2, 3)), span_mask(100, (1, 2, 3)))
    assert not np.array_equal(span_mask(100, (1, 2, 3)), span_mask(100, (1, 3, 3)))


@pytest.fixture
def frames():
    """Frames around two points, clip by clip."""
    random = np.random.default_rng(0)
    kinds = random.integers(0, 2, (6, 40))
    return kinds, [(4.0 * k[:, None] + random.normal(0, 0.1, (40, 3))).astype(np.float16) for k in kinds]


def test_units_are_clusters_of_frames(frames):
    kinds, values = frames
    target = Target("units", values.__getitem__, np.arange(6), 0)
    units = np.stack([target.of(row).numpy() for row in range(6)])
    assert target.size == 6
    assert target.of(0) is target.of(0)  # every epoch asks again
    assert not set(units[kinds == 0]) & set(units[kinds == 1])
    right = torch.nn.functional.one_hot(target.of(0), target.size).float() * 20
    assert float(target.loss(right, target.of(0))) < 1e-3 < float(target.loss(-right, target.of(0)))


def test_units_are_fitted_on_the_given_rows_alone(frames):
    _, values = frames
    before = Target("units", values.__getitem__, np.arange(4), 0).of(0)
    changed = [*values[:4], values[4] * 9, values[5] * 9]
    assert torch.equal(Target("units", changed.__getitem__, np.arange(4), 0).of(0), before)


def test_features_are_standardised(frames):
    _, values = frames
    target = Target("features", values.__getitem__, np.arange(6), 0)
    wanted = torch.cat([target.of(row) for row in range(6)])
    torch.testing.assert_close(wanted.mean(0), torch.zeros(3), atol=1e-3, rtol=0)
    torch.testing.assert_close(wanted.std(0), torch.ones(3), atol=1e-2, rtol=0)
    assert float(target.loss(wanted, wanted)) == 0
    assert float(target.loss(torch.zeros_like(wanted), wanted)) == pytest.approx(len(wanted), rel=0.02)


def test_log_mel_follows_the_pitch_and_has_as_many_frames_as_the_encoder():
    times = np.arange(16_000) / 16_000
    low, high = (log_mel(np.sin(2 * np.pi * pitch * times).astype(np.float32), 49) for pitch in (200, 3000))
    assert low.shape == high.shape == (49, 80)
    assert low[20].argmax() < high[20].argmax()
    assert log_mel(np.zeros(100, np.float32), 3).shape == (3, 80)


def test_the_head_reads_clips_of_which_nothing_is_hidden():
    class Echo(torch.nn.Module):
        last = 3

        def forward(self, inputs, lengths, mask, keep):
            return {3: inputs if mask is None else inputs.masked_fill(mask[..., None], -1.0)}

    inputs, lengths = torch.rand(2, 6, 4), torch.tensor([6, 4])
    mask = torch.tensor([[True, True, False, False, False, False], [False, True, False, False, False, False]])
    objective = Objective(Echo(), torch.nn.Identity(), torch.nn.Identity())
    logits, predicted = objective(inputs, lengths, torch.tensor([1]), mask)
    torch.testing.assert_close(logits, inputs[1:, :4].mean(1))
    assert torch.equal(predicted, torch.full((3, 4), -1.0))
