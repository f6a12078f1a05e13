"""Does subtracting the mean offset of each fold's adapter leak labels or lower scores where folds differ in classes?

`python tests/bench/mean_shift.py` prints the tables of docs/finetune.md, and one for new clips. The features are made,
so the truth is known. As in `finetune`, adapters start from equal weights; the adapter of a fold is trained without it,
and `final` on all folds. Each adapter also shifts all features by a random vector. Its offset is the mean change of the
features by it, measured over different clips. A linear classifier is then scored on held-out folds, whose clips have
the adapter of their fold, and on new clips, which have `final`.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch

from mertool.metrics import confusion_matrix, scores_from_confusion
from mertool.probing.linear import ProbeTrainingSet, fit_probes

N_FOLDS, N_CLASSES, N_CHANNELS, WIDTH = 5, 4, 32, 32
N_CLIPS, N_NEW = 400, 1000
SEPARATION = 0.3  # standard deviation of the class means in a channel; that of the noise is 1
SPEAKER = 0.3  # standard deviation of the speakers in a channel
SHIFT = 1.0  # standard deviation of the random shift of an adapter in a channel
LEARNING_RATE = 1e-2
STEPS = {"little": 8, "much": 200}  # steps of training, by how much of the training clips is memorised
FOLDS = ("equal", "unequal", "one class")  # classes of the folds
RESULT = Path("build/bench/mean_shift.json")

# Features that are scored: the frozen ones, and adapted ones from which an offset was subtracted.
FEATURES = {
    "frozen": "frozen features",
    "none": "adapted, nothing subtracted, no shift",
    "shifted": "the same with a shift",
    "training": "mean over the training clips of the adapter (mertool)",
    "held-out": "mean over the clips that the adapter did not see",
    "oracle": "mean over the new clips",
    "leak": "a leak, for comparison: each clip by `final`, which was trained on its label",
}


@dataclass(frozen=True)
class Clips:
    """Features (N, D), labels (N,) and folds (N,) of clips; every fold is a speaker."""

    features: np.ndarray
    labels: np.ndarray
    fold_of: np.ndarray


def class_shares(folds: str, random: np.random.Generator) -> np.ndarray:
    """Return the shares of the classes in each fold (F, C).

    `equal`: a quarter each. `unequal`: from a Dirichlet distribution; the largest class of a fold has 56 % on average.
    `one class`: 91 % of fold 0 are class 0, which makes up 5 % of the others.
    """
    if folds == "equal":
        return np.full((N_FOLDS, N_CLASSES), 1 / N_CLASSES)
    if folds == "unequal":
        return random.dirichlet(np.full(N_CLASSES, 0.7), N_FOLDS)
    shares = np.full((N_FOLDS, N_CLASSES), 0.95 / (N_CLASSES - 1))
    shares[:, 0] = 0.05
    shares[0] = np.where(np.arange(N_CLASSES) == 0, 0.91, 0.09 / (N_CLASSES - 1))
    return shares


def make_clips(folds: str, *, informative: bool, seed: int) -> tuple[Clips, Clips]:
    """Return labelled and new clips; the features depend on the label only if `informative`.

    New clips are of another speaker, with all classes equally often.
    """
    random = np.random.default_rng(seed)
    mix = random.normal(0, 1, (N_CHANNELS, N_CHANNELS)) / np.sqrt(N_CHANNELS)
    centres = SEPARATION * informative * random.normal(0, 1, (N_CLASSES, N_CHANNELS))
    speakers = SPEAKER * random.normal(0, 1, (N_FOLDS + 1, N_CHANNELS))
    shares = np.vstack([class_shares(folds, random), np.full(N_CLASSES, 1 / N_CLASSES)])

    def draw(fold_of: np.ndarray) -> Clips:
        labels = np.array([random.choice(N_CLASSES, p=shares[fold]) for fold in fold_of])
        noise = random.normal(0, 1, (len(labels), N_CHANNELS)) @ mix
        return Clips(centres[labels] + speakers[fold_of] + noise, labels, fold_of)

    return draw(np.arange(N_CLIPS) % N_FOLDS), draw(np.full(N_NEW, N_FOLDS))


class Adapters(torch.nn.Module):
    """Bottleneck adapters with linear heads, A = F + 1: one for each fold, then `final`. All are trained at once."""

    def __init__(self, seed: int):
        super().__init__()
        down = torch.randn(N_CHANNELS, WIDTH, generator=torch.Generator().manual_seed(seed)) / np.sqrt(N_CHANNELS)
        count = N_FOLDS + 1
        self.down = torch.nn.Parameter(down.repeat(count, 1, 1))
        self.up = torch.nn.Parameter(torch.zeros(count, WIDTH, N_CHANNELS))
        self.head = torch.nn.Parameter(torch.zeros(count, N_CHANNELS, N_CLASSES))
        self.down_bias, self.up_bias, self.head_bias = (
            torch.nn.Parameter(torch.zeros(count, 1, size)) for size in (WIDTH, N_CHANNELS, N_CLASSES)
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return features (A, N, D) by every adapter, from features (N, D)."""
        return features + (features @ self.down + self.down_bias).relu() @ self.up + self.up_bias

    def train_on(self, clips: Clips, steps: int) -> float:
        """Train every adapter on the clips outside its fold; return the accuracy of their heads on these clips."""
        features, labels = torch.from_numpy(clips.features).float(), torch.from_numpy(clips.labels)
        optimizer = torch.optim.AdamW(self.parameters(), lr=LEARNING_RATE, weight_decay=1e-2)
        weights = torch.from_numpy(training_masks(clips)).float()
        weights /= weights.sum(1, keepdim=True)
        for _ in range(steps):
            logits = self(features) @ self.head + self.head_bias
            losses = torch.nn.functional.cross_entropy(logits.mT, labels.expand(len(logits), -1), reduction="none")
            optimizer.zero_grad()
            (losses * weights).sum().backward()
            optimizer.step()
        return float(((logits.argmax(-1) == labels) * weights).sum(1).mean())

    @torch.no_grad()
    def adapt(self, features: np.ndarray) -> np.ndarray:
        """Return features (A, N, D) by every adapter, from features (N, D)."""
        return self(torch.from_numpy(features).float()).double().numpy()


