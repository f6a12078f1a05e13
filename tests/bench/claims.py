"""The paper's claims on real encoders: layers, the window, adapters in it, and fusion. `make bench-claims`.

    python tests/bench/claims.py --ravdess RAVDESS --mosi MOSI --weights WEIGHTS
    python tests/bench/claims.py ... --only probe adapt/whisper-base/lora

RAVDESS is a folder with labels.csv (file,label,speaker), the clips, and EmoBox's six actor-independent folds
(emobox_folds.csv); MOSI one with mosi_bclstm.npz (see mosi.py); WEIGHTS one with the encoders whisper-base,
whisper-tiny-en and minilm-l6 in the form of Hugging Face. What is missing is named, and its cells are left out.

The work is divided into cells, the most important first. Each finished one is a file of build/bench/claims/, and is not
measured again unless its command changes; so a killed run goes on. The last step, or `--table`, collects the cells into
build/bench/claims.json and prints them:

- probe: every layer of the frozen encoder by `probe-layers`, and the nested window.
- adapt: `finetune` of one method, in the window that the probe recommends or in the last layers, with one seed. Methods
  that have a size train about as many parameters (`--budget`). Nothing is chosen on the actors that are scored, except
  the window, which was chosen on all of them and favours frozen and adapted features alike.
- store: what later stages make of an adapter: `extract --adapter`, then `probe-layers` on that store, and `fuse` of
  the frozen and the adapted store.
- rate: learning rates of each method on eight development actors of the first fold's training part.
- mosi: a text encoder on MOSI's transcripts, alone and fused with MOSI's audio and video features.

Scores are unweighted accuracy (UA), the mean of the seeds. Every actor spoke equally many clips of a class, so UA is
the mean over actors; intervals are by t over 24 actors, and p by a sign-flip test over them, adjusted by Holm's method
within a table.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from report import ROOT, Row, publish, say

PLACE = ROOT / "build" / "bench" / "claims"
RESULT = ROOT / "build" / "bench" / "claims.json"
CLASSES = ("neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised")
ENCODERS = ("whisper-base", "whisper-tiny-en")
MAIN_METHODS = ("lora", "bottleneck")
OTHER_METHODS = ("bottleneck-parallel", "ia3", "full")
SIZED = ("lora", "bottleneck", "bottleneck-parallel")
SYSTEMS = {
    "frozen": "held_out-frozen.csv",
    "adapted": "held_out.csv",
    "adapted_probe": "held_out-probe.csv",
    "averaged": "held_out-averaged.csv",
}
RATE_FACTORS = (0.3, 1.0, 3.0)  # of the method's own rate
PUBLISHED = {
    "Whisper-large-v3": 75.32,
    "WavLM-large": 72.00,
    "HuBERT-large": 70.00,
    "HuBERT-base": 65.43,
}  # UA on these folds by EmoBox (arXiv 2406.07162), frozen, with another head
MOSI_PUBLISHED = 0.803  # bc-LSTM of all three modalities, which sees the utterances around (Poria et al., 2017)


@dataclass(frozen=True)
class Cell:
    """A measurement: its name, and the function that makes its content."""

    name: str
    measure: Callable[[], dict[str, Any]]

    @property
    def file(self) -> Path:
        return PLACE / f"{self.name.replace('/', '_')}.json"


def main() -> None:
    options = parse()
    PLACE.mkdir(parents=True, exist_ok=True)
    if not options.table:
        for cell in plan(options):
            if cell.file.exists() or not any(cell.name.startswith(prefix) for prefix in options.only):
                continue
            say(f"cell {cell.name}")
            content = cell.measure()
            draft = cell.file.with_suffix(".tmp")
            draft.write_text(json.dumps(content) + "\n", encoding="utf-8")
            draft.rename(cell.file)
    rows = collect(options)
    publish(rows, options.output, "The paper's claims on real encoders")
    show(rows)


def plan(options: argparse.Namespace) -> list[Cell]:
    """Return the cells whose data and weights are there, the most important first."""
    cells: list[Cell] = []
    has_ravdess = is_there(options.ravdess / "emobox_folds.csv", "RAVDESS", "--ravdess")
    encoders = [name for name in ENCODERS if is_there(options.weights / name / "config.json", name, "--weights")]
    if has_ravdess:
        for encoder in encoders:
            cells += ravdess_cells(encoder, options)
    if is_there(options.mosi / "mosi_bclstm.npz", "MOSI", "--mosi") and is_there(
        options.weights / "minilm-l6" / "config.json", "minilm-l6", "--weights"
    ):
        cells.append(Cell("mosi", partial(measure_mosi, options)))
    return sorted(cells, key=priority)


def is_there(path: Path, name: str, option: str) -> bool:
    if not path.exists():
        say(f"left out: {name}, for {path} does not exist; give {option}")
    return path.exists()


def priority(cell: Cell) -> tuple[int, ...]:
    """Order of the cells: the main comparison first, with one seed, then with the others."""
    parts = cell.name.split("/")
    kinds = {"probe": 0, "adapt": 1, "mosi": 2, "store": 3, "rate": 5}
    kind, is_small = kinds[parts[0]], "whisper-tiny-en" in parts
    if parts[0] != "adapt":
        return (kind + (3 if is_small else 0), 0, 0)
    _, _, method, window, seed = parts
    is_main = method in MAIN_METHODS and window == "window"
    return (4 if is_small or not is_main else 1, int(seed.removeprefix("seed")), is_main)


def ravdess_cells(encoder: str, options: argparse.Namespace) -> list[Cell]:
    cells = [Cell(f"probe/{encoder}", partial(measure_probe, encoder, options))]
    for seed in range(options.seeds):
        for window in ("window", "last"):
            # Masks: the paper's loss.
            for method in (*MAIN_METHODS, *OTHER_METHODS, "lora-masks"):
                name = f"adapt/{encoder}/{method}/{window}/seed{seed}"
                cells.append(Cell(name, partial(measure_adapter, encoder, method, window, seed=seed, options=options)))
    cells += [Cell(f"store/{encoder}/{m}", partial(measure_store, encoder, m, options)) for m in MAIN_METHODS]
    methods = (*MAIN_METHODS, *OTHER_METHODS)
    cells += [Cell(f"rate/{encoder}/{m}", partial(measure_rates, encoder, m, options)) for m in methods]
    return cells


# ---------------------------------------------------------------- cells of RAVDESS


def measure_probe(encoder: str, options: argparse.Namespace) -> dict[str, Any]:
    """Probe every layer of the frozen encoder."""
    manifest, store, run = write_manifest(options.ravdess), frozen_store(encoder), probe_run(encoder)
    mertool("extract", "audio", manifest, "-o", store, "--encoder", options.weights / encoder, "-q")
    command = mertool(
        *("probe-layers", store, "-m", manifest, "-o", run, "--folds", options.ravdess / "emobox_folds.csv"),
        *("--no-mlp", "--seeds", 1, "--classes", ",".join(CLASSES), "-q"),
    )
    metrics = read_json(run / "metrics.json")
    return {
        "command": command,
        "layers": {layer: scores["uar"] for layer, scores in metrics["layers"].items()},
        "window": metrics["window"],
        "recommended": read_json(run / "run.json")["window"],
        "nested": metrics["nested"],
    }


def measure_adapter(
    encoder: str, method: str, window: str, *, seed: int, options: argparse.Namespace
) -> dict[str, Any]:
    """Adapt the encoder in each fold; keep what every system guessed."""
    run = PLACE / "runs" / f"{encoder}-{method}-{window}-{seed}"
    command = mertool(
        *("finetune", write_manifest(options.ravdess), "-o", run, "--encoder", options.weights / encoder),
        *("--layers", "{}-{}".format(*layers_of(encoder, window)), *method_options(method, options)),
        *("--folds", options.ravdess / "emobox_folds.csv", "--seed", seed, "--classes", ",".join(CLASSES), "-q"),
    )
    metrics = read_json(run / "metrics.json")
    return {
        "command": command,
        "guesses": {system: guesses_of(run / file) for system, file in SYSTEMS.items()},
        **{name: metrics[name] for name in ("trainable", "parameters", "size", "layers")},
    }


def method_options(method: str, options: argparse.Namespace) -> list[Any]:
    name = method.removesuffix("-masks")
    chosen = ["--method", name, *(["--budget", options.budget] if name in SIZED else [])]
    return [*chosen, *(["--mask-weight", 0.1] if method != name else [])]


def measure_store(encoder: str, method: str, options: argparse.Namespace) -> dict[str, Any]:
    """Probe stores of adapted features, pooled in both ways, and fuse them with the frozen ones."""
    manifest = write_manifest(options.ravdess)
    run = PLACE / "runs" / f"{encoder}-{method}-window-0"
    layers = ["--layers", "{}-{}".format(*layers_of(encoder, "window"))]
    common = ["--folds", options.ravdess / "emobox_folds.csv", "--classes", ",".join(CLASSES), "-q"]
    found: dict[str, Any] = {"fuse": {}, "probe": {}}
    for pool in ("mean", "mean-std"):
        frozen, adapted = PLACE / f"{encoder}-window-{pool}.h5", run.with_name(f"{run.name}-{pool}.h5")
        extract = ["extract", "audio", manifest, "--encoder", options.weights / encoder, *layers, "--pool", pool, "-q"]
        mertool(*extract, "-o", frozen)
        found["command"] = mertool(*extract, "-o", adapted, "--adapter", run)
        probe = run.with_name(f"{run.name}-{pool}-probe")
        mertool("probe-layers", adapted, "-m", manifest, "-o", probe, *common, "--no-mlp", "--seeds", 1)
        layer_scores = read_json(probe / "metrics.json")["layers"]
        found["probe"][pool] = {layer: scores["uar"] for layer, scores in layer_scores.items()}
        for name, stores in {"frozen": [frozen], "adapted": [adapted], "both": [frozen, adapted]}.items():
            fused = run.with_name(f"{run.name}-{pool}-fused-{name}")
            mertool("fuse", *stores, "-m", manifest, "-o", fused, *common, "--no-unimodal")
            found["fuse"][f"{name}, {pool}"] = guesses_of(fused / "held_out.csv")
    return found


def measure_rates(encoder: str, method: str, options: argparse.Namespace) -> dict[str, Any]:
    """Train with several rates, in turn without each half of eight development actors, and score these."""
    import torch

    from mertool import encoders, registry
    from mertool.adapters import methods as peft_methods
    from mertool.adapters.cross_validation import AdapterSplit
    from mertool.adapters.data import AdaptationDataSpec, read_adaptation_data
    from mertool.adapters.evaluation import evaluate_adapter
    from mertool.adapters.layer_probes import FrozenProbes
    from mertool.adapters.setup import AdapterConfig, prepare
    from mertool.adapters.trainer import train_adapter
    from mertool.devices import resolve_device, resolve_dtype
    from mertool.encoders.hidden_states import find_blocks
    from mertool.extraction.decoding import DecoderLimits
    from mertool.learning.accelerator import make_accelerator
    from mertool.manifest import Manifest

    first, last = layers_of(encoder, "window")
    layers, device = tuple(range(first, last + 1)), resolve_device("auto")
    dtype = resolve_dtype("auto", device)
    manifest = Manifest.read(write_manifest(options.ravdess))
    checkpoint = encoders.resolve_encoder(str(options.weights / encoder), "audio")
    loaded = encoders.load_encoder(checkpoint, "audio", device=device, dtype=torch.float32)
    size = None
    if method in SIZED:
        blocks = find_blocks(loaded.model, encoders.count_layers(checkpoint))
        size = peft_methods.size_for_budget(loaded.model, blocks, layers, method=method, budget=options.budget)
    spec = AdaptationDataSpec(
        checkpoint=checkpoint,
        weights=checkpoint.digest(),
        blocks=(first - 1,),
        dtype=dtype,
        device=device,
        limits=DecoderLimits(),
    )
    cache = PLACE / "runs" / "frozen-layers"
    data = read_adaptation_data(manifest, spec, cache=cache, encoder=loaded, progress=no_progress)
    clips = {clip.clip: clip for clip in manifest.clips}
    labels = np.array([CLASSES.index(str(clips[name].label)) for name in data.names])
    actors = np.array([clips[name].speaker for name in data.names])
    usual = registry.load(peft_methods.PACKAGE, "PEFT method", method).RATE
    config = AdapterConfig(method=method, size=size, layers=layers, mask_weight=0.0)
    accelerator = make_accelerator(device, dtype)
    setup = prepare(
        loaded, data, labels, n_classes=len(CLASSES), config=config, from_frontend=False, accelerator=accelerator
    )
    training = [actor for actor in sorted(set(actors)) if actor not in held_out_actors(options.ravdess)]
    development = np.random.default_rng(1234).permutation(training)[:8].tolist()
    found: dict[str, list[float]] = {}
    for rate in (factor * usual for factor in RATE_FACTORS):
        setup = replace_config(setup, rate)
        for half in (development[:4], development[4:]):
            is_held_out = np.isin(actors, half)
            rows = np.flatnonzero(np.isin(actors, training) & ~is_held_out)
            split = AdapterSplit(name="rate", train=rows, held_out=np.flatnonzero(is_held_out))
            adapter = train_adapter(setup, split, lambda step: None)
            probes = FrozenProbes.fit(setup, [split])
            guesses = evaluate_adapter(setup, split, adapter, probes).head_logits.argmax(1)
            found.setdefault(f"{rate:g}", []).append(unweighted_accuracy(labels[split.held_out], guesses))
    return {"ua": found, "actors": development, "size": size}


def replace_config(setup: Any, rate: float) -> Any:
    from dataclasses import replace

    return replace(setup, config=replace(setup.config, learning_rate=rate))


def held_out_actors(ravdess: Path) -> set[str]:
    """Return the actors of the first fold."""
    with open(ravdess / "emobox_folds.csv", newline="", encoding="utf-8") as file:
        files = {row["file"] for row in csv.DictReader(file) if (row["fold"], row["split"]) == ("1", "test")}
    with open(ravdess / "labels.csv", newline="", encoding="utf-8") as file:
        return {row["speaker"] for row in csv.DictReader(file) if row["file"] in files}


@contextmanager
def no_progress(*_: str) -> Iterator[Callable[..., None]]:
    yield lambda *_: None


# ---------------------------------------------------------------- MOSI


def measure_mosi(options: argparse.Namespace) -> dict[str, Any]:
    """Fuse MiniLM's features of the transcripts with MOSI's own audio and video features."""
    import mosi

    from mertool.significance import paired_test, score_json
    from mertool.store import FeatureStore

    with np.load(options.mosi / "mosi_bclstm.npz", allow_pickle=False) as file:
        texts, videos, numbers = file["transcript"], file["video_id"], file["utt_no"]
        order = np.argsort(file["split"] != "train", kind="stable")
    names = [f"u{row:04d}" for row in range(len(texts))]
    manifest, store = PLACE / "mosi.csv", PLACE / "mosi-text.h5"
    with open(manifest, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["clip", "path", "text"])
        writer.writerows([name, "", str(text)] for name, text in zip(names, texts, strict=True))
    command = mertool(
        "extract", "text", manifest, "-o", store, "--encoder", options.weights / "minilm-l6", "--layers", "last", "-q"
    )
    with FeatureStore(store) as features:
        has_text = [name for name in names if name in features.index]
        minilm = np.zeros((len(names), features.read(has_text[:1]).shape[-1]), np.float32)
        minilm[[names.index(name) for name in has_text]] = features.read(has_text).reshape(len(has_text), -1)
    corpus = mosi.read_corpus(options.mosi)
    corpus.parts["minilm"] = minilm[order]
    corpus.parts["minilm-context"] = mosi.surround(minilm, videos, numbers)[order]
    truth, test_videos = corpus.labels[corpus.train :], corpus.videos[corpus.train :]
    context = ["minilm-context", "audio-context", "video-context"]
    systems = {
        "minilm": ["minilm"],
        "minilm + audio + video": ["minilm", "audio", "video"],
        "minilm, with context": ["minilm", context[0]],
        "all three, with context": ["minilm", "audio", "video", *context],
    }
    guesses = {name: mosi.run(corpus, parts, "attention", options.mosi_seeds) for name, parts in systems.items()}
    found: dict[str, Any] = {"command": command, "systems": {}}
    for name, predicted in guesses.items():
        text = guesses["minilm, with context" if "context" in name else "minilm"]
        found["systems"][name] = {
            "accuracy": score_json(truth, predicted, 2, groups=test_videos)["accuracy"],
            "deviation": float((predicted == truth).mean(1).std(ddof=1)),
            "gain_over_text": None
            if predicted is text
            else paired_test(truth, text[0], predicted[0], n_classes=2, groups=test_videos),
        }
    return found


# ---------------------------------------------------------------- files and commands


def mertool(*words: Any) -> str:
    """Run a command of mertool, and return it as text."""
    command = ["mertool", *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", *command], env=environment, text=True, stderr=subprocess.PIPE, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr}")
    return " ".join(command)


def write_manifest(ravdess: Path) -> Path:
    """Return clips.csv of the whole corpus, written once."""
    path = PLACE / "ravdess.csv"
    if not path.exists():
        with open(ravdess / "labels.csv", newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["clip", "path", "label", "speaker", "split"])
            for row in rows:
                where = (ravdess / row["file"]).absolute()
                writer.writerow([Path(row["file"]).stem, where, row["label"], row["speaker"], "train"])
    return path


def frozen_store(encoder: str) -> Path:
    return PLACE / f"{encoder}.h5"


def probe_run(encoder: str) -> Path:
    return PLACE / "runs" / f"{encoder}-probe"


def layers_of(encoder: str, window: str) -> tuple[int, int]:
    """Return the window that the probe recommends, or as many layers at the end."""
    info = read_json(probe_run(encoder) / "run.json")
    first, last = info["window"]
    if window == "window":
        return first, last
    n_layers = max(map(int, read_json(probe_run(encoder) / "metrics.json")["layers"]))
    return n_layers - (last - first), n_layers


def guesses_of(file: Path) -> dict[str, int]:
    """Return the class index by clip of a file of predictions."""
    from mertool.predictions import Predictions

    predictions = Predictions.read(file)
    return dict(zip(predictions.clips, predictions.probabilities.argmax(1).tolist(), strict=True))


def read_json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


# ---------------------------------------------------------------- the table


def unweighted_accuracy(truth: np.ndarray, guesses: np.ndarray) -> float:
    return float(np.mean([(guesses[truth == label] == label).mean() for label in np.unique(truth)]))


def collect(options: argparse.Namespace) -> list[Row]:
    """Return a row for each system of the finished cells."""
    rows: list[Row] = []
    for encoder in ENCODERS:
        rows += probe_rows(encoder)
        rows += adapter_rows(encoder, options)
        rows += store_rows(encoder, options)
        rows += rate_rows(encoder)
    file = Cell("mosi", dict).file
    if file.exists():
        for name, system in read_json(file)["systems"].items():
            rows.append(Row(f"mosi/{name}", system["accuracy"]["value"], "accuracy", MOSI_PUBLISHED, system))
    return rows


def probe_rows(encoder: str) -> list[Row]:
    file = Cell(f"probe/{encoder}", dict).file
    if not file.exists():
        return []
    cell = read_json(file)
    rows = [
        Row(f"{encoder}/frozen, layer {layer}", score["value"], "UA", None, {"ua": score})
        for layer, score in cell["layers"].items()
    ]
    nested = cell["window"]["uar"]
    fields = {"ua": nested, "windows": cell["nested"], "command": cell["command"]}
    return [*rows, Row(f"{encoder}/frozen, nested window", nested["value"], "UA", None, fields)]


def adapter_rows(encoder: str, options: argparse.Namespace) -> list[Row]:
    """Return a row for each method and system: the mean of its seeds, against the frozen features of its window."""
    rows = []
    for window in ("window", "last"):
        tests: list[dict[str, Any]] = []
        for method in (*MAIN_METHODS, *OTHER_METHODS, "lora-masks"):
            cells = adapter_cells(encoder, method, window, options)
            if not cells:
                continue
            by_actor = {
                system: np.mean([accuracy_by_actor(cell["guesses"][system], options) for cell in cells], 0)
                for system in SYSTEMS
            }
            for system, values in by_actor.items():
                seeds = [accuracy_by_actor(cell["guesses"][system], options).mean() for cell in cells]
                fields = {"ua": interval_of(values), "seeds": seeds, "command": cells[0]["command"]}
                fields |= {name: cells[0][name] for name in ("trainable", "parameters", "size", "layers")}
                if system != "frozen":
                    fields["gain"] = compare(by_actor["frozen"], values)
                    tests.append(fields["gain"])
                name = f"{encoder}/{method}, layers {cells[0]['layers']}, {system}"
                rows.append(Row(name, float(values.mean()), "UA", float(by_actor["frozen"].mean()), fields))
        adjust(tests)
        rows += method_rows(encoder, window, options)
    return rows


def method_rows(encoder: str, window: str, options: argparse.Namespace) -> list[Row]:
    """Return the comparison of LoRA with each other method, on the seeds that both have."""
    rows = []
    for method in ("bottleneck", *OTHER_METHODS, "lora-masks"):
        pair = [adapter_cells(encoder, name, window, options) for name in (method, "lora")]
        n_seeds = min(map(len, pair))
        for system in SYSTEMS if n_seeds else ():
            values = [
                np.mean([accuracy_by_actor(cell["guesses"][system], options) for cell in cells[:n_seeds]], 0)
                for cells in pair
            ]
            if system != "frozen":
                fields = {"gain": compare(*values), "seeds": n_seeds}
                name = f"{encoder}/lora over {method}, layers {pair[0][0]['layers']}, {system}"
                rows.append(Row(name, float(values[1].mean()), "UA", float(values[0].mean()), fields))
    adjust([row.fields["gain"] for row in rows])
    return rows


def adapter_cells(encoder: str, method: str, window: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    names = [f"adapt/{encoder}/{method}/{window}/seed{seed}" for seed in range(options.seeds)]
    return [read_json(Cell(name, dict).file) for name in names if Cell(name, dict).file.exists()]


def store_rows(encoder: str, options: argparse.Namespace) -> list[Row]:
    rows = []
    for method in MAIN_METHODS:
        file = Cell(f"store/{encoder}/{method}", dict).file
        if not file.exists():
            continue
        cell = read_json(file)
        for pool, layers in cell["probe"].items():
            for layer, score in layers.items():
                name = f"{encoder}/{method}, store, {pool}, layer {layer}"
                rows.append(Row(name, score["value"], "UA", None, {"ua": score, "command": cell["command"]}))
        fused = {name: accuracy_by_actor(guesses, options) for name, guesses in cell["fuse"].items()}
        tests = []
        for name, values in fused.items():
            fields: dict[str, Any] = {"ua": interval_of(values)}
            if name != "frozen, mean":
                fields["gain"] = compare(fused["frozen, mean"], values)
                tests.append(fields["gain"])
            base = float(fused["frozen, mean"].mean())
            rows.append(Row(f"{encoder}/{method}, fuse {name}", float(values.mean()), "UA", base, fields))
        adjust(tests)
    return rows


def rate_rows(encoder: str) -> list[Row]:
    rows = []
    for method in (*MAIN_METHODS, *OTHER_METHODS):
        file = Cell(f"rate/{encoder}/{method}", dict).file
        if file.exists():
            for rate, values in read_json(file)["ua"].items():
                name = f"{encoder}/{method}, rate {rate}, development actors"
                rows.append(Row(name, float(np.mean(values)), "UA", None, {"halves": values}))
    return rows


def accuracy_by_actor(guesses: dict[str, int], options: argparse.Namespace) -> np.ndarray:
    """Return the UA (A,) of each actor."""
    with open(write_manifest(options.ravdess), newline="", encoding="utf-8") as file:
        clips = {row["clip"]: row for row in csv.DictReader(file)}
    names = [name for name in clips if name in guesses]
    truth = np.array([CLASSES.index(clips[name]["label"]) for name in names])
    actors = np.array([clips[name]["speaker"] for name in names])
    predicted = np.array([guesses[name] for name in names])
    return np.array(
        [unweighted_accuracy(truth[actors == actor], predicted[actors == actor]) for actor in np.unique(actors)]
    )


def interval_of(values: np.ndarray) -> dict[str, float]:
    """Return the mean over actors with its 95 % interval by t."""
    from scipy.stats import ttest_1samp

    low, high = ttest_1samp(values, 0).confidence_interval()
    return {"value": float(values.mean()), "low": float(low), "high": float(high)}


def compare(first: np.ndarray, second: np.ndarray) -> dict[str, float]:
    """Return the gain of the second over the first (A,), its interval, and the p of a sign-flip test over actors."""
    from scipy.stats import permutation_test

    difference = second - first
    test = permutation_test(
        (difference,), np.mean, permutation_type="samples", n_resamples=99_999, rng=np.random.default_rng(0)
    )
    return {**interval_of(difference), "p": float(test.pvalue)}


def adjust(tests: list[dict[str, Any]]) -> None:
    from mertool.significance import adjust_by_holm

    adjust_by_holm(tests)


def show(rows: list[Row]) -> None:
    """Print the table as Markdown, for docs/claims.md."""
    print("| system | score | seeds | gain | p (Holm) |")
    print("|---|---|---|---|---|")
    for row in rows:
        score = row.fields.get("ua") or row.fields.get("accuracy") or {"value": row.value}
        gain = row.fields.get("gain") or row.fields.get("gain_over_text")
        seeds = row.fields.get("seeds")
        cells = [row.name, per_cent(score), str(len(seeds) if isinstance(seeds, list) else seeds or "")]
        cells += [
            per_cent({"value": gain["difference"], **gain} if "difference" in gain else gain, "+") if gain else ""
        ]
        cells += [f"{gain['p']:.3f} ({gain.get('p_holm', gain['p']):.3f})" if gain else ""]
        print("| " + " | ".join(cells) + " |")


def per_cent(score: dict[str, Any], sign: str = "") -> str:
    value = f"{100 * score['value']:{sign}.1f}"
    if score.get("low") is None:
        return value
    return f"{value} [{100 * score['low']:{sign}.1f}, {100 * score['high']:{sign}.1f}]"


def parse() -> argparse.Namespace:
    def place(name: str) -> Path:
        return Path(os.environ.get(name, name.lower()))

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ravdess", type=Path, default=place("RAVDESS"), help="or the environment variable RAVDESS")
    parser.add_argument("--mosi", type=Path, default=place("MOSI"), help="or MOSI")
    parser.add_argument("--weights", type=Path, default=place("WEIGHTS"), help="or WEIGHTS")
    parser.add_argument("--only", nargs="+", default=[""], help="beginnings of the names of cells")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--mosi-seeds", type=int, default=5)
    parser.add_argument("--budget", type=int, default=230_000, help="trainable parameters of methods with a size")
    parser.add_argument("--table", action="store_true", help="collect the finished cells and measure none")
    parser.add_argument("--output", type=Path, default=RESULT)
    return parser.parse_args()


if __name__ == "__main__":
    main()
