"""Pre-train a small HuBERT on speech by HuBERT's own recipe, within minutes.

    python tests/bench/pretrain.py CLIPS build/bench/hubert --minutes 25
    python tests/bench/pretrain.py CLIPS build/bench/hubert --minutes 25 --check FOLDS.csv

CLIPS is a folder of 16 kHz mono clips (.flac, .wav). The recipe (Hsu et al. 2021, arXiv 2106.07447, section II):
masked frames are predicted as units, which are k-means clusters of MFCCs in the first iteration, and of a middle
layer of the model so far in the second. The second iteration goes on from the first's weights with a new head:
minutes are too few for the paper's fresh start (`--fresh` does that). The form is that of HuBERT-large (layer norms,
so that padding with a mask is exact), the sizes are tiny.

No label is read, but the sound of every clip is. A later test on the same clips is therefore transductive: its test
speakers were heard here, unlabelled, and its figures are no estimate for a corpus that the model has never heard.

The folder is in Hugging Face format and usable at any time: it is written every few minutes, and `pretrain.json` in
it says how far it came. `--check` compares, layer by layer, linear probes of the result and of the same model with
random weights, on the folds of a CSV (fold,split,file,label; in this order). With `--steps` a run repeats exactly on
the same machine; with `--minutes` the schedule follows the clock. Where other programs keep the processor busy, set
OMP_WAIT_POLICY=passive: threads that spin while they wait for each other made it more than twice as slow.
"""

import argparse
import csv
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from report import say

if TYPE_CHECKING:
    import torch
    from transformers import HubertModel

RATE = 16_000
HOP, WINDOW = 320, 400  # samples between frames, and seen by one: of the convolutions, and so of the MFCCs
SHARE = 0.4  # of the whole run, for the first of two iterations
SAVE_EVERY, SAY_EVERY = 120.0, 20.0  # seconds
SUFFIXES = (".flac", ".wav")
PENALTY = 0.1  # inverse strength of the probes' L2 penalty


@dataclass(frozen=True)
class Options:
    """Options of pre-training. Sizes of 0 are chosen by the device: tiny on a CPU, small on a GPU.

    minutes, steps: of training, both iterations together; steps count if given; device: cpu or cuda; width, layers,
    heads, channels: of the transformer and of the convolutions before it; units: clusters to predict;
    batch: crops per step; seconds: length of a crop; rate: peak learning rate; fresh: start the second iteration
    from random weights; speeds: of playing, each makes a further copy of every clip; seed: of everything drawn.
    """

    minutes: float = 25.0
    steps: int = 0
    device: str = ""
    width: int = 0
    layers: int = 0
    heads: int = 0
    channels: int = 0
    units: int = 100
    batch: int = 0
    seconds: float = 2.0
    rate: float = 0.0
    fresh: bool = False
    speeds: tuple[float, ...] = (1.0,)
    mask_start: float = 0.08
    mask_length: int = 10
    temperature: float = 0.1
    seed: int = 0


TINY = {"width": 192, "layers": 8, "heads": 4, "channels": 64, "batch": 8, "rate": 1e-3}
SMALL = {"width": 512, "layers": 12, "heads": 8, "channels": 256, "batch": 64, "rate": 5e-4}


def complete(options: Options) -> Options:
    """The options with the device and the sizes of that device filled in."""
    import torch

    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    sizes = SMALL if device.startswith("cuda") else TINY
    missing = {name: size for name, size in sizes.items() if not getattr(options, name)}
    return Options(**{**asdict(options), **missing, "device": device})