def training_masks(clips: Clips) -> np.ndarray:
    """Return the training clips of every adapter, a mask (A, N); those of the last, `final`, are all clips."""
    return clips.fold_of != np.arange(N_FOLDS + 1)[:, None]


def measure_offsets(change: np.ndarray, new_change: np.ndarray, clips: Clips) -> dict[str, np.ndarray]:
    """Return the offset (A, D) of every adapter, measured in several ways.

    They are means of the change of the features by each adapter: of the labelled clips (A, N, D), or of the new ones.
    `final` has no held-out clips; all labelled clips take their place.
    """
    is_training = training_masks(clips)
    is_held_out = ~is_training | is_training.all(1, keepdims=True)
    training, held_out = (
        np.stack([row[mask].mean(0) for row, mask in zip(change, masks, strict=True)])
        for masks in (is_training, is_held_out)
    )
    return {"none": np.zeros_like(training), "training": training, "held-out": held_out, "oracle": new_change.mean(1)}


def uar(labels: np.ndarray, logits: np.ndarray) -> float:
    """Return the unweighted average recall in per cent; by chance it is 25."""
    return 100 * float(scores_from_confusion(confusion_matrix(labels, logits.argmax(1), N_CLASSES))["uar"])


def classify(features: np.ndarray, new_features: np.ndarray, clips: Clips, new: Clips) -> list[tuple[float, float]]:
    """Return the UAR on held-out folds and on new clips for each of B kinds of features (B, N, D).

    Logits are adjusted to equal classes, as UAR weighs them: a fold with many clips of a class leaves few to train on.
    """
    rows = [np.flatnonzero(mask) for mask in training_masks(clips)]
    training_sets = [ProbeTrainingSet(rows=train, inner_folds=clips.fold_of[train]) for train in rows]
    values, new_values = torch.from_numpy(features).float(), torch.from_numpy(new_features).float()
    probes = fit_probes(values, torch.from_numpy(clips.labels), training_sets, n_classes=N_CLASSES)
    class_sizes = np.stack([np.bincount(clips.labels[train], minlength=N_CLASSES) for train in rows])
    log_prior = torch.from_numpy(np.log(np.maximum(class_sizes, 1))).float()
    logits = torch.stack([probes.logits(values, fold) - log_prior[fold] for fold in range(N_FOLDS)])
    held_out = logits[clips.fold_of, :, np.arange(N_CLIPS)].numpy()  # (N, B, C)
    new_logits = (probes.logits(new_values, N_FOLDS) - log_prior[N_FOLDS]).numpy()
    return [(uar(clips.labels, held_out[:, kind]), uar(new.labels, new_logits[kind])) for kind in range(len(values))]


