"""The mean offset of an adapter is measured over its training clips."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from mertool.adapters.cross_validation import AdapterSplit
from mertool.adapters.evaluation import MAX_OFFSET_CLIPS, measure_mean_offset

N_LAYERS, FIRST, CHANNELS = 3, 2, 4
TRAIN = np.array([0, 2, 3, 5])


def features_of(change, n_clips):
    """Stand-ins of the setup and of an adapter that adds `change` (layers, N, D) to the features of N clips."""
    frozen = torch.randn(N_LAYERS + 1, n_clips, CHANNELS, generator=torch.Generator().manual_seed(0))
    before, after = (SimpleNamespace(first=FIRST, last=FIRST, blocks=nn.ModuleList([nn.Identity()])) for _ in range(2))

    def mean_pool(blocks, rows, layers):
        return (frozen + change if blocks is after else frozen)[list(layers)][:, rows]

    setup = SimpleNamespace(
        config=SimpleNamespace(seed=0),
        encoder_layers=N_LAYERS,
        inputs=SimpleNamespace(channels=CHANNELS, mean_pool=mean_pool),
        accelerator=SimpleNamespace(device=torch.device("cpu")),
        blocks=before,
        upper_blocks=[],
    )
    return setup, SimpleNamespace(model=SimpleNamespace(blocks=after))


def test_the_mean_offset_is_that_of_the_training_clips():
    """Held-out clips have no part in it: their mean change depends on their classes."""
    change = torch.randn(N_LAYERS + 1, 7, CHANNELS, generator=torch.Generator().manual_seed(1))
    split = AdapterSplit(name="fold0", train=TRAIN, held_out=np.array([1, 4]))
    change[:, split.held_out] = torch.nan
    setup, adapter = features_of(change, 7)
    offset = measure_mean_offset(setup, split, adapter)
    expected = change[:, TRAIN].mean(1)
    expected[:FIRST] = 0  # no adapter below
    torch.testing.assert_close(offset, expected, rtol=1e-5, atol=1e-6)


def test_a_mean_offset_of_many_training_clips_is_that_of_a_random_part():
    """A part in the order of the clips could be of one speaker or class."""
    n_clips = 4 * MAX_OFFSET_CLIPS
    change = torch.zeros(N_LAYERS + 1, n_clips, CHANNELS)
    change[:, n_clips // 2 :] = 1
    setup, adapter = features_of(change, n_clips)
    split = AdapterSplit(name="final", train=np.arange(n_clips), held_out=np.array([], int))
    assert measure_mean_offset(setup, split, adapter)[FIRST].tolist() == pytest.approx([0.5] * CHANNELS, abs=0.07)
