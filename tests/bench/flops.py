"""Arithmetic of encoders: multiplications and additions of a forward pass, and how many a device does per second.

Only matrix products and convolutions count; of norms, activations and softmax there are few beside them.
"""

from typing import Any


def hubert_flop(config: dict[str, Any], samples: int) -> float:
    """Return the operations of a HuBERT or wav2vec 2.0 for a waveform of so many samples."""
    flop, length, channels = 0.0, samples, 1
    for out, kernel, stride in zip(config["conv_dim"], config["conv_kernel"], config["conv_stride"], strict=True):
        length = (length - kernel) // stride + 1
        flop += 2 * length * kernel * channels * out
        channels = out
    width = config["hidden_size"]
    position = config["num_conv_pos_embeddings"] * width / config["num_conv_pos_embedding_groups"]
    return flop + 2 * length * width * (channels + position) + _blocks_flop(config, length)


def vit_flop(config: dict[str, Any]) -> float:
    """Return the operations of a vision transformer for one image."""
    patches = (config["image_size"] // config["patch_size"]) ** 2
    embedding = 2 * patches * 3 * config["patch_size"] ** 2 * config["hidden_size"]
    return embedding + _blocks_flop(config, patches + 1)


def _blocks_flop(config: dict[str, Any], length: int) -> float:
    width, inner = config["hidden_size"], config["intermediate_size"]
    block = 2 * length * (4 * width**2 + 2 * width * inner) + 4 * length**2 * width
    return config["num_hidden_layers"] * block


def matmul_peak(device: Any, dtype: Any, *, size: int = 8192, repeat: int = 20) -> float:
    """Return the TFLOP/s of a product of square matrices, the best of `repeat`."""
    import torch
    from engine import timed

    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    seconds = min(timed(lambda: left @ right, left.device) for _ in range(repeat))
    return 2 * size**3 / seconds / 1e12
