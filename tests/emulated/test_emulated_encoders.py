"""The emulated device itself, and encoders on it and on a real GPU: values of the CPU, in bfloat16 nearly so."""

import numpy as np
import pytest
import torch
from fixtures.emulated_device import DEVICES, KINDS, MixedDevicesError, emulate, use_device
from fixtures.whisper import HIGH, LOW, tone

from mertool import encoders
from mertool.encoders.asr import load as load_recogniser

AUDIO = (
    *("hubert", "hubert_group", "hubert_batch_norm", "wav2vec2", "wav2vec2_group", "wavlm", "wavlm_group"),
    *("data2vec", "whisper"),
)
VIDEO, TEXT = ("clip", "siglip", "vit", "dinov2"), ("bert", "roberta", "llama")
FAMILIES = [(name, kind) for names, kind in ((AUDIO, "audio"), (VIDEO, "video"), (TEXT, "text")) for name in names]
RNG = np.random.default_rng(0)
ITEMS = {
    "audio": [RNG.normal(0, 0.1, samples).astype(np.float32) for samples in (9_000, 12_000, 16_000)],
    "video": [RNG.integers(0, 256, (frames, 224, 224, 3)).astype(np.uint8) for frames in (2, 3)],
    "text": ["i am so sad", "we lost the dog again"],
}

# ---------------------------------------------------------------- the emulated device


@pytest.mark.parametrize("kind", KINDS)
def test_operators_see_one_device_only(kind):
    cpu = torch.ones(3)
    with emulate(kind):
        tensor = cpu.to(kind)
        assert tensor.device == torch.device(kind, 0)
        assert (tensor + torch.tensor(2.0)).tolist() == [3, 3, 3]  # a scalar may lie on the CPU
        assert tensor[torch.tensor([0, 1])].tolist() == [1, 1]  # and so may indices
        with pytest.raises(MixedDevicesError, match=r"aten.add.Tensor: .* are on .*:0, .* on cpu"):
            tensor + cpu
        with pytest.raises(MixedDevicesError):
            cpu[torch.tensor([0], device=kind)]
        with pytest.raises(TypeError, match=r"Use Tensor\.cpu\(\)"):
            tensor.numpy()
        with pytest.raises(TypeError, match=r"Use Tensor\.cpu\(\)"):
            np.asarray(tensor)
        assert tensor.cpu().numpy().tolist() == [1, 1, 1]


def test_mps_refuses_float64():
    with emulate("mps"):
        single = torch.ones(3, device="mps")
        for make in (single.double, lambda: torch.zeros(2, dtype=torch.float64, device="mps")):
            with pytest.raises(TypeError, match="doesn't support float64"):
                make()
        with pytest.raises(NotImplementedError, match="not currently implemented for the MPS device"):
            torch.linalg.eigh(torch.eye(2, device="mps"))
    with emulate("cuda"):
        assert torch.ones(3, device="cuda").double().dtype == torch.float64


def test_training_and_autocast():
    with emulate("cuda"):
        layer = torch.nn.Linear(3, 1).to("cuda")
        optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
        inputs, targets = torch.ones(2, 3, device="cuda"), torch.zeros(2, 1, device="cuda")
        losses = []
        for _ in range(20):
            with torch.autocast("cuda", torch.bfloat16):
                outputs = layer(inputs)
                assert outputs.dtype == torch.bfloat16
            loss = (outputs.float() - targets).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss))
        assert layer.weight.grad.device.type == "cuda"
    assert losses[-1] < losses[0]


def test_memory_and_pinned_copies():
    with emulate("cuda", max_values=100) as emulation:
        with pytest.raises(torch.OutOfMemoryError):
            torch.zeros(101, device="cuda")
        torch.zeros(3).pin_memory().to("cuda", non_blocking=True)
        torch.zeros(3).to("cuda")
    assert (emulation.n_out_of_memory, emulation.n_pinned_copies) == (1, 1)
    assert torch.zeros(3).device.type == "cpu"


def test_a_tensor_of_the_device_ends_with_it():
    with emulate("cuda"):
        tensor = torch.zeros(3, device="cuda")
    with pytest.raises(RuntimeError, match="after the end of `emulate`"):
        tensor + 1


# ---------------------------------------------------------------- encoders


@pytest.fixture
def hidden_states(tiny_encoders):
    """A function (name, modality, device, dtype) that returns the hidden states (L, T, D) of each item."""

    def encode(name, modality, device, dtype=torch.float32):
        checkpoint = encoders.resolve_encoder(str(tiny_encoders[name]), modality)
        encoder = encoders.load_encoder(checkpoint, modality, device=torch.device(device), dtype=dtype)
        states = encoder.encode(ITEMS[modality], tuple(range(encoder.num_layers + 1)))
        return [state.float().cpu().numpy() for state in states]

    return encode


@pytest.mark.parametrize("kind", DEVICES)
@pytest.mark.parametrize(("name", "modality"), FAMILIES)
def test_values_are_those_of_the_cpu(name, modality, kind, hidden_states):
    expected = hidden_states(name, modality, "cpu")
    with use_device(kind) as device:
        found = hidden_states(name, modality, device)
    tolerance = 5e-3 if kind == "gpu" else 1e-5  # convolutions of NVIDIA's GPUs round their inputs to TF32
    for values, reference in zip(found, expected, strict=True):
        assert np.abs(values - reference).max() < tolerance * np.abs(reference).max()


@pytest.mark.parametrize("kind", [kind for kind in DEVICES if kind != "mps"])
@pytest.mark.parametrize(("name", "modality"), FAMILIES)
def test_bfloat16_keeps_the_direction_of_every_layer(name, modality, kind, hidden_states):
    expected = hidden_states(name, modality, "cpu")
    with use_device(kind) as device:
        found = hidden_states(name, modality, device, torch.bfloat16)
    for values, reference in zip(found, expected, strict=True):
        for layer, other in zip(values.mean(1), reference.mean(1), strict=True):
            assert layer @ other / np.linalg.norm(layer) / np.linalg.norm(other) > 0.999


@pytest.mark.parametrize("kind", DEVICES)
def test_transcripts(kind, whisper):
    with use_device(kind) as device:
        recogniser = load_recogniser(whisper, device=device, dtype=torch.float32)
        transcripts = recogniser.transcribe([tone(LOW, 0.8, seed=10_001), tone(HIGH, 0.8, seed=10_001)])
    assert [transcript.text for transcript in transcripts] == ["good day", "sad"]
