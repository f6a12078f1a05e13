"""Coverage of the intervals and rejection rate of the paired test over speakers, by simulation.

`python tests/bench/significance.py` prints the table of docs/scores.md, with `--numbers` that of numbers. Two
classifiers of six classes label clips of speakers of unequal size. Some speakers are easier than others, and the second
classifier is better for some and worse for others. Under the null hypothesis it is equally good on average.
"""

import argparse
import json
from functools import cache
from pathlib import Path

import numpy as np

from mertool.metrics import confusion_matrix, scores_from_confusion
from mertool.sampling_units import Interval
from mertool.significance import ClassMeasure, NumberMeasure, paired_test, score

N_CLASSES = 6
PRIOR = (0.25, 0.2, 0.2, 0.15, 0.12, 0.08)
GAIN = 0.35  # in the log odds of the second classifier, where the null hypothesis is false
NUMBER_GAIN = 0.3  # in the logarithm of the noise of the second prediction of numbers
EASE = 0.3  # mean log odds of being right
HIGH_EASE = 2.5  # of a corpus on which scores are above 90 %
MANY_SPEAKERS = 20_000  # so many give the true values
RESULT = Path("build/bench/significance.json")


def draw_clips(
    random: np.random.Generator, n_speakers: int, gain: float, *, mean_ease: float = EASE
) -> tuple[np.ndarray, ...]:
    """Return speakers, labels and the two predictions (N,) of clips of that many speakers."""
    sizes = np.exp(random.normal(3.4, 0.6, n_speakers)).round().astype(int).clip(8, 200)
    speakers = np.repeat(np.arange(n_speakers), sizes)
    labels = random.choice(N_CLASSES, len(speakers), p=PRIOR)
    ease, advantage = random.normal(mean_ease, 0.6, n_speakers), random.normal(gain, 0.4, n_speakers)
    difficulty = random.normal(0, 1, len(speakers))
    predictions = []
    for sign in (-1, 1):
        odds = ease[speakers] + sign * advantage[speakers] / 2
        # Both find the same clips difficult, but not exactly.
        noise = 0.8 * difficulty + 0.6 * random.normal(0, 1, len(speakers))
        is_right = noise < np.sqrt(np.pi / 8) * odds  # the normal and the logistic curve nearly agree at this scale
        other = labels + random.integers(1, N_CLASSES, len(speakers))
        confused = np.where(random.random(len(speakers)) < 0.4, 0, other)
        wrong = np.where(confused % N_CLASSES == labels, labels + 1, confused) % N_CLASSES
        predictions.append(np.where(is_right, labels, wrong))
    return speakers, labels, *predictions


@cache
def true_scores(gain: float, mean_ease: float = EASE) -> tuple[dict[str, float], float]:
    """Return the scores of the second classifier, and its gain in WAF, over very many speakers."""
    _, labels, *predictions = draw_clips(np.random.default_rng(1), MANY_SPEAKERS, gain, mean_ease=mean_ease)
    first, second = (scores_from_confusion(confusion_matrix(labels, row, N_CLASSES)) for row in predictions)
    return {name: float(value) for name, value in second.items()}, float(second["waf"] - first["waf"])


def rejection_rate(n_speakers: int, repetitions: int) -> float:
    """Return how often the paired test rejects a true null hypothesis at 5 %."""
    random = np.random.default_rng((0, n_speakers))
    rejected = 0
    for _ in range(repetitions):
        speakers, labels, first, second = draw_clips(random, n_speakers, 0.0)
        rejected += paired_test(labels, first, second, n_classes=N_CLASSES, groups=speakers)["p"] <= 0.05
    return rejected / repetitions


def coverage(n_speakers: int, repetitions: int) -> dict[str, float]:
    """Return how often the 95 % intervals of WAF, UAR and the gain in WAF hold the true value; also of a high UAR."""
    random = np.random.default_rng((1, n_speakers))
    scores, gain = true_scores(GAIN)
    high_scores, _ = true_scores(GAIN, HIGH_EASE)
    hits = dict.fromkeys(("waf", "uar", "difference", "high"), 0)
    for _ in range(repetitions):
        speakers, labels, first, second = draw_clips(random, n_speakers, GAIN)
        intervals = score(labels, second, N_CLASSES, groups=speakers)
        for name in ("waf", "uar"):
            hits[name] += contains(intervals[name], scores[name])
        interval = ClassMeasure(N_CLASSES).paired_interval(labels, first, second, groups=speakers)
        hits["difference"] += contains(interval, gain)
        speakers, labels, _, second = draw_clips(random, n_speakers, GAIN, mean_ease=HIGH_EASE)
        hits["high"] += contains(score(labels, second, N_CLASSES, groups=speakers)["uar"], high_scores["uar"])
    return {name: count / repetitions for name, count in hits.items()}


