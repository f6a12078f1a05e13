"""Training adapters from the stored frozen prefix against running every block up to the last adapted one.

    python tests/bench/finetune.py
    python tests/bench/finetune.py --tiny

A HuBERT-large shape with random weights, bottlenecks of 64 in layers 16 to 21, cross-entropy without masks, so
that both train on the same losses. The other side keeps what the convolutions make of every clip in memory
(`--no-prefix-cache`), so that only blocks are compared; both leave out the blocks above layer 21. Epochs of the
two are run in turn, since the pace of a machine drifts; a row counts labelled clips per second of training, the
median over epochs. `loss_difference` is the largest relative difference of the losses of the two. Writes
build/bench/finetune.json.
"""

import argparse
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from models import make_model
from report import ROOT, Row, others, publish, say, workplace

RESULT = ROOT / "build" / "bench" / "finetune.json"


def main() -> None:
    options = parse()
    layers = (2, 3) if options.tiny else tuple(range(16, 22))
    share = others()
    with workplace() as place:
        seconds, losses = measure(place, layers, options)
    clips = options.clips * 3 // 4  # the rest is held out, or chooses the epoch
    paces = {name: clips / float(np.median(times)) for name, times in seconds.items()}
    pairs = [old / new for old, new in zip(seconds["every block"], seconds["prefix"], strict=True)]
    fields = {
        "spread": [round(min(pairs), 2), round(max(pairs), 2)],
        "loss_difference": float(np.max(np.abs(np.array(losses["prefix"]) / np.array(losses["every block"]) - 1))),
        "layers": f"{layers[0]}-{layers[-1]}",
        "dtype": options.dtype,
        "others": share,
    }
    row = Row("finetune/prefix-cache", paces["prefix"], "clips/s", paces["every block"], fields)
    publish([row], options.output, f"Training {clips} clips, {options.rounds} epochs of each in turn")


def measure(place: Path, layers: tuple[int, ...], options: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """Seconds and training loss of every epoch, with and without the stored prefix."""
    import torch

    from mertool import encoders
    from mertool.adapters.adapter import Adaptation, Method, Part
    from mertool.adapters.data import Wanted, read_clips
    from mertool.adapters.trainer import Schedule
    from mertool.devices import resolve_device, resolve_dtype
    from mertool.extraction.decoding import DecoderLimits
    from mertool.learning.accelerator import make_accelerator
    from mertool.learning.checkpoint import Checkpoint
    from mertool.manifest import Manifest

    device = resolve_device(options.device)
    dtype = resolve_dtype(options.dtype, device)
    accelerator = make_accelerator(device, dtype)
    source = encoders.find(str(make_model("hubert-large", place, options.tiny)), "audio")
    manifest = Manifest.read(make_sounds(place, options.clips))
    labels = np.arange(options.clips) % 3
    rows = np.arange(options.clips)
    part = Part(rows[rows % 4 > 0], rows[rows % 8 == 0], rows[rows % 8 == 4])
    seconds: dict[str, list[float]] = {"prefix": [], "every block": []}
    losses: dict[str, list[float]] = {"prefix": [], "every block": []}
    shared = {}
    for name in seconds:
        exact = name == "every block"
        say(f"reading the clips: {name}")
        encoder = encoders.load("audio", source, device, torch.float32)
        wanted = Wanted(
            source, source.digest(), (min(layers) - 1,), None, False, exact, torch.float32, device, DecoderLimits()
        )
        clips = read_clips(manifest, wanted, place / "frozen-layers", encoder, no_progress)
        method = Method("bottleneck", 64, layers, mask_weight=0.0)
        shared[name] = Adaptation(encoder, clips, labels, 3, method, exact, accelerator)
    for number in range(options.rounds):
        for name in sorted(seconds, reverse=bool(number % 2)):
            times: list[float] = []
            checkpoint = Checkpoint(place / "none.safetensors", is_writer=False)
            folder = place / f"{name}-{number}"
            schedule = Schedule(1, options.batch, seed=number)
            trained = shared[name].train(part, schedule, folder, "final", checkpoint, marks(times))
            steps = -(-len(part.train) // options.batch)
            # The first step carries what is made once; the last one the development part.
            each = float(np.median(np.diff(times[:steps])))
            seconds[name].append(each * steps)
            losses[name].append(trained.history.label_loss[0])
            say(f"round {number + 1}, {name}: {seconds[name][-1]:.2f} s an epoch")
    return seconds, losses


def marks(times: list[float]) -> Any:
    """A progress function that notes when each step was done."""
    return lambda step: times.append(time.monotonic())


@contextmanager
def no_progress(title: str, unit: str) -> Any:
    yield lambda *_: None


def make_sounds(place: Path, count: int) -> Path:
    """Clips of noise, 2 to 6 s, and their manifest."""
    import soundfile

    random = np.random.default_rng(0)
    lines = ["clip,path,label,split"]
    for number in range(count):
        wave = random.normal(0, 0.1, int(16_000 * random.uniform(2, 6))).astype(np.float32)
        soundfile.write(place / f"c{number}.wav", wave, 16_000)
        lines.append(f"c{number},c{number}.wav,{('sad', 'happy', 'angry')[number % 3]},train")
    (place / "clips.csv").write_text("\n".join(lines) + "\n")
    return place / "clips.csv"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3, help="epochs of each side")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--tiny", action="store_true", help="a smoke test: a tiny encoder")
    parser.add_argument("--output", type=Path, default=RESULT)
    return parser.parse_args()


if __name__ == "__main__":
    main()
