"""What each option of training changes, by cross-validation on RAVDESS: defaults by evidence.

    python tests/bench/fuse_options.py ravdess

`ravdess` holds RAVDESS as FLAC with labels.csv (see tests/bench/acoustic.py). Three simple parts of the sound stand for
modalities: spectrum (mean and deviation of 64 log-mel bands), dynamics (the same of their
differences) and modulation (how fast the energy of 8 bands changes); none has been trained on labels. Six folds by
speaker, `--seeds` members per fold, `mertool fuse`'s defaults but for the one option; each row is the weighted F1
against them, `gain` the paired test over speakers, and `missing` the mean weighted F1 with each part withheld in
turn. Of so many rows, one in twenty is below p = 0.05 by chance: `--seed` makes other folds and members, to look again.
Writes build/bench/fuse-options.json.
"""

import argparse
import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import soundfile
import torch
from report import ROOT, Row, publish, say

from mertool import registry
from mertool.fuse import ensemble_config
from mertool.fusion.cross_validation import train_ensemble
from mertool.fusion.ensemble_weights import fold_logits
from mertool.fusion.modality_features import FusionData, ModalityFeatures
from mertool.learning.folds import make_folds
from mertool.learning.labelled_clips import LabelledClips
from mertool.metrics import confusion_matrix, scores_from_confusion
from mertool.options.fuse import FuseOptions
from mertool.significance import paired_test

RESULT = ROOT / "build" / "bench" / "fuse-options.json"
OPTIONS = {
    "modality-dropout-0": {"modality_dropout": 0.0},
    "modality-dropout-0.3": {"modality_dropout": 0.3},
    "label-smoothing-0": {"label_smoothing": 0.0},
    "label-smoothing-0.1": {"label_smoothing": 0.1},
    "label-smoothing-0.2": {"label_smoothing": 0.2},
    "class-weights": {"class_weights": True},
    "epochs-20": {"epochs": 20},
    "learning-rate-0.0003": {"learning_rate": 3e-4},
    **{head: {"head": head} for head in registry.choices("fusion.heads") if head != "attention"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description="What each option of training changes.")
    parser.add_argument("data", type=Path, help="folder of RAVDESS with labels.csv")
    parser.add_argument("--seeds", type=int, default=3, help="members per fold")
    parser.add_argument("--seed", type=int, default=0, help="of folds and members")
    parser.add_argument("--only", nargs="*", choices=sorted(OPTIONS), help="some options")
    parser.add_argument("--output", type=Path, default=RESULT, help="where the JSON goes")
    given = parser.parse_args()
    examples, classes, parts = read(given.data)
    present = torch.ones(len(examples), len(parts), dtype=torch.bool)
    features = ModalityFeatures([torch.from_numpy(values[:, None]) for values in parts], present)
    folds, speakers = make_folds(examples, 6, given.seed), np.array(examples.speakers)
    base = FuseOptions(classes=classes, seeds=given.seeds, seed=given.seed)

    def evaluate(options: FuseOptions) -> tuple[np.ndarray, float]:
        """Predicted class (N,) with all modalities, and mean weighted F1 with one modality withheld."""
        ensemble = train_ensemble(FusionData(features, examples, folds), ensemble_config(options))
        scores = []
        for modality in range(len(parts)):
            remaining = present.clone()
            remaining[:, modality] = False
            clips = ModalityFeatures(features.values, remaining)
            logits = fold_logits(ensemble.weights, clips, folds=folds.count, classes=len(classes))
            scores.append(waf(logits[folds.fold_of, np.arange(len(examples))].argmax(1)))
        return ensemble.held_out_logits.argmax(1), float(np.mean(scores))

    def waf(guess: np.ndarray) -> float:
        return float(scores_from_confusion(confusion_matrix(examples.labels, guess, len(classes)))["waf"])

    before, missing_before = evaluate(base)
    rows = []
    for name in given.only or OPTIONS:
        after, missing = evaluate(replace(base, **OPTIONS[name]))
        gain = paired_test(examples.labels, before, after, n_classes=len(classes), groups=speakers)
        say(
            f"{name}: {100 * waf(after):.1f} against {100 * waf(before):.1f}, p = {gain['p']:.3f}; "
            f"a part missing: {100 * missing:.1f} against {100 * missing_before:.1f}"
        )
        fields = {"gain": gain, "missing": missing, "missing_baseline": missing_before, "seeds": given.seeds}
        rows.append(Row(f"fuse-options/{name}", waf(after), "weighted F1", waf(before), fields))
    publish(rows, given.output, f"options of training on {len(examples)} clips")


def read(folder: Path) -> tuple[LabelledClips, tuple[str, ...], list[np.ndarray]]:
    """Clips, class names and the three parts (N, D)."""
    with open(folder / "labels.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    classes = tuple(sorted({row["label"] for row in rows}))
    labels = np.array([classes.index(row["label"]) for row in rows])
    examples = LabelledClips(tuple(row["file"] for row in rows), labels, tuple(row["speaker"] for row in rows))
    found = [describe(*soundfile.read(folder / row["file"], dtype="float32")) for row in rows]
    return examples, classes, [np.stack(part).astype(np.float32) for part in zip(*found, strict=True)]


def describe(wave: np.ndarray, rate: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Spectrum, dynamics and modulation, each (128,), of a clip."""
    size, hop = rate // 40, rate // 100
    starts = np.arange(0, len(wave) - size, hop)
    frames = wave[starts[:, None] + np.arange(size)] * np.hanning(size).astype(np.float32)
    power = np.square(np.abs(np.fft.rfft(frames, 512)))
    log = np.log(power @ bands(64, rate).T + 1e-8)
    change = np.diff(log, axis=0)
    broad = log.reshape(len(log), 8, 8).mean(-1)
    fast = np.abs(np.fft.rfft(broad - broad.mean(0), 512, axis=0))[1:65].reshape(16, 4, 8).mean(1)
    spectrum = np.concatenate([log.mean(0), log.std(0)])
    return spectrum, np.concatenate([np.abs(change).mean(0), change.std(0)]), np.log(fast + 1e-3).ravel()


def bands(count: int, rate: int) -> np.ndarray:
    """Triangular mel filters (count, 257)."""
    mel = np.linspace(0, 2595 * np.log10(1 + rate / 2 / 700), count + 2)
    edges = (700 * (10 ** (mel / 2595) - 1)) / rate * 512
    place = np.arange(257)
    rise = (place - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    fall = (edges[2:, None] - place) / (edges[2:] - edges[1:-1])[:, None]
    return np.clip(np.minimum(rise, fall), 0, None)


if __name__ == "__main__":
    main()
