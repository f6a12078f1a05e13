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
With `--sentiment` the same systems without context predict `sentiment`, a number from -3 to 3, and their scores are
printed; of the predictions of all seeds their mean is scored.
Writes build/bench/mosi.json.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from report import ROOT, Row, publish, say

from mertool.cli.console import format_score
from mertool.cli.scores import TITLES, format_named_gain, score_cells
from mertool.fusion.cross_validation import EnsembleConfig, train_ensemble
from mertool.fusion.ensemble_weights import fold_logits
from mertool.fusion.hyperparameters import Trial
from mertool.fusion.modality_features import FusionData, ModalityFeatures
from mertool.learning.folds import make_folds
from mertool.learning.labelled_clips import LabelledClips
from mertool.significance import paired_test, score
from mertool.targets import Classes, Number, Target

RESULT = ROOT / "build" / "bench" / "mosi.json"
MODALITIES = ("text", "audio", "video")
PUBLISHED = {"contextual": 0.803, "majority": 0.621}
FOLDS, DECAY = 5, 0.7


@dataclass(frozen=True)
class Corpus:
    """Parts by name (N, D), training utterances first; labels, sentiment and video of each, and where tests begin."""

    parts: dict[str, np.ndarray]
    labels: np.ndarray
    sentiment: np.ndarray
    videos: np.ndarray
    train: int


def main() -> None:
    options = parse()
    corpus = read_corpus(options.mosi)
    if options.sentiment:
        show_sentiment(corpus, options.heads, options.seeds)
        return
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
    labels, sentiment = data["label"][order].astype(np.int64), data["sentiment"][order].astype(np.float64)
    return Corpus(parts, labels, sentiment, data["video_id"][order], train)


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
    return predict(corpus, names, head, seeds=seeds, target=Classes(("negative", "not")), labels=corpus.labels)


def predict(
    corpus: Corpus, names: list[str], head: str, *, seeds: int, target: Target, labels: np.ndarray
) -> np.ndarray:
    """Predictions (S, N) of the test utterances, of a class or of a number."""
    train, videos = corpus.train, corpus.videos[: corpus.train]
    features = ModalityFeatures(
        [torch.from_numpy(corpus.parts[name][:, None]) for name in names],
        torch.ones(len(corpus.labels), len(names), dtype=torch.bool),
    )
    examples = LabelledClips(tuple(map(str, range(train))), labels[:train], tuple(videos.tolist()))
    trial = Trial(width=64, dropout=0.3, learning_rate=1e-3, epochs=20)
    guesses = []
    for seed in range(seeds):
        config = EnsembleConfig(head=head, classes=target.n_outputs, trial=trial, seeds=1, seed=seed)
        folds = make_folds(examples, FOLDS, seed)
        ensemble = train_ensemble(FusionData(features.rows(slice(0, train)), examples, folds), config)
        test = features.rows(slice(train, None))
        logits = fold_logits(ensemble.weights, test, folds=FOLDS, classes=target.n_outputs)
        guesses.append(target.decide(logits.mean(0)))
    return np.stack(guesses)


def show_sentiment(corpus: Corpus, heads: list[str], seeds: int) -> None:
    """The table of sentiment as Markdown, with intervals over test videos."""
    target = Number("sentiment")
    truth, videos = corpus.sentiment[corpus.train :], corpus.videos[corpus.train :]
    names = ("mae", "pearson", "ccc", "acc2_with_zero", "acc2_without_zero", "acc7")
    print("| system | " + " | ".join(TITLES[name] for name in names) + " | against text, MAE |")
    print("|---" * (len(names) + 2) + "|")
    systems = {name: ([name], "attention") for name in MODALITIES}
    systems |= {f"fusion/{head}": (list(MODALITIES), head) for head in heads}
    text = np.zeros(0)
    for name, (parts, head) in systems.items():
        numbers = predict(corpus, parts, head, seeds=seeds, target=target, labels=corpus.sentiment).mean(0)
        scores = target.measure.score_json(truth, numbers, groups=videos)
        text = numbers if name == "text" else text
        gain = target.measure.paired_test(truth, text, numbers, groups=videos, name="mae")
        cells = [name, *score_cells(scores, names), "" if name == "text" else format_named_gain("mae", gain)]
        print("| " + " | ".join(cells) + " |", flush=True)


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
    parser.add_argument("--sentiment", action="store_true", help="predict sentiment, a number, instead of two classes")
    return parser.parse_args()


if __name__ == "__main__":
    main()
