import os

import pytest
import torch
from fixtures.emulated_device import KINDS, emulate

from mertool.learning.accelerator import make_accelerator


@pytest.mark.parametrize("kind", KINDS)
def test_the_device_of_one_accelerator_does_not_reach_the_next(kind):
    """Neither by the singleton of accelerate nor by the environment, which child processes inherit."""
    before = dict(os.environ)
    with emulate(kind) as emulation:
        assert make_accelerator(emulation.device, torch.float32).device == emulation.device
    assert not {name for name in os.environ if name.startswith("ACCELERATE")} - set(before)
    assert make_accelerator(torch.device("cpu"), torch.float32).device == torch.device("cpu")
