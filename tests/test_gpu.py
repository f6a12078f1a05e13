"""Memory and copies of a real GPU. `make gpu` runs these tests, and those of tests/emulated for a GPU.

They skip where there is no GPU. MERTOOL_TEST_DEVICE names another device: with `emulated` or `cpu` they are rehearsed.
"""

import numpy as np
import pytest
import torch
from fixtures.emulated_device import DeviceTensor, use_device

from mertool import encoders
from mertool.devices import to_device
from mertool.extraction.batching import BatchBudget
from mertool.extraction.clip_encoder import ClipEncoder, PreparedClip
from mertool.extraction.decoding import DecodedClip
from mertool.extraction.pipeline import _encode_in_halves
from mertool.extraction.plan import WorkItem
from mertool.extraction.pooling import FeaturePooling
from mertool.features import Recipe
from mertool.manifest import Clip

pytestmark = pytest.mark.gpu

RNG = np.random.default_rng(0)


@pytest.fixture
def gpu():
    with use_device("gpu") as device:
        yield device


@pytest.fixture
def load(tiny_encoders):
    def load_encoder(name, modality, device):
        checkpoint = encoders.resolve_encoder(str(tiny_encoders[name]), modality)
        return encoders.load_encoder(checkpoint, modality, device=device, dtype=torch.float32)

    return load_encoder


def prepared_clips(encoder, seconds):
    waves = [RNG.normal(0, 0.1, round(16_000 * length)).astype(np.float32) for length in seconds]
    return [
        PreparedClip(WorkItem(Clip(clip=f"c{n}", path="x.wav"), f"d{n}"), DecodedClip(wave), encoder.prepare(wave))
        for n, wave in enumerate(waves)
    ]


def clip_encoder(encoder):
    layers = tuple(range(encoder.num_layers + 1))
    recipe = Recipe(modality="audio", encoder="tiny", weights="w", layers=layers, pool="mean")
    poolings = (FeaturePooling(recipe, layers),)
    return ClipEncoder(
        encoder=encoder, layers=layers, poolings=poolings, budget=BatchBudget(1e9), device=encoder.device
    )


def limit_memory(device, megabytes):
    """Leave so much memory of the device to this process; a function that gives it back."""
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + megabytes * 1e6) / total)
    return lambda: torch.cuda.set_per_process_memory_fraction(1.0)


def test_a_batch_that_does_not_fit_the_device_is_halved(load, gpu, monkeypatch):
    if gpu.type != "cuda":
        pytest.skip("only CUDA can be given less memory")
    encoder = clip_encoder(load("hubert", "audio", gpu))
    clips = prepared_clips(encoder.encoder, [4.0] * 32)
    (whole,) = _encode_in_halves(clips, encoder, pytest.fail)
    if isinstance(encoder.encoder.model.encoder.layer_norm.weight, DeviceTensor):
        monkeypatch.setattr("fixtures.emulated_device._current.max_values", 2**22)
        give_back = lambda: None  # noqa: E731
    else:
        give_back = limit_memory(gpu, 100)
    try:
        halves = list(_encode_in_halves(clips, encoder, pytest.fail))
    finally:
        give_back()
    assert len(halves) > 1
    assert [clip for batch in halves for clip in batch.clips] == clips
    values = np.stack([clip for batch in halves for (clip,) in batch.fetch()[0]])
    np.testing.assert_allclose(values, np.stack([clip for (clip,) in whole.fetch()[0]]), rtol=5e-3, atol=5e-3)
    assert encoder.budget.max_cost < 1e9  # later batches are made smaller


def test_results_come_through_pinned_memory(load, gpu):
    if gpu.type != "cuda":
        pytest.skip("only CUDA copies from and to pinned memory")
    encoder = clip_encoder(load("hubert", "audio", gpu))
    encoded = encoder.encode(prepared_clips(encoder.encoder, [1.0, 2.0]))
    assert encoded.values.is_pinned()
    values, seconds = encoded.fetch()
    assert seconds > 0
    assert all(np.isfinite(value).all() for clip in values for value in clip)


def test_inputs_go_through_pinned_memory(gpu):
    source = torch.arange(100_000.0)
    assert torch.equal(to_device(source, gpu).cpu(), source)
    assert to_device(source, gpu).device.type == gpu.type
