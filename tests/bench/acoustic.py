"""Does adapting the best window of a HuBERT beat its frozen features, and come close to full fine-tuning?

    python tests/bench/acoustic.py RAVDESS

RAVDESS is a folder with the corpus as FLAC: labels.csv (file,label,speaker) and EmoBox's six actor-independent folds
(emobox_folds.csv). A small HuBERT is pre-trained on its audio, without labels (see pretrain.py). The audio of held-
out actors is included, so this is no estimate for an unknown corpus. Then, by mertool's own commands: layers are
probed; each method adapts the recommended window under one budget; all blocks are fine-tuned; the same model with
random weights is probed. Every clip is scored once, by a model that was not trained on its actor. The window was
chosen on all clips, which favours all adapted rows alike; `probe, nested` is free of that. UA is that of an adapted
encoder with its head; "of a probe" that of a new linear probe of the last adapted layer in the store that `extract
--adapter` makes, as later stages read it: each clip's features come from the adapter that held it out.

The loss is cross-entropy; MASKED adds the reconstruction of hidden frames. Adapters learn with ten times their usual
rates, which are for models whose hidden states are smaller: on development parts ten times is better (sum of the
bottleneck's best losses in the first three folds, four epochs: 4.79 with the usual rate, 4.72 with ten times).

Finished steps are kept in build/bench/acoustic and not repeated. Writes build/bench/acoustic.json.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pretrain
from report import ROOT, Row, publish, say

from mertool import registry
from mertool.adapters import methods as peft_methods

PLACE = ROOT / "build" / "bench" / "acoustic"
RESULT = ROOT / "build" / "bench" / "acoustic.json"
SIZED = ("bottleneck", "bottleneck-parallel", "lora", "dora", "prompt", "layer-adapters")
UNSIZED = ("ia3", "bitfit", "full")
EVERY = "full, every block"
MASKED = "bottleneck-with-masks"
FASTER = 10


def main() -> None:
    options = parse()
    PLACE.mkdir(parents=True, exist_ok=True)
    models = {"random": PLACE / "random", "hubert": PLACE / "hubert"}
    make_models(models, options)
    manifest = write_manifest(options.ravdess)
    folds = options.ravdess / "emobox_folds.csv"
    for name, model in models.items():
        store, run = PLACE / f"{name}.h5", PLACE / f"probe-{name}"
        mertool("extract", "audio", manifest, "-o", store, "--encoder", model, "-q")
        mertool("probe-layers", store, "-m", manifest, "-o", run, "--folds", folds, *CLASSES, "-q")
    common = ["--folds", folds, "--epochs", options.epochs, "--batch", 8, "-q", *CLASSES]
    every = ["--encoder", str(models["hubert"]), "--layers", "1-" + str(count_blocks(models["hubert"]))]
    # The longest first, so that no core is idle at the end.
    jobs = {EVERY: [*every, "--method", "full"]} | {method: plan(method, options) for method in options.methods}

    def train(name: str) -> Path:
        run = PLACE / f"run-{name.replace(', ', '-').replace(' ', '-')}"
        weight = 0.1 if name == MASKED else 0
        mertool("finetune", manifest, "-o", run, *jobs[name], "--mask-weight", weight, *common)
        store, (first, last) = run.with_suffix(".h5"), layers_of(run)
        arguments = ["--encoder", models["hubert"], "--adapter", run, "--layers", f"{first},{last}"]
        mertool("extract", "audio", manifest, "-o", store, *arguments, "-q")
        probe = PLACE / f"probe-{run.name}"
        mertool("probe-layers", store, "-m", manifest, "-o", probe, "--folds", folds, "--no-mlp", *CLASSES, "-q")
        say(f"trained and probed: {name}")
        return run

    with ThreadPoolExecutor(options.jobs) as pool:
        runs = dict(zip(jobs, pool.map(train, jobs), strict=True))
    rows = collect(runs)
    publish(rows, options.output, "RAVDESS, EmoBox's folds: unweighted accuracy (UA)")
    show(rows)


CLASSES = ("--classes", "neutral,calm,happy,sad,angry,fearful,disgust,surprised")


def mertool(*words: Any) -> None:
    """Run a command of mertool on one thread: several run side by side."""
    threads = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "mertool", *map(str, words)]
    done = subprocess.run(command, env={**os.environ, **threads}, text=True, stderr=subprocess.PIPE)
    if done.returncode:
        raise SystemExit(f"mertool {' '.join(command[3:])}: {done.stderr}")


def plan(method: str, options: argparse.Namespace) -> list[Any]:
    """Which layers one method adapts, how large it is, and how fast it learns."""
    method = "bottleneck" if method == MASKED else method
    budget = ["--budget", options.budget] if method in SIZED else []
    usual = registry.load(peft_methods.PACKAGE, "PEFT method", method).RATE
    rate = usual if method == "full" else FASTER * usual
    return ["--probe", PLACE / "probe-hubert", "--method", method, *budget, "--learning-rate", rate]


def make_models(models: dict[str, Path], options: argparse.Namespace) -> None:
    """Pre-train, unless that is done; and the same shape with random weights."""
    settings = pretrain.complete(pretrain.Options(minutes=options.minutes))
    if not (models["hubert"] / "model.safetensors").exists():
        waves = pretrain.read_waves(options.ravdess / "flac")
        pretrain.pretrain(list(waves.values()), models["hubert"], settings)
    if not models["random"].exists():
        import torch
        from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor

        torch.manual_seed(1)
        HubertModel(HubertConfig.from_pretrained(models["hubert"])).save_pretrained(models["random"])
        Wav2Vec2FeatureExtractor.from_pretrained(models["hubert"]).save_pretrained(models["random"])


def layers_of(run: Path) -> tuple[int, int]:
    """The first and the last layer that a run adapts."""
    layers = json.loads((run / "run.json").read_text())["layers"]
    return min(layers), max(layers)


def count_blocks(model: Path) -> int:
    return int(json.loads((model / "config.json").read_text())["num_hidden_layers"])


def write_manifest(corpus: Path) -> Path:
    """clips.csv of the whole corpus, without the silent edges of clips."""
    import soundfile

    with open(corpus / "labels.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    path = PLACE / "clips.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["clip", "path", "label", "speaker", "split", "start", "end"])
        for row in rows:
            where = os.path.relpath(corpus / row["file"], PLACE)
            wave, rate = soundfile.read(corpus / row["file"], dtype="float32")
            edges = [f"{sample / rate:.3f}" for sample in pretrain.speech_span(pretrain.normalise(wave))]
            writer.writerow([Path(row["file"]).stem, where, row["label"], row["speaker"], "train", *edges])
    return path


def collect(runs: dict[str, Path]) -> list[Row]:
    """A row per system: UA against that of the frozen features, with intervals and tests beside it."""
    metrics = {name: json.loads((run / "metrics.json").read_text()) for name, run in runs.items()}
    probes = {name: json.loads((PLACE / f"probe-{name}" / "metrics.json").read_text()) for name in ("random", "hubert")}
    frozen = next(scores for name, scores in metrics.items() if name != EVERY)["frozen"]
    base = frozen["uar"]["value"]
    window_end = str(max(layers_of(run)[1] for name, run in runs.items() if name != EVERY))
    rows = [
        make_row("random weights, probe, nested", probes["random"]["window"], base),
        make_row("frozen, probe, nested", probes["hubert"]["window"], base),
        make_row("frozen, last layer of the window", frozen, base, features=probes["hubert"]["layers"][window_end]),
    ]
    truth, guesses = read_guesses(runs)
    for name, scores in metrics.items():
        share = scores["trainable"] / scores["parameters"]
        extra = {"trainable": scores["trainable"], "share": share, "size": scores["size"], "layers": scores["layers"]}
        extra["waf_gain_over_frozen"] = scores["gains"]["adapted"]
        probe = json.loads((PLACE / f"probe-{runs[name].name}" / "metrics.json").read_text())
        extra["features"] = probe["layers"][str(layers_of(runs[name])[1])]
        if name != EVERY:
            extra["waf_gain_over_full"] = paired(truth, guesses[EVERY], guesses[name])
        rows.append(make_row(name, scores["adapted"], base, **extra))
    return rows


def make_row(name: str, scores: dict[str, Any], base: float, **extra: Any) -> Row:
    fields = {metric: scores[metric] for metric in ("uar", "waf", "accuracy")}
    return Row(f"acoustic/{name}", scores["uar"]["value"], "UA", base, {**fields, **extra})


def read_guesses(runs: dict[str, Path]) -> tuple[tuple[np.ndarray, np.ndarray], dict[str, np.ndarray]]:
    """True class and actor of every clip, and the predictions of each run."""
    from mertool.predictions import Predictions

    with open(PLACE / "clips.csv", newline="", encoding="utf-8") as file:
        rows = {row["clip"]: row for row in csv.DictReader(file)}
    guesses = {}
    for name, run in runs.items():
        predictions = Predictions.read(run / "held_out.csv")
        guesses[name] = predictions.probabilities.argmax(1)
    classes = list(predictions.classes)
    truth = np.array([classes.index(rows[clip]["label"]) for clip in predictions.clips])
    return (truth, np.array([rows[clip]["speaker"] for clip in predictions.clips])), guesses


def paired(truth: tuple[np.ndarray, np.ndarray], first: np.ndarray, second: np.ndarray) -> dict[str, float]:
    from mertool.significance import paired_test

    return paired_test(truth[0], first, second, n_classes=8, groups=truth[1])


def show(rows: list[Row]) -> None:
    """The table as Markdown, for docs/benchmarks.md."""
    gains = "gain in weighted F1 over frozen | over full, every block"
    print(f"| features | trainable | UA | of a probe | weighted F1 | {gains} |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        fields = row.fields
        trainable = f"{fields['trainable']:,} ({fields['share']:.1%})" if "trainable" in fields else ""
        probed = interval(fields["features"]["uar"]) if "features" in fields else ""
        name = row.name.removeprefix("acoustic/")
        cells = [name, trainable, interval(fields["uar"]), probed, interval(fields["waf"])]
        cells += [gain(fields.get(f"waf_gain_over_{baseline}")) for baseline in ("frozen", "full")]
        print("| " + " | ".join(cells) + " |")


def interval(score: dict[str, float]) -> str:
    return "{:.1f} [{:.1f}, {:.1f}]".format(*(100 * score[name] for name in ("value", "low", "high")))


def gain(comparison: dict[str, float] | None) -> str:
    if comparison is None:
        return ""
    low, high = (f"{100 * comparison[name]:+.1f}" for name in ("low", "high"))
    return f"{100 * comparison['difference']:+.1f} [{low}, {high}], p = {comparison['p']:.3f}"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("ravdess", type=Path)
    parser.add_argument("--minutes", type=float, default=22.0, help="of pre-training")
    parser.add_argument("--methods", type=lambda text: text.split(","), default=[*SIZED, *UNSIZED, MASKED])
    parser.add_argument("--budget", default="50k", help="trainable parameters of the methods that have a size")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="trainings side by side, a thread each")
    parser.add_argument("--output", type=Path, default=RESULT)
    return parser.parse_args()


if __name__ == "__main__":
    main()
