"""Training adapters from the stored frozen prefix against running every block up to the last adapted one.

    python tests/bench/finetune.py
    python tests/bench/finetune.py --tiny

A HuBERT-large shape with random weights, bottlenecks of 64 in layers 16 to 21, cross-entropy without masks, so
that both train on the same losses. The other side keeps what the convolutions make of every clip in memory
(`--no-prefix-cache`), so that only blocks are compared; both leave out the blocks above layer 21. Epochs of the
two are run in turn, because the speed of a machine drifts; a row counts labelled clips per second of training, the
median over epochs. `loss_difference` is the largest relative difference of the losses of the two. Writes
build/bench/finetune.json.
"""

import argparse
import time
from contextlib import contextmanager
from dataclasses import replace
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
    with workplace() as folder:
        seconds, losses = measure(folder, layers, options)
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


def measure(
    folder: Path, layers: tuple[int, ...], options: argparse.Namespace
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return seconds and training loss of every epoch, with and without the stored prefix."""
    import torch

    from mertool import encoders
    from mertool.adapters.cross_validation import AdapterSplit
    from mertool.adapters.data import AdaptationDataSpec, read_adaptation_data
    from mertool.adapters.setup import AdapterConfig, prepare
    from mertool.adapters.trainer import train_adapter
    from mertool.devices import resolve_device, resolve_dtype
    from mertool.extraction.decoding import DecoderLimits
    from mertool.learning.accelerator import make_accelerator
    from mertool.manifest import Manifest

    device = resolve_device(options.device)
    accelerator = make_accelerator(device, resolve_dtype(options.dtype, device))
    checkpoint = encoders.resolve_encoder(str(make_model("hubert-large", folder, options.tiny)), "audio")
    manifest = Manifest.read(make_sounds(folder, options.clips))
    rows = np.arange(options.clips)
    split = AdapterSplit(name="final", train=rows[rows % 4 > 0], held_out=rows[rows % 4 == 0])
    seconds: dict[str, list[float]] = {"prefix": [], "every block": []}
    losses: dict[str, list[float]] = {"prefix": [], "every block": []}
    setups = {}
    for name in seconds:
        from_frontend = name == "every block"
        say(f"reading the clips: {name}")
        encoder = encoders.load_encoder(checkpoint, "audio", device=device, dtype=torch.float32)
        spec = AdaptationDataSpec(
            checkpoint=checkpoint,
            weights=checkpoint.digest(),
            blocks=(min(layers) - 1,),
            from_frontend=from_frontend,
            dtype=torch.float32,
            device=device,
            limits=DecoderLimits(),
        )
        data = read_adaptation_data(
            manifest, spec, cache=folder / "frozen-layers", encoder=encoder, progress=no_progress
        )
        setups[name] = prepare(
            encoder,
            data,
            np.arange(options.clips) % 3,
            n_classes=3,
            config=AdapterConfig(
                method="bottleneck", size=64, layers=layers, mask_weight=0.0, epochs=1, batch_size=options.batch
            ),
            from_frontend=from_frontend,
            accelerator=accelerator,
        )
    for number in range(options.rounds):
        for name in sorted(seconds, reverse=bool(number % 2)):
            times: list[float] = []
            setup = replace(setups[name], config=replace(setups[name].config, seed=number))
            adapter = train_adapter(setup, split, record_times(times))
            # The first step includes what is done once, so it is left out of the median.
            seconds_per_step = float(np.median(np.diff(times)))
            seconds[name].append(seconds_per_step * len(times))
            losses[name].append(adapter.history.label_loss[0])
            say(f"round {number + 1}, {name}: {seconds[name][-1]:.2f} s an epoch")
    return seconds, losses


def record_times(times: list[float]) -> Any:
    """Return a progress function that records when each step was done."""
    return lambda step: times.append(time.monotonic())


@contextmanager
def no_progress(title: str, unit: str) -> Any:
    yield lambda *_: None


def make_sounds(folder: Path, count: int) -> Path:
    """Clips of noise, 2 to 6 s, and their manifest."""
    import soundfile

    random = np.random.default_rng(0)
    lines = ["clip,path,label,split"]
    for number in range(count):
        wave = random.normal(0, 0.1, int(16_000 * random.uniform(2, 6))).astype(np.float32)
        soundfile.write(folder / f"c{number}.wav", wave, 16_000)
        lines.append(f"c{number},c{number}.wav,{('sad', 'happy', 'angry')[number % 3]},train")
    (folder / "clips.csv").write_text("\n".join(lines) + "\n")
    return folder / "clips.csv"


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