def adapted_features(clips: Clips, new: Clips, adapters: Adapters, shifts: np.ndarray) -> dict[str, tuple]:
    """Return the features (N, D) of labelled and of new clips, by the way in which the offset was measured."""
    adapted, new_adapted = (adapters.adapt(group.features) + shifts[:, None] for group in (clips, new))
    offsets = measure_offsets(adapted - clips.features, new_adapted - new.features, clips)
    own = adapted[clips.fold_of, np.arange(N_CLIPS)]  # each clip by the adapter that did not see it
    features = {name: (own - offset[clips.fold_of], new_adapted[-1] - offset[-1]) for name, offset in offsets.items()}
    return {**features, "leak": (adapted[-1], new_adapted[-1])}


def run(folds: str, *, informative: bool, memorised: str, seed: int) -> tuple[float, dict[str, tuple[float, float]]]:
    """Return the training accuracy of the adapters, and both scores of all `FEATURES`, for one made corpus."""
    clips, new = make_clips(folds, informative=informative, seed=seed)
    adapters = Adapters(seed)
    accuracy = adapters.train_on(clips, STEPS[memorised])
    shifts = SHIFT * np.random.default_rng((seed, 1)).normal(0, 1, (N_FOLDS + 1, N_CHANNELS))
    # A measured offset contains the shift, so that subtracting it gives the same features for every shift.
    features = {"frozen": (clips.features, new.features), **adapted_features(clips, new, adapters, shifts)}
    features["shifted"] = features["none"]
    features["none"] = adapted_features(clips, new, adapters, np.zeros_like(shifts))["none"]
    labelled, unseen = (np.stack([features[name][part] for name in FEATURES]) for part in (0, 1))
    return accuracy, dict(zip(FEATURES, classify(labelled, unseen, clips, new), strict=True))


def simulate(repetitions: int) -> Iterator[dict]:
    """Yield the scores (repetitions,) of all features on held-out folds and on new clips, for one setting at a time."""
    for informative, folds, memorised in product((False, True), FOLDS, STEPS):
        runs = [run(folds, informative=informative, memorised=memorised, seed=seed) for seed in range(repetitions)]
        held_out, new = ({name: [row[name][part] for _, row in runs] for name in FEATURES} for part in (0, 1))
        accuracy = 100 * float(np.mean([accuracy for accuracy, _ in runs]))
        setting = {"informative": informative, "folds": folds, "memorised": memorised, "training_accuracy": accuracy}
        print(setting, file=sys.stderr, flush=True)
        yield {**setting, "held_out": held_out, "new": new}


def with_error(values: np.ndarray, form: str) -> str:
    """Return the mean of values and its standard error."""
    return f"{values.mean():{form}} ± {values.std(ddof=1) / np.sqrt(len(values)):.1f}"


def print_table(rows: list[dict], part: str) -> None:
    """Print the UAR of uninformative features, or that of `none` and paired differences from it."""
    columns = ["folds", "memorised", *FEATURES, "training - oracle"]
    print(f"\n| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for row in rows:
        values = {name: np.array(scores) for name, scores in row[part].items()}
        cells = {name: with_error(values[name], ".1f") for name in FEATURES}
        if row["informative"]:
            for name in FEATURES.keys() - {"none"}:
                cells[name] = with_error(values[name] - values["none"], "+.1f")
        # Both offsets are of the same adapters, but only one is measured over clips whose labels they were trained on.
        contrast = with_error(values["training"] - values["oracle"], "+.1f")
        memorised = f"{row['memorised']} ({row['training_accuracy']:.0f} %)"
        print(f"| {row['folds']} | {memorised} | {' | '.join(cells.values())} | {contrast} |")


def main() -> None:
    """Print the tables, and write the scores as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=20, help="made corpora for each setting, 2 or more")
    parser.add_argument("--output", type=Path, default=RESULT, help="where the JSON goes")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("UAR in per cent, chance is 25, of features by the way in which the offset of an adapter was measured:")
    print("\n".join(f"{name}: {text}" for name, text in FEATURES.items()))
    print("memorised: accuracy of the heads on the clips that they were trained on")
    rows = list(simulate(options.repetitions))
    for informative, part in ((False, "held_out"), (True, "held_out"), (True, "new")):
        kind = "informative features, differences from `none`" if informative else "uninformative features"
        print(f"\n{part.replace('_', '-')} clips, {kind}")
        print_table([row for row in rows if row["informative"] == informative], part)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    print(f"\nwritten: {options.output}")


if __name__ == "__main__":
    main()