def main() -> None:
    arguments = parse()
    names = {field.name for field in fields(Options)}
    options = Options(**{name: value for name, value in vars(arguments).items() if name in names})
    waves = read_waves(arguments.clips)
    if not arguments.check_only:
        pretrain(list(waves.values()), arguments.folder, options)
    if arguments.check:
        print_check(waves, arguments.folder, read_folds(arguments.check), options)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Pre-train a small HuBERT on speech by HuBERT's own recipe.")
    parser.add_argument("clips", type=Path, help="folder of 16 kHz mono clips (.flac, .wav)")
    parser.add_argument("folder", type=Path, help="where the model goes")
    parser.add_argument("--minutes", type=float, default=Options.minutes, help="of training (default: 25)")
    parser.add_argument("--steps", type=int, default=0, help="steps of both iterations, instead of --minutes")
    parser.add_argument("--device", default="", help="cpu or cuda (default: cuda if there is one)")
    for name in ("width", "layers", "heads", "channels", "batch"):
        default = f"{TINY[name]} on a CPU, {SMALL[name]} on a GPU"
        parser.add_argument(f"--{name}", type=int, default=0, help=f"(default: {default})")
    parser.add_argument("--units", type=int, default=Options.units, help="clusters to predict (default: 100)")
    parser.add_argument("--seconds", type=float, default=Options.seconds, help="length of a crop (default: 2)")
    parser.add_argument("--rate", type=float, default=0.0, help="peak learning rate (default: by the device)")
    parser.add_argument("--fresh", action="store_true", help="second iteration from random weights")
    parser.add_argument(
        "--speeds", type=float, nargs="+", default=Options.speeds, help="copies of every clip (default: 1)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--check", type=Path, metavar="CSV", help="probe each layer on the folds of this CSV")
    parser.add_argument("--check-only", action="store_true", help="do not train: probe the model that is there")
    options = parser.parse_args()
    if options.check_only and not options.check:
        parser.error("--check-only needs --check CSV")
    options.speeds = tuple(options.speeds)
    return options


# The recipe


