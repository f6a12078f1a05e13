"""Fusion on CMU-MOSI: each modality, all three, and with the utterances around, on the fixed split.

    python tests/bench/mosi.py MOSI

MOSI is a folder with mosi_bclstm.npz: the utterance features of Poria et al. (ACL 2017), text 100, audio 73, video 100
channels, `label` (1: sentiment >= 0), `split` (train, test; speakers apart), `video_id`, `utt_no`. Each system is
trained with five seeds: five folds of the training videos, one member a fold, the mean of their logits on the test
utterances. A row is the mean accuracy of the seeds with its 95 % interval over test videos; `deviation` is that
between seeds. Nothing is chosen on the test part. There are no cross-validated figures: the features were made by
networks that had learned the labels of the training part, on which any fold of it scores 98 %.

With context, each modality has a second part: of its video, the mean of all utterances and of those before and
after, the nearer the heavier (exponential weights), so that a head without memory sees what bc-LSTM sees.
Published, same features and split: bc-LSTM of all three 80.3 (Poria et al. 2017); majority class 62.1.
Writes build/bench/mosi.json.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from report import ROOT, Row, publish, say

from mertool.cli.console import format_score
from mertool.fusion.cross_validation import EnsembleConfig, train_ensemble
from mertool.fusion.ensemble_weights import fold_logits
from mertool.fusion.hyperparameters import Trial
from mertool.fusion.modality_features import FusionData, ModalityFeatures
from mertool.learning.folds import make_folds
from mertool.learning.labelled_clips import LabelledClips
from mertool.significance import paired_test, score

RESULT = ROOT / "build" / "bench" / "mosi.json"
MODALITIES = ("text", "audio", "video")
PUBLISHED = {"contextual": 0.803, "majority": 0.621}
FOLDS, DECAY = 5, 0.7


@dataclass(frozen=True)
class Corpus:
    """Parts by name (N, D), training utterances first; labels and video of each, number of training utterances."""

    parts: dict[str, np.ndarray]
    labels: np.ndarray
    videos: np.ndarray
    train: int


def main() -> None:
    options = parse()
    corpus = read_corpus(options.mosi)
    truth, videos = corpus.labels[corpus.train :], corpus.videos[corpus.train :]
    context = [f"{name}-context" for name in MODALITIES]
    systems = {name: ([name], "attention") for name in MODALITIES}
    systems |= {f"fusion/{head}": (list(MODALITIES), head) for head in options.heads}
    systems["text+context"] = (["text", context[0]], "attention")
    systems["fusion+context"] = ([*MODALITIES, *context], "attention")
    rows, guesses = [], {}
    for name, (parts, head) in systems.items():
        guesses[name] = test = run(corpus, parts, head, options.seeds)
        scores = score(truth, test, 2, groups=videos)
        baseline = PUBLISHED["contextual"] if "context" in name else PUBLISHED["majority"]
        each = (test == truth).mean(1)
        fields = {metric: value.to_json() for metric, value in scores.items()}
        fields |= {"deviation": float(each.std(ddof=1)), "seeds": each.tolist()}
        if name.startswith("fusion"):
            # Of the first seed's predictions: a paired test takes two systems, not ten.
            fields["gain_over_text"] = paired_test(truth, guesses["text"][0], test[0], n_classes=2, groups=videos)
        rows.append(Row(f"mosi/{name}", float(each.mean()), "accuracy", baseline, fields))
        say(f"{name}: test {format_score(scores['accuracy'].to_json())}, deviation {100 * each.std(ddof=1):.1f}")
    publish(rows, options.output, f"CMU-MOSI, binary accuracy, {options.seeds} seeds")
    show(rows)


def read_corpus(folder: Path) -> Corpus:
    """The npz, its training part first, with the parts of context."""
    with np.load(folder / "mosi_bclstm.npz", allow_pickle=False) as file:
        data = {name: file[name] for name in file.files}
    order = np.argsort(data["split"] != "train", kind="stable")
    parts = {name: data[name].astype(np.float32) for name in MODALITIES}
    parts |= {f"{name}-context": surround(parts[name], data["video_id"], data["utt_no"]) for name in MODALITIES}
    parts = {name: values[order] for name, values in parts.items()}
    train = int((data["split"] == "train").sum())
    return Corpus(parts, data["label"][order].astype(np.int64), data["video_id"][order], train)


def surround(values: np.ndarray, videos: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """(N, 3 D): weighted mean of a video's utterances before each, of those after it, and the mean of all."""
    found = np.zeros((len(values), 3 * values.shape[1]), np.float32)
    for video in np.unique(videos):
        rows = np.flatnonzero(videos == video)
        rows = rows[np.argsort(numbers[rows], kind="stable")]
        apart = np.arange(len(rows))[:, None] - np.arange(len(rows))
        weights = [np.where(side > 0, DECAY ** np.abs(apart), 0.0) for side in (apart, -apart)]
        weights.append(np.ones_like(weights[0]))
        means = [w @ values[rows] / np.maximum(w.sum(1, keepdims=True), 1e-9) for w in weights]
        found[rows] = np.concatenate(means, 1)
    return found


def run(corpus: Corpus, names: list[str], head: str, seeds: int) -> np.ndarray:
    """Guesses (S, N) of the test utterances."""
    train, videos = corpus.train, corpus.videos[: corpus.train]
    features = ModalityFeatures(
        [torch.from_numpy(corpus.parts[name][:, None]) for name in names],
        torch.ones(len(corpus.labels), len(names), dtype=torch.bool),
    )
    examples = LabelledClips(tuple(map(str, range(train))), corpus.labels[:train], tuple(videos.tolist()))
    trial = Trial(width=64, dropout=0.3, learning_rate=1e-3, epochs=20)
    guesses = []
    for seed in range(seeds):
        config = EnsembleConfig(head=head, classes=2, trial=trial, seeds=1, seed=seed)
        folds = make_folds(examples, FOLDS, seed)
        ensemble = train_ensemble(FusionData(features.rows(slice(0, train)), examples, folds), config)
        test = features.rows(slice(train, None))
        logits = fold_logits(ensemble.weights, test, folds=FOLDS, classes=2)
        guesses.append(logits.mean(0).argmax(1))
    return np.stack(guesses)


def show(rows: list[Row]) -> None:
    """The table as Markdown, for docs/benchmarks.md."""
    print("| system | test accuracy | between seeds | gain over text, weighted F1 |")
    print("|---|---|---|---|")
    for row in rows:
        gain, deviation = row.fields.get("gain_over_text"), 100 * row.fields["deviation"]
        cells = [row.name.removeprefix("mosi/"), interval(row.fields["accuracy"]), f"± {deviation:.1f}"]
        if gain:
            low, high = (f"{100 * gain[name]:+.1f}" for name in ("low", "high"))
            cells.append(f"{100 * gain['difference']:+.1f} [{low}, {high}], p = {gain['p']:.3f}")
        else:
            cells.append("")
        print("| " + " | ".join(cells) + " |")


def interval(found: dict[str, float]) -> str:
    return "{:.1f} [{:.1f}, {:.1f}]".format(*(100 * found[name] for name in ("value", "low", "high")))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("mosi", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    heads = ["attention", "attention-mertools", "concat", "gated", "low-rank", "late"]
    parser.add_argument("--heads", type=lambda text: text.split(","), default=heads)
    parser.add_argument("--output", type=Path, default=RESULT)
    return parser.parse_args()


if __name__ == "__main__":
    main()
