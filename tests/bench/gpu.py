"""How much of a GPU's measured peak the encoder reaches by itself, in bfloat16 and in batches of like length."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from engine import GPU_SECONDS, by_length, load_speech, timed
from report import Row

NAME = "gpu/hubert-large-mfu"


def measure_mfu(model: Path, waves: Sequence[np.ndarray], device: str, repeat: int) -> Row:
    """TFLOP/s of useful work (padding is none) against those of a large matrix product."""
    import torch

    encoder = load_speech(model, device, "bfloat16")
    keep = tuple(range(encoder.num_layers + 1))
    batches = by_length(list(waves) * 8, GPU_SECONDS)

    def encode() -> None:
        for batch in batches:
            encoder.encode(batch, keep)

    encode()
    seconds = min(timed(encode, torch.device(device)) for _ in range(repeat))
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    work = 8 * sum(hubert_flop(config, len(wave)) for wave in waves)
    media = 8 * sum(map(len, waves)) / 16_000
    fields = {"seconds_of_audio_per_second": media / seconds}
    return Row(NAME, work / seconds / 1e12, "TFLOP/s", matmul_peak(device, torch.bfloat16), fields)


def matmul_peak(device: str, dtype: Any, size: int = 8192, repeat: int = 20) -> float:
    """TFLOP/s of a square matrix product, the best of `repeat`."""
    import torch

    left = torch.randn(size, size, device=device).to(dtype)
    right = torch.randn(size, size, device=device).to(dtype)
    seconds = min(timed(lambda: left @ right, left.device) for _ in range(repeat))
    return 2 * size**3 / seconds / 1e12


def hubert_flop(config: dict[str, Any], samples: int) -> float:
    """Multiplications and additions in the products and convolutions of a HuBERT."""
    flop, length, channels = 0.0, samples, 1
    for out, kernel, stride in zip(config["conv_dim"], config["conv_kernel"], config["conv_stride"], strict=True):
        length = (length - kernel) // stride + 1
        flop += 2 * length * kernel * channels * out
        channels = out
    width, inner = config["hidden_size"], config["intermediate_size"]
    position = config["num_conv_pos_embeddings"] * width / config["num_conv_pos_embedding_groups"]
    block = 2 * length * (4 * width**2 + 2 * width * inner) + 4 * length**2 * width
    return flop + 2 * length * width * (channels + position) + config["num_hidden_layers"] * block
