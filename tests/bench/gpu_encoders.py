"""Encoders by themselves on a GPU: share of the measured peak of matrix products, cost of padding, copies, a profile.

    python tests/bench/gpu_encoders.py
    python tests/bench/gpu_encoders.py --profile
    python tests/bench/gpu_encoders.py --device cpu --tiny

`make gpu` runs both. Encoders have the real shapes and random weights, in bfloat16. Inputs are noise that is prepared
beforehand, since in extraction a thread of its own does that. A row counts useful operations per second (padding is
none) against those of a product of two large matrices: its ratio is the share of the peak.

`hubert-large-equal` has clips of one length, so that nothing is padded. `-sorted` has clips of 1.5 to 15 s in batches
of like length, as extraction makes them; `-unsorted` has the same clips in batches of their random order. `--profile`
shows which kinds of kernels take the time of the device in `-sorted`.
"""

import argparse
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from engine import by_length, load_encoder, timed
from flops import hubert_flop, matmul_peak, vit_flop
from report import ROOT, Row, publish, say, workplace

RESULT = ROOT / "build" / "bench" / "gpu_encoders.json"
SAMPLE_RATE = 16_000
# Seconds of audio in a batch, padded, and face crops: what extraction takes on a GPU (GPU_BUDGET).
BATCH_SECONDS, BATCH_IMAGES = 320.0, 512
# Kinds of kernels by words in their names, or in those of torch's operators where no GPU runs; the first that fits.
KERNELS = {
    "copies": r"memcpy|memset|_to_copy|aten::copy_",
    "attention": r"flash|fmha|attention",
    "convolutions": r"conv|cudnn|wgrad|dgrad",
    "matrix products": r"gemm|cutlass|cublas|nvjet|xmma|matmul|aten::(add)?mm|aten::bmm|linear",
    "norms": r"norm",
    "elementwise": r"",
}


def main() -> None:
    options = parse()
    from mertool.devices import resolve_device

    device = resolve_device(options.device)
    with workplace() as folder:
        rows = profile(folder, device, options) if options.profile else measure(folder, device, options)
    publish(rows, options.output, "profile of HuBERT-large" if options.profile else "encoders by themselves")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Encoders by themselves: share of the peak of matrix products.")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ...")
    parser.add_argument("--profile", action="store_true", help="which kernels take the time")
    parser.add_argument("--repeat", type=int, default=3, help="times that everything is encoded; the best counts")
    parser.add_argument("--tiny", action="store_true", help="tiny encoders and few clips: a rehearsal")
    parser.add_argument("--output", type=Path, default=RESULT, help="where the JSON goes")
    return parser.parse_args(arguments)


def measure(folder: Path, device: Any, options: argparse.Namespace) -> list[Row]:
    """Return the rows of the peak, of each set of clips, of images and of copies."""
    import torch
    from models import make_model

    peak = matmul_peak(device, torch.bfloat16, **({"size": 128, "repeat": 2} if options.tiny else {}))
    rows = [Row("gpu/matmul-peak", peak, "TFLOP/s")]
    model = make_model("hubert-large", folder, options.tiny)
    encoder = load_encoder(model, "audio", device, "bfloat16")
    for name, batches in audio_batches(options.tiny).items():
        say(f"gpu/hubert-large-{name}: {len(batches)} batches")
        rows.append(measure_audio(f"gpu/hubert-large-{name}", model, encoder, batches, peak, options.repeat))
    del encoder
    rows.append(measure_images(make_model("clip-vit-l14", folder, options.tiny), device, peak, options))
    rows.append(measure_copies(device, 2**20 if options.tiny else 2**28))
    return rows


def audio_batches(tiny: bool) -> dict[str, list[list[np.ndarray]]]:
    """Return three ways to batch noise: of one length, of like lengths, of random lengths."""
    rng = np.random.default_rng(0)
    count, budget = (6, 4.0) if tiny else (1024, BATCH_SECONDS)
    lengths = np.clip(1.5 + rng.gamma(2.0, 1.5, count), 1.5, 15.0) / (4 if tiny else 1)
    mean = [noise(rng, float(lengths.mean())) for _ in range(count)]
    waves = [noise(rng, float(seconds)) for seconds in lengths]
    size = max(1, int(budget / lengths.max()))
    unsorted = [waves[start : start + size] for start in range(0, count, size)]
    return {"equal": by_length(mean, budget), "sorted": by_length(waves, budget), "unsorted": unsorted}


def noise(rng: np.random.Generator, seconds: float) -> np.ndarray:
    return rng.normal(0, 0.1, round(seconds * SAMPLE_RATE)).astype(np.float32)