def pretrain(waves: Sequence[np.ndarray], folder: Path, options: Options | None = None) -> list[dict[str, Any]]:
    """Pre-train on `waves` (16 kHz, mono, float) and leave the model in `folder`.

    Returns a record of each iteration: steps, seconds, loss and accuracy on masked frames (also in pretrain.json).
    """
    import torch

    options = complete(options or Options())
    torch.manual_seed(options.seed)
    model = make_model(options).to(options.device)
    clips = [clip for wave in waves for clip in prepare(wave, options)]
    hours = sum(map(len, clips)) / RATE / 3600
    say(f"{len(clips)} clips, {hours:.2f} h without silent edges, {model.num_parameters() / 1e6:.2f} M parameters")
    units = cluster([mfcc(clip) for clip in clips], options)
    records: list[dict[str, Any]] = []
    for number, share in ((1, SHARE), (2, 1 - SHARE)):
        if number == 2:
            features = hidden_features(model, clips, options.layers // 2, options.device)
            units = cluster(features, options)
            if options.fresh:
                model = make_model(options).to(options.device)
        batches = draw_batches(clips, units, options, options.seed + number)
        steps, minutes = round(options.steps * share), options.minutes * share
        records.append({"iteration": number})
        for record in train(model, batches, steps, minutes, options):
            records[-1] |= record
            save(model, folder, options, records)
    return records


def make_model(options: Options) -> "HubertModel":
    """HuBERT in the form of the large one, with random weights.

    The first two convolutions are half as wide: they run at 3200 and 1600 Hz, and take the most time.
    """
    from transformers import HubertConfig, HubertModel

    dropouts = ("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout", "layerdrop")
    return HubertModel(
        HubertConfig(
            hidden_size=options.width,
            num_hidden_layers=options.layers,
            num_attention_heads=options.heads,
            intermediate_size=4 * options.width,
            conv_dim=(options.channels // 2,) * 2 + (options.channels,) * 5,
            conv_bias=True,
            feat_extract_norm="layer",
            do_stable_layer_norm=True,
            num_conv_pos_embeddings=64,
            **dict.fromkeys(dropouts, 0.0),
        )
    )


def train(
    model: "HubertModel", batches: Iterator[tuple[Any, Any, Any]], steps: int, minutes: float, options: Options
) -> Iterator[dict[str, Any]]:
    """One iteration, of `steps` steps or else of `minutes`; a record every few minutes and at the end."""
    import torch
    from torch.nn.functional import cross_entropy, normalize

    torch.manual_seed(options.seed)
    head = torch.nn.Linear(options.width, options.width, device=options.device)
    codes = torch.nn.Parameter(torch.randn(options.units, options.width, device=options.device))
    parameters = [*model.parameters(), *head.parameters(), codes]
    optimizer = torch.optim.AdamW(parameters, lr=options.rate, betas=(0.9, 0.98), weight_decay=0.01)
    started = reported_at = saved_at = time.monotonic()
    loss_mean = hits_mean = 0.0
    step, done = 0, 0.0
    model.train()
    while done < 1.0:
        sound, units, masked = (tensor.to(options.device) for tensor in next(batches))
        for group in optimizer.param_groups:
            group["lr"] = options.rate * min(done / 0.08, (1 - done) / 0.92)  # warm-up, then linear decay
        with torch.autocast(options.device.split(":")[0], torch.bfloat16):
            frames = model(sound, mask_time_indices=masked).last_hidden_state[masked]
            cosines = normalize(head(frames).float(), dim=-1) @ normalize(codes, dim=-1).T
        loss = cross_entropy(cosines.float() / options.temperature, units[masked])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        step += 1
        hits = (cosines.argmax(-1) == units[masked]).float().mean().item()
        decay = min(0.98, 1 - 1 / step)
        loss_mean, hits_mean = decay * loss_mean + (1 - decay) * loss.item(), decay * hits_mean + (1 - decay) * hits
        now = time.monotonic()
        done = step / steps if steps else (now - started) / (60 * minutes)
        record = {"steps": step, "seconds": round(now - started), "loss": loss_mean, "accuracy": hits_mean}
        if now - reported_at > SAY_EVERY or done >= 1.0:
            reported_at, seconds_left = now, (now - started) * (1 / min(done, 1.0) - 1)
            say(f"step {step}: loss {loss_mean:.3f}, masked accuracy {hits_mean:.1%}, {seconds_left / 60:.1f} min left")
        if now - saved_at > SAVE_EVERY or done >= 1.0:
            saved_at = now
            yield record


def save(model: "HubertModel", folder: Path, options: Options, records: list[dict[str, Any]]) -> None:
    """Write the model beside the folder, then move it there file by file."""
    from transformers import Wav2Vec2FeatureExtractor
    from transformers.utils import logging

    logging.disable_progress_bar()
    partial = folder.with_name(f"{folder.name}.partial")
    model.save_pretrained(partial)
    Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True).save_pretrained(partial)
    story = {"options": asdict(options), "iterations": records}
    (partial / "pretrain.json").write_text(json.dumps(story, indent=2) + "\n", encoding="utf-8")
    folder.mkdir(parents=True, exist_ok=True)
    for file in partial.iterdir():
        file.replace(folder / file.name)
    partial.rmdir()


# Clips and crops


def read_waves(folder: Path) -> dict[str, np.ndarray]:
    """Name and samples of every clip below the folder."""
    import soundfile

    waves = {}
    for path in sorted(path for path in folder.rglob("*") if path.suffix in SUFFIXES):
        wave, rate = soundfile.read(path, dtype="float32", always_2d=True)
        if rate != RATE:
            raise SystemExit(f"{path} has {rate} Hz: resample it to {RATE} Hz first")
        waves[path.name] = wave.mean(axis=1)
    if not waves:
        raise SystemExit(f"no {' or '.join(SUFFIXES)} in {folder}")
    return waves


def normalise(wave: np.ndarray) -> np.ndarray:
    """Zero mean, unit variance over the clip, as the model's feature extractor does."""
    return ((wave - wave.mean()) / np.sqrt(wave.var() + 1e-7)).astype(np.float32)


def prepare(wave: np.ndarray, options: Options) -> list[np.ndarray]:
    """The clip at each speed: normalised, without silent edges, of one crop at least."""
    from scipy.signal import resample_poly

    speech = trim(normalise(wave))
    copies = [speech if speed == 1 else resample_poly(speech, 100, round(100 * speed)) for speed in options.speeds]
    short = (max(0, round(options.seconds * RATE) - len(copy)) for copy in copies)
    return [np.pad(copy, (0, missing)).astype(np.float32) for copy, missing in zip(copies, short, strict=True)]


def trim(wave: np.ndarray) -> np.ndarray:
    """The wave without its silent edges."""
    first, last = speech_span(wave)
    return wave[first:last]


def speech_span(wave: np.ndarray, floor: float = 0.01, margin: int = 10) -> tuple[int, int]:
    """Samples between the edges whose energy is below `floor` (40 dB: 0.01 in amplitude) of the loudest."""
    blocks = wave[: len(wave) // HOP * HOP].reshape(-1, HOP)
    level = np.sqrt((blocks**2).mean(axis=1))
    loud = np.flatnonzero(level > floor * level.max(initial=0))
    if not len(loud):
        return 0, len(wave)
    return max(0, loud[0] - margin) * HOP, min(len(wave), (loud[-1] + margin + 1) * HOP)


def draw_batches(
    clips: list[np.ndarray], units: list[np.ndarray], options: Options, seed: int
) -> Iterator[tuple["torch.Tensor", "torch.Tensor", "torch.Tensor"]]:
    """Endless batches: crops (B, samples) of random gain, their units (B, T) and masked frames (B, T)."""
    import torch

    random = np.random.default_rng(seed)
    length = round(options.seconds * RATE)
    frames = (length - WINDOW) // HOP + 1
    while True:
        sound, target = [], []
        for index in random.integers(len(clips), size=options.batch):
            first = int(random.integers((len(clips[index]) - length) // HOP + 1))
            gain = 10 ** (random.uniform(-6, 6) / 20)
            sound.append(clips[index][first * HOP : first * HOP + length] * np.float32(gain))
            target.append(units[index][first : first + frames])
        masked = draw_mask(random, (options.batch, frames), options)
        yield torch.from_numpy(np.stack(sound)), torch.from_numpy(np.stack(target)), torch.from_numpy(masked)


def draw_mask(random: np.random.Generator, shape: tuple[int, int], options: Options) -> np.ndarray:
    """Spans of `mask_length` frames, which may overlap; each frame starts one with probability `mask_start`."""
    starts = random.random(shape) < options.mask_start
    starts[0, random.integers(shape[1])] = True  # never none at all
    masked = starts.copy()
    for shift in range(1, options.mask_length):
        masked[:, shift:] |= starts[:, :-shift]
    return masked


# Units


def mfcc(wave: np.ndarray) -> np.ndarray:
    """13 MFCCs with first and second differences (T, 39), one frame for each of the model's.

    Computed every 10 ms, of which every other is kept, as in HuBERT; filters and lifter are Kaldi's.
    """
    from scipy.fft import dct
    from scipy.ndimage import correlate1d

    count = (len(wave) - WINDOW) // HOP + 1
    sound = np.append(wave[:1], wave[1:] - 0.97 * wave[:-1])
    blocks = np.lib.stride_tricks.sliding_window_view(sound, WINDOW)[:: HOP // 2] * np.hanning(WINDOW) ** 0.85
    power = np.abs(np.fft.rfft(blocks, 512)) ** 2
    cepstra = dct(np.log(power @ mel_filters(23, 512).T + 1e-4), norm="ortho")[:, :13]
    cepstra *= 1 + 11 * np.sin(np.pi * np.arange(13) / 22)
    slope = np.arange(-2, 3) / 10
    first = correlate1d(cepstra, slope, axis=0, mode="nearest")
    second = correlate1d(first, slope, axis=0, mode="nearest")
    return np.concatenate([cepstra, first, second], axis=1)[::2][:count].astype(np.float32)


def mel_filters(count: int, size: int) -> np.ndarray:
    """Triangles (count, size // 2 + 1) on the mel scale from 20 Hz to half the rate."""
    mel = 1127 * np.log1p(np.fft.rfftfreq(size, 1 / RATE) / 700)
    edges = np.linspace(1127 * np.log1p(20 / 700), mel[-1], count + 2)
    lower, centre, upper = (edges[shift : shift + count, None] for shift in range(3))
    return np.clip(np.minimum((mel - lower) / (centre - lower), (upper - mel) / (upper - centre)), 0, None)


def hidden_features(model: "HubertModel", clips: Sequence[np.ndarray], layer: int, device: str) -> list[np.ndarray]:
    """Frames (T, width) of one layer (counted from 1) for every clip, standardised per dimension over all."""
    frames = [states[layer] for states in hidden_states(model, clips, device)]
    everything = np.concatenate(frames)
    mean, scale = everything.mean(axis=0), everything.std(axis=0) + 1e-6
    return [(clip - mean) / scale for clip in frames]


def hidden_states(model: "HubertModel", clips: Sequence[np.ndarray], device: str) -> Iterator[np.ndarray]:
    """All layers (1 + layers, T, width) of each clip, one clip at a time."""
    import torch

    model.eval()
    for clip in clips:
        with torch.inference_mode(), torch.autocast(device.split(":")[0], torch.bfloat16):
            states = model(torch.from_numpy(clip)[None].to(device), output_hidden_states=True).hidden_states
        yield torch.cat(states).float().cpu().numpy()


def cluster(features: list[np.ndarray], options: Options) -> list[np.ndarray]:
    """The unit of every frame: clusters by k-means of the frames of all clips."""
    from sklearn.cluster import MiniBatchKMeans

    frames = np.concatenate(features)
    means = MiniBatchKMeans(options.units, batch_size=10_000, n_init=3, max_iter=50, random_state=options.seed)
    units = means.fit(frames).predict(frames).astype(np.int64)
    shares = np.bincount(units, minlength=options.units) / len(units)
    entropy = -(shares * np.log(shares + 1e-12)).sum()
    say(f"{(shares > 0).sum()} units of {len(frames)} frames, entropy {entropy:.2f} nats: the loss of a blind guess")
    return np.split(units, np.cumsum([len(clip) for clip in features])[:-1])


# The check


def read_folds(path: Path) -> dict[str, dict[str, list[tuple[str, str]]]]:
    """Per fold: the names of the clips and their labels, of `train` and of `test`."""
    folds: dict[str, dict[str, list[tuple[str, str]]]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for fold, split, name, label in list(csv.reader(file))[1:]:
            folds.setdefault(fold, {}).setdefault(split, []).append((Path(name).name, label))
    return folds


def print_check(waves: dict[str, np.ndarray], folder: Path, folds: dict[str, Any], options: Options) -> None:
    """UA of each layer of the model in the folder, and of the same model with random weights."""
    random, trained = check(waves, folder, folds, options)
    print("layer  random  trained   (UA in per cent; layer 0 is the input of layer 1)")
    for layer, (random_ua, trained_ua) in enumerate(zip(random, trained, strict=True)):
        print(f"{layer:5d}  {100 * random_ua:6.1f}  {100 * trained_ua:7.1f}")


def check(
    waves: dict[str, np.ndarray], folder: Path, folds: dict[str, Any], options: Options
) -> tuple[list[float], list[float]]:
    """UA per layer of random weights and of the model in the folder: linear probes of the layers' means over time."""
    import torch
    from transformers import HubertModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    trained = HubertModel.from_pretrained(folder)
    torch.manual_seed(options.seed)
    models = (HubertModel(trained.config), trained)
    return tuple(probe(model.to(complete(options).device), waves, folds, options) for model in models)


def probe(model: "HubertModel", waves: dict[str, np.ndarray], folds: dict[str, Any], options: Options) -> list[float]:
    """UA per layer, averaged over the folds: logistic regression, standardised on each fold's training clips."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import recall_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    clips = [normalise(wave) for wave in waves.values()]
    means = np.stack([states.mean(axis=1) for states in hidden_states(model, clips, complete(options).device)])
    row_of_name = {name: number for number, name in enumerate(waves)}

    def score(layer: int, fold: dict[str, list[tuple[str, str]]]) -> float:
        data = {}
        for split in ("train", "test"):
            names, labels = zip(*fold[split], strict=True)
            data[split] = means[[row_of_name[name] for name in names], layer], labels
        classifier = make_pipeline(StandardScaler(), LogisticRegression(C=PENALTY, max_iter=1000))
        guesses = classifier.fit(*data["train"]).predict(data["test"][0])
        return recall_score(data["test"][1], guesses, average="macro")

    with threadpool_limits(1):  # on a busy machine, threads take minutes for what one does in a second
        return [float(np.mean([score(layer, fold) for fold in folds.values()])) for layer in range(means.shape[1])]


if __name__ == "__main__":
    main()
