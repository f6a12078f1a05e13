"""Confidence intervals of scores, and paired tests between two systems, over clips or over speakers.

Clips of one speaker resemble each other, so the units of both are speakers wherever all speakers are known:

- Standard errors are those of the delete-one jackknife (Miller, 1974; as CR3 of Cameron and Miller, 2015), quantiles
  those of t. The degrees of freedom are Kish's effective number of units less one, because a few large speakers carry
  less information than as many equal ones. Percentile bootstraps over speakers cover 85 % instead of 95 % with six.
- The interval of a score is that of Wilson (1927) for the number of clips that has this standard error, as is usual for
  shares in clustered samples (Franco, Little, Louis and Slud, 2019). An interval of value plus and minus the same width
  would cover 48 % instead of 95 % where 20 clips have an accuracy of 97 %. That of a CCC or a Pearson correlation is
  symmetric in Fisher's z (Lin, 1989), that of a mean error in its logarithm, that of a difference as it is.
- The p of a difference is that of a sign-flip test: under the null hypothesis the predictions of the two systems may be
  exchanged within any unit. All exchanges are enumerated up to MAX_EXACT_UNITS speakers, else drawn at random.
- Below MIN_SPEAKERS speakers there is no interval: the spread between so few speakers cannot be estimated.
- `mcnemar` compares two systems by clip. It is valid only for clips that are independent, so not where speakers are
  known to have said several.
- `holm` adjusts the p of several comparisons.

`docs/scores.md` has the coverage and the rejection rates in simulations of speakers of unequal size, and the command.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mertool.metrics import SCORES, confusion_matrix, scores_from_confusion
from mertool.regression_metrics import (
    N_MOMENTS,
    SENTIMENT_SCORES,
    moments,
    scores_from_moments,
    scores_from_sentiment_counts,
    sentiment_counts,
)
from mertool.sampling_units import MIN_SPEAKERS, Interval, Kind, Units


class Measure(ABC):
    """The scores of a kind of predictions, each a function of sums over clips, with intervals and paired tests.

    Truth is (N,), predictions are (N,), or (S, N) of S repetitions: then scores are means over these. The units are
    clips, or the speakers `groups` (N,).

    Attributes:
        kinds: The scores, and the kind of each.
        main: The score that is compared and maximised.
    """

    kinds: Mapping[str, Kind]
    main: str

    @abstractmethod
    def units(self, truth: np.ndarray, predicted: np.ndarray, groups: np.ndarray | None) -> Units:
        """Return tables (U, S, K) for predictions (S, N)."""

    @abstractmethod
    def scores(self, tables: np.ndarray) -> dict[str, np.ndarray]:
        """Return the scores (...,) of tables (..., K)."""

    @abstractmethod
    def table(self, truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
        """Return the table (..., K) of all clips for truth and predictions that broadcast to (..., N)."""

    def main_score(self, truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
        """Return the main score (...,) for truth and predictions that broadcast to (..., N)."""
        return self.scores(self.table(truth, predicted))[self.main]

    def score(
        self, truth: np.ndarray, predicted: np.ndarray, *, groups: np.ndarray | None = None
    ) -> dict[str, Interval]:
        """Return all scores with intervals."""
        units = self.units(truth, np.atleast_2d(predicted), groups)

        def statistic(tables: np.ndarray) -> np.ndarray:
            scores = self.scores(tables)
            return np.stack([scores[name].mean(-1) for name in self.kinds], axis=-1)

        return dict(zip(self.kinds, units.score_intervals(statistic, tuple(self.kinds.values())), strict=True))

    def score_json(
        self, truth: np.ndarray, predicted: np.ndarray, *, groups: np.ndarray | None = None
    ) -> dict[str, dict[str, float | None]]:
        """Return `score` in the form that metrics.json holds."""
        return {name: interval.to_json() for name, interval in self.score(truth, predicted, groups=groups).items()}

    def paired_test(
        self,
        truth: np.ndarray,
        first: np.ndarray,
        second: np.ndarray,
        *,
        groups: np.ndarray | None = None,
        name: str | None = None,
    ) -> dict[str, Any]:
        """Return the score `name` (default: the main one) of `second` minus that of `first`, its interval, and p.

        `p` is the two-sided one of a sign-flip test: the mid-p (Lancaster, 1961) where all exchanges are enumerated for
        MIN_SPEAKERS speakers or more, since the plain p of six speakers rejects 3 % of true null hypotheses at 5 %,
        because it has few values, and the mid-p 6 %. With fewer speakers it is the plain p, which cannot be below
        2 / 2^speakers.
        """
        units = self.units(truth, np.stack([first, second]), groups)
        return units.paired_test(lambda tables: self._difference(tables, name or self.main))

    def paired_interval(
        self, truth: np.ndarray, first: np.ndarray, second: np.ndarray, *, groups: np.ndarray | None = None
    ) -> Interval:
        """Return the main score of `second` minus that of `first`, with its interval."""
        units = self.units(truth, np.stack([first, second]), groups)
        return units.difference_interval(lambda tables: self._difference(tables, self.main))

    def difference_errors(
        self, truth: np.ndarray, predicted: np.ndarray, best: int, *, groups: np.ndarray | None
    ) -> np.ndarray:
        """Return the standard error (L,) of how much system `best` of L beats each system, on the same clips.

        `predicted` is (S, L, N) in S repetitions, over which the main score is averaged. The units are the speakers
        `groups` (N,) if there are MIN_SPEAKERS or more, otherwise clips.
        """
        if groups is not None and len(np.unique(groups)) < MIN_SPEAKERS:
            groups = None
        n_repetitions = len(predicted)

        def difference(tables: np.ndarray) -> np.ndarray:
            scores = self.scores(tables)[self.main]
            return (scores[..., :n_repetitions] - scores[..., n_repetitions:]).mean(-1, keepdims=True)

        errors = []
        for other in range(predicted.shape[1]):
            # One pair of systems at a time, because the tables of all of them by clip would take gigabytes.
            units = self.units(truth, np.concatenate([predicted[:, best], predicted[:, other]]), groups)
            errors.append(float(units.standard_errors(difference)[0]))
        return np.array(errors)

    def _difference(self, tables: np.ndarray, name: str) -> np.ndarray:
        """Return the score of the second system minus that of the first (...,) of tables (..., 2, K)."""
        scores = self.scores(tables)[name]
        return scores[..., 1] - scores[..., 0]


@dataclass(frozen=True)
class ClassMeasure(Measure):
    """Scores of predicted class indices: WAF, accuracy, UAR and macro F1."""

    n_classes: int
    kinds = dict.fromkeys(SCORES, Kind.SHARE)
    main = "waf"

    def units(self, truth: np.ndarray, predicted: np.ndarray, groups: np.ndarray | None) -> Units:
        return Units.count(truth * self.n_classes + predicted, self.n_classes**2, groups)

    def table(self, truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
        matrix = confusion_matrix(truth, predicted, self.n_classes)
        return matrix.reshape(*matrix.shape[:-2], self.n_classes**2)

    def scores(self, tables: np.ndarray) -> dict[str, np.ndarray]:
        return scores_from_confusion(tables.reshape(*tables.shape[:-1], self.n_classes, self.n_classes))


class NumberMeasure(Measure):
    """Scores of predicted numbers: CCC, Pearson, MAE and MSE."""

    kinds: Mapping[str, Kind] = {
        "ccc": Kind.CORRELATION,
        "pearson": Kind.CORRELATION,
        "mae": Kind.ERROR,
        "mse": Kind.ERROR,
    }
    main = "ccc"

    def units(self, truth: np.ndarray, predicted: np.ndarray, groups: np.ndarray | None) -> Units:
        return Units.sum(self._values(truth, predicted), groups)

    def table(self, truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
        return self._values(truth, predicted).sum(-2)

    def scores(self, tables: np.ndarray) -> dict[str, np.ndarray]:
        return scores_from_moments(tables)

    def _values(self, truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
        """Return the values (..., N, K) of each clip that are summed."""
        return moments(truth, predicted)


class SentimentMeasure(NumberMeasure):
    """Scores of predicted sentiment from -3 to 3: those of a number, and Acc-2, F1, Acc-5 and Acc-7."""

    kinds: Mapping[str, Kind] = {**NumberMeasure.kinds, **dict.fromkeys(SENTIMENT_SCORES, Kind.SHARE)}

    def scores(self, tables: np.ndarray) -> dict[str, np.ndarray]:
        sentiment = scores_from_sentiment_counts(tables[..., N_MOMENTS:], tables[..., 0])
        return {**scores_from_moments(tables[..., :N_MOMENTS]), **sentiment}

    def _values(self, truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
        return np.concatenate([moments(truth, predicted), sentiment_counts(truth, predicted)], -1)


def known_speakers(speakers: Sequence[str | None]) -> np.ndarray | None:
    """Return the speaker (N,) of each clip if all are known and there are at least two, else None: clips are the units.

    Clips of a single speaker are a sample of that speaker's clips.
    """
    return np.array(speakers) if all(speakers) and len(set(speakers)) > 1 else None


def score(
    truth: np.ndarray, predicted: np.ndarray, n_classes: int, *, groups: np.ndarray | None = None
) -> dict[str, Interval]:
    """Return WAF, accuracy, UAR and macro F1 with intervals over clips, or over the speakers `groups` (N,)."""
    return ClassMeasure(n_classes).score(truth, predicted, groups=groups)


def score_json(
    truth: np.ndarray, predicted: np.ndarray, n_classes: int, *, groups: np.ndarray | None = None
) -> dict[str, dict[str, float | None]]:
    """Return `score` in the form that metrics.json holds."""
    return ClassMeasure(n_classes).score_json(truth, predicted, groups=groups)


def paired_test(
    truth: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    *,
    n_classes: int,
    groups: np.ndarray | None = None,
) -> dict[str, Any]:
    """Return the WAF of `second` minus that of `first`, its interval and p; see `Measure.paired_test`."""
    return ClassMeasure(n_classes).paired_test(truth, first, second, groups=groups)


def mcnemar(truth: np.ndarray, first: np.ndarray, second: np.ndarray) -> dict[str, float]:
    """Return the exact McNemar test: clips that only one of two systems gets right, and the two-sided binomial p."""
    from scipy.stats import binomtest

    only_first = int(np.sum((first == truth) & (second != truth)))
    only_second = int(np.sum((first != truth) & (second == truth)))
    differing = only_first + only_second
    p = binomtest(only_second, differing).pvalue if differing else 1.0
    return {"only_first": only_first, "only_second": only_second, "p": float(p)}


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Return the p of several comparisons, adjusted so that one wrong rejection among all is rare (Holm, 1979).

    >>> holm({"a": 0.01, "b": 0.04, "c": 0.03})
    {'a': 0.03, 'b': 0.06, 'c': 0.06}
    """
    adjusted, largest = {}, 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = largest
    return {name: adjusted[name] for name in p_values}


def adjust_by_holm(tests: Sequence[dict[str, Any]]) -> None:
    """Add `p_holm` to each of the `paired_test` results of one family; a single test needs none."""
    if len(tests) > 1:
        adjusted = holm({str(number): test["p"] for number, test in enumerate(tests)})
        for test, p in zip(tests, adjusted.values(), strict=True):
            test["p_holm"] = p