def measure_audio(
    name: str, model: Path, encoder: Any, batches: list[list[np.ndarray]], peak: float, repeat: int
) -> Row:
    """Return useful TFLOP/s against the peak."""
    seconds = encode_seconds(encoder, batches, repeat)
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    waves = [wave for batch in batches for wave in batch]
    padded = sum(len(batch) * max(map(len, batch)) for batch in batches)
    media = sum(map(len, waves))
    fields = {
        "seconds": seconds,
        "seconds_of_audio_per_second": media / SAMPLE_RATE / seconds,
        "padding": 1 - media / padded,
        "batches": len(batches),
    }
    return Row(name, sum(hubert_flop(config, len(wave)) for wave in waves) / seconds / 1e12, "TFLOP/s", peak, fields)


def measure_images(model: Path, device: Any, peak: float, options: argparse.Namespace) -> Row:
    """Return useful TFLOP/s of CLIP ViT-L/14 against the peak."""
    encoder = load_encoder(model, "video", device, "bfloat16")
    rng = np.random.default_rng(0)
    clips, frames = (2, 2) if options.tiny else (2 * BATCH_IMAGES // 16, 16)
    crops = [rng.integers(0, 256, (frames, encoder.size, encoder.size, 3)).astype(np.uint8) for _ in range(clips)]
    per_batch = max(1, BATCH_IMAGES // frames)
    batches = [crops[start : start + per_batch] for start in range(0, clips, per_batch)]
    say(f"gpu/clip-vit-l14: {len(batches)} batches of images")
    seconds = encode_seconds(encoder, batches, options.repeat)
    config, images = json.loads((model / "config.json").read_text(encoding="utf-8")), clips * frames
    fields = {"seconds": seconds, "images_per_second": images / seconds}
    return Row("gpu/clip-vit-l14", images * vit_flop(config) / seconds / 1e12, "TFLOP/s", peak, fields)


def encode_seconds(encoder: Any, batches: Sequence[Sequence[Any]], repeat: int) -> float:
    """Return the seconds that the encoder needs for all layers of all batches: the best of `repeat`, after a first."""
    import torch

    layers = tuple(range(encoder.num_layers + 1))
    prepared = [[encoder.prepare(item) for item in batch] for batch in batches]

    @torch.inference_mode()
    def encode() -> None:
        for batch in prepared:
            encoder.encode_prepared(batch, layers)

    encode()
    return min(timed(encode, encoder.device) for _ in range(repeat))


def measure_copies(device: Any, values: int) -> Row:
    """Return GB/s of copies to the device from pinned memory, against those from pageable memory."""
    import torch

    pageable = torch.zeros(values, dtype=torch.float32)
    pinned = pageable.pin_memory() if device.type == "cuda" else pageable
    rates = []
    for source in (pinned, pageable):
        source.to(device)
        best = min(timed(lambda source=source: source.to(device, non_blocking=True), device) for _ in range(3))
        rates.append(4 * values / best / 1e9)
    return Row("gpu/pinned-copy", rates[0], "GB/s", rates[1], {"megabytes": 4 * values / 1e6})


def profile(folder: Path, device: Any, options: argparse.Namespace) -> list[Row]:
    """Return the share of each kind of kernel in the time of the device, and how busy the device is."""
    import torch
    from models import make_model

    encoder = load_encoder(make_model("hubert-large", folder, options.tiny), "audio", device, "bfloat16")
    batches = audio_batches(options.tiny)["sorted"]
    wall = encode_seconds(encoder, batches, 1)
    activities = list(torch.profiler.supported_activities())
    with torch.profiler.profile(activities=activities) as profiler:
        encode_seconds(encoder, batches, 1)  # one pass to warm up, one that is timed
    on_device = torch.profiler.ProfilerActivity.CUDA in activities and device.type == "cuda"
    times = kernel_times(profiler.key_averages(), on_device)
    total = sum(times.values())
    kinds = Counter[str]()
    for name, seconds in times.items():
        kinds[kind_of(name)] += seconds
    top = [{"kernel": name, "share": seconds / total} for name, seconds in times.most_common(12)]
    busy = Row("gpu/profile/device-busy", total / 2 / wall, "share of time", fields={"kernels": top})
    return [busy, *(Row(f"gpu/profile/{kind}", kinds[kind] / total, "share of device time") for kind in KERNELS)]


def kernel_times(events: Any, on_device: bool) -> Counter[str]:
    """Return the seconds of each kernel by name, or of each operator of torch where no GPU runs."""
    times = Counter[str]()
    for event in events:
        is_kernel = str(event.device_type).endswith("CUDA")
        if on_device and is_kernel:
            times[event.key] += event.self_device_time_total / 1e6
        elif not on_device:
            times[event.key] += event.self_cpu_time_total / 1e6
    return times


def kind_of(kernel: str) -> str:
    """Return the first of KERNELS whose words are in the name."""
    return next(kind for kind, words in KERNELS.items() if re.search(words, kernel, re.IGNORECASE))


if __name__ == "__main__":
    main()
