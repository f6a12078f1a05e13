"""Masked reconstruction: spans of masked frames, and the targets they are compared with."""

import numpy as np
import pytest
import torch

from mertool.adapters.masked_prediction import (
    MASK_PROBABILITY,
    SPAN_FRAMES,
    ReconstructionTarget,
    log_mel,
    span_mask,
)
from mertool.adapters.model import AdapterModel


def test_masked_spans_cover_about_a_quarter_of_the_frames():
    masks = [span_mask(200, (0, 1, row)) for row in range(200)]
    assert np.mean(masks) == pytest.approx(MASK_PROBABILITY, abs=0.02)
    starts = np.flatnonzero(np.diff(np.concatenate([[0], masks[0].astype(int)])) == 1)
    assert all(masks[0][start : start + SPAN_FRAMES].all() for start in starts)


@pytest.mark.parametrize("n_frames", [1, 2, 5, 11])
def test_some_but_not_all_frames_of_a_short_clip_are_masked(n_frames):
    for row in range(50):
        mask = span_mask(n_frames, (0, 0, row))
        assert mask.any()
        assert not mask.all() or n_frames == 1


def test_masks_depend_on_the_seed_only():
    assert np.array_equal(span_mask(100, (1, 2, 3)), span_mask(100, (1, 2, 3)))
    assert not np.array_equal(span_mask(100, (1, 2, 3)), span_mask(100, (1, 3, 3)))


@pytest.fixture
def frames():
    """Frames around two points, clip by clip: the point (6, 40) of each frame, and the frames."""
    rng = np.random.default_rng(0)
    points = rng.integers(0, 2, (6, 40))
    return points, [(4.0 * row[:, None] + rng.normal(0, 0.1, (40, 3))).astype(np.float16) for row in points]


def test_units_are_clusters_of_frames(frames):
    points, clips = frames
    target = ReconstructionTarget.fit("units", clips, np.arange(6), seed=0)
    units = np.stack([target.targets_for(row).numpy() for row in range(6)])
    assert target.size == 6
    assert target.targets_for(0) is target.targets_for(0)  # computed once for all epochs
    assert not set(units[points == 0]) & set(units[points == 1])
    correct = torch.nn.functional.one_hot(target.targets_for(0), target.size).float() * 20
    assert float(target.loss(correct, target.targets_for(0))) < 1e-3
    assert float(target.loss(-correct, target.targets_for(0))) > 1e-3


def test_units_are_fitted_on_the_training_rows_only(frames):
    _, clips = frames
    before = ReconstructionTarget.fit("units", clips, np.arange(4), seed=0)
    changed = [*clips[:4], clips[4] * 9, clips[5] * 9]
    refitted = ReconstructionTarget.fit("units", changed, np.arange(4), seed=0)
    assert torch.equal(before.targets_for(0), refitted.targets_for(0))


def test_features_are_standardised(frames):
    _, clips = frames
    target = ReconstructionTarget.fit("features", clips, np.arange(6), seed=0)
    values = torch.cat([target.targets_for(row) for row in range(6)])
    torch.testing.assert_close(values.mean(0), torch.zeros(3), atol=1e-3, rtol=0)
    torch.testing.assert_close(values.std(0), torch.ones(3), atol=1e-2, rtol=0)
    assert float(target.loss(values, values)) == 0
    assert float(target.loss(torch.zeros_like(values), values)) == pytest.approx(len(values), rel=0.02)


def test_log_mel_follows_the_pitch_and_has_the_frames_of_the_encoder():
    times = np.arange(16_000) / 16_000
    low, high = (log_mel(np.sin(2 * np.pi * pitch * times).astype(np.float32), 49) for pitch in (200, 3000))
    assert low.shape == high.shape == (49, 80)
    assert low[20].argmax() < high[20].argmax()
    assert log_mel(np.zeros(100, np.float32), 3).shape == (3, 80)


def test_the_classification_head_reads_unmasked_clips():
    class IdentityBlocks(torch.nn.Module):
        layers, last = (2, 3), 3

        def forward(self, inputs, lengths, mask, layers):
            outputs = inputs if mask is None else inputs.masked_fill(mask[..., None], -1.0)
            return {layer: layer * outputs for layer in layers}

    class FirstArgument(torch.nn.Module):
        def forward(self, features, dropout):
            return features

    inputs, lengths = torch.rand(2, 6, 4), torch.tensor([6, 4])
    mask = torch.tensor([[True, True, False, False, False, False], [False, True, False, False, False, False]])
    model = AdapterModel(IdentityBlocks(), FirstArgument(), torch.nn.Identity())
    logits, predictions = model(inputs, lengths, labelled=torch.tensor([1]), mask=mask)
    mean = inputs[1:, :4].mean(1)
    torch.testing.assert_close(logits, torch.cat([2 * mean, 3 * mean], 1))
    assert torch.equal(predictions, torch.full((3, 4), -3.0))