def draw_numbers(random: np.random.Generator, n_speakers: int, gain: float) -> tuple[np.ndarray, ...]:
    """Return speakers, numbers and two predictions (N,) of them; the second has less noise by `gain`.

    Speakers differ in their mean, in how well they are predicted, and in which prediction suits them.
    """
    sizes = np.exp(random.normal(3.4, 0.6, n_speakers)).round().astype(int).clip(8, 200)
    speakers = np.repeat(np.arange(n_speakers), sizes)
    truth = random.normal(0, 0.5, n_speakers)[speakers] + random.normal(0, 1, len(speakers))
    slope, shift = random.normal(0.6, 0.1, n_speakers), random.normal(0, 0.3, n_speakers)
    noise, advantage = random.uniform(0.5, 1.0, n_speakers), random.normal(gain, 0.15, n_speakers)
    common = random.normal(0, 1, len(speakers))
    predictions = []
    for sign in (-1, 1):
        own = 0.8 * common + 0.6 * random.normal(0, 1, len(speakers))
        spread = noise * np.exp(-sign * advantage / 2)
        predictions.append((slope[speakers] * truth + shift[speakers]) + spread[speakers] * own)
    return speakers, truth, *predictions


@cache
def true_number_scores(gain: float) -> tuple[dict[str, float], float]:
    """Return the scores of the second prediction of numbers, and its gain in CCC, over very many speakers."""
    _, truth, *predictions = draw_numbers(np.random.default_rng(1), MANY_SPEAKERS, gain)
    measure = NumberMeasure()
    first, second = (measure.scores(measure.table(truth, row)) for row in predictions)
    return {name: float(value) for name, value in second.items()}, float(second["ccc"] - first["ccc"])


def rejection_rate_of_numbers(n_speakers: int, repetitions: int) -> float:
    """Return how often the paired test of CCC rejects a true null hypothesis at 5 %."""
    random = np.random.default_rng((2, n_speakers))
    tests = (draw_numbers(random, n_speakers, 0.0) for _ in range(repetitions))
    return float(np.mean([NumberMeasure().paired_test(*drawn[1:], groups=drawn[0])["p"] <= 0.05 for drawn in tests]))


def coverage_of_numbers(n_speakers: int, repetitions: int) -> dict[str, float]:
    """Return how often the 95 % intervals of CCC, MAE, MSE and the gain in CCC hold the true value."""
    random = np.random.default_rng((3, n_speakers))
    scores, gain = true_number_scores(NUMBER_GAIN)
    hits = dict.fromkeys(("ccc", "mae", "mse", "difference"), 0)
    for _ in range(repetitions):
        speakers, truth, first, second = draw_numbers(random, n_speakers, NUMBER_GAIN)
        intervals = NumberMeasure().score(truth, second, groups=speakers)
        for name in ("ccc", "mae", "mse"):
            hits[name] += contains(intervals[name], scores[name])
        hits["difference"] += contains(NumberMeasure().paired_interval(truth, first, second, groups=speakers), gain)
    return {name: count / repetitions for name, count in hits.items()}


def contains(interval: Interval, value: float) -> bool:
    """Return True if the value lies in the interval."""
    assert interval.low is not None and interval.high is not None
    return interval.low <= value <= interval.high


def print_numbers(repetitions: int) -> None:
    """Print the table of numbers."""
    columns = ["rejected at 5 %, %", *(f"{name} covered, %" for name in ("CCC", "MAE", "MSE", "difference in CCC"))]
    print(f"| speakers | {' | '.join(columns)} |")
    print("|---|" + "---|" * len(columns))
    for count in (5, 6, 10, 16, 24):
        values = [rejection_rate_of_numbers(count, repetitions), *coverage_of_numbers(count, repetitions).values()]
        print(f"| {count} | " + " | ".join(f"{100 * value:.1f}" for value in values) + " |", flush=True)


def main() -> None:
    """Print the table, and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=1500, help="simulated corpora for each number of speakers")
    parser.add_argument("--output", type=Path, default=RESULT, help="where the JSON goes")
    parser.add_argument("--numbers", action="store_true", help="the table of numbers")
    options = parser.parse_args()
    if options.numbers:
        print_numbers(options.repetitions)
        return
    rows = {
        # The few values that p has with so few speakers make the rate vary more between simulations.
        count: {
            "rejected": rejection_rate(count, options.repetitions * (8 if count <= 6 else 1)),
            **coverage(count, options.repetitions),
        }
        for count in (5, 6, 10, 16, 24)
    }
    high = 100 * true_scores(GAIN, HIGH_EASE)[0]["uar"]
    covered = (f"{name} covered, %" for name in ("WAF", "UAR", "difference", f"UAR of {high:.0f} %"))
    columns = ["rejected at 5 %, %", *covered]
    print(f"| speakers | {' | '.join(columns)} |")
    print("|---|" + "---|" * len(columns))
    for count, row in rows.items():
        print(f"| {count} | " + " | ".join(f"{100 * value:.1f}" for value in row.values()) + " |")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(rows, indent=2) + "\n")
    print(f"written: {options.output}")


if __name__ == "__main__":
    main()
