"""Processor time that a Whisper needs for a clip, with windows of 30 s and with windows that follow the clip.

`python tests/bench/whisper_window.py ENCODER [--seconds 3.7]`, on one thread of a CPU; both windows take turns.
"""

import argparse
import time

import numpy as np
import torch

from mertool import encoders
from mertool.encoders.cpu import optimize_for_cpu

SAMPLE_RATE, ROUNDS = 16_000, 4


def measure(encoder: encoders.CheckpointRef, seconds: float, dtype: torch.dtype) -> dict[str, float]:
    """Return the smallest time of all rounds, by window."""
    loaded = encoders.load_encoder(encoder, "audio", device=torch.device("cpu"), dtype=dtype)
    optimize_for_cpu(loaded.model)
    wave = np.random.default_rng(0).normal(0, 0.1, round(seconds * SAMPLE_RATE)).astype(np.float32)
    times: dict[str, list[float]] = {window: [] for window in loaded.windows}
    for _ in range(ROUNDS):
        for window, measured in times.items():
            loaded.set_window(window)
            started = time.process_time()
            loaded.encode([wave], range(loaded.num_layers + 1))
            measured.append(time.process_time() - started)
    return {window: min(measured) for window, measured in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("encoder", help="a Whisper: a name of `mertool models`, a hub id or a local folder")
    parser.add_argument("--seconds", type=float, default=3.7, help="length of the clip")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    checkpoint = encoders.resolve_encoder(arguments.encoder, "audio")
    for dtype in (torch.float32, torch.bfloat16):
        times = measure(checkpoint, arguments.seconds, dtype)
        columns = ", ".join(f"window {window} {value:.3f} s" for window, value in times.items())
        print(f"{str(dtype).removeprefix('torch.')}: {columns}, ratio {times['30'] / times['clip']:.1f}")


if __name__ == "__main__":
    main()
