"""Confidence intervals of scores, and paired tests between two systems, over clips or over speakers.

Clips of one speaker resemble each other, so the units of both are speakers wherever all speakers are known:

- Standard errors are those of the delete-one jackknife (Miller, 1974; as CR3 of Cameron and Miller, 2015), quantiles
  those of t. The degrees of freedom are Kish's effective number of units less one, because a few large speakers carry
  less information than as many equal ones. Percentile bootstraps over speakers cover 85 % instead of 95 % with six.
- The interval of a score is that of Wilson (1927) for the number of clips that has this standard error, as is usual for
  shares in clustered samples (Franco, Little, Louis and Slud, 2019). An interval of value plus and minus the same width
  would cover 48 % instead of 95 % where 20 clips have an accuracy of 97 %. That of a difference is symmetric.
- The p of a difference is that of a sign-flip test: under the null hypothesis the predictions of the two systems may be
  exchanged within any unit. All exchanges are enumerated up to MAX_EXACT_UNITS speakers, else drawn at random.
- Below MIN_SPEAKERS speakers there is no interval: the spread between so few speakers cannot be estimated.
- `mcnemar` compares two systems by clip. It is valid only for clips that are independent, so not where speakers are
  known to have said several.
- `holm` adjusts the p of several comparisons.

`docs/scores.md` has the coverage and the rejection rates in simulations of speakers of unequal size, and the command.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mertool.metrics import scores_from_confusion

LEVEL = 0.95
MIN_SPEAKERS = 5
MAX_EXACT_UNITS = 16
DRAWS = 10_000  # of exchanges, where they are not enumerated
NO_SPREAD = 1e-9  # standard errors below are zero but for rounding
SCORES = ("waf", "accuracy", "uar", "macro_f1")


@dataclass(frozen=True)
class Interval:
    """A score with its 95 % confidence interval; the bounds are None where there is none."""

    value: float
    low: float | None
    high: float | None

    def to_json(self) -> dict[str, float | None]:
        """Return the three numbers as metrics.json holds them."""
        return {"value": self.value, "low": self.low, "high": self.high}


@dataclass(frozen=True, kw_only=True)
class Units:
    """Tables of counts of the units, which are clips or speakers; equal clips are one row.

    Attributes:
        tables: Counts (U, ...) of each kind of unit.
        repeats: How often (U,) each kind occurs; 1 for speakers.
        are_speakers: False if the units are clips.
    """

    tables: np.ndarray
    repeats: np.ndarray
    are_speakers: bool

    @classmethod
    def count(cls, cells: np.ndarray, n_cells: int, groups: np.ndarray | None) -> "Units":
        """Count cells (S, N), 0 to n_cells - 1, of N clips in S repetitions, by clip or by `groups` (N,)."""
        n_repetitions = len(cells)
        if groups is None:
            kinds, repeats = np.unique(cells, axis=1, return_counts=True)
            unit_of, cells = np.arange(kinds.shape[1]), kinds
        else:
            names, unit_of = np.unique(groups, return_inverse=True)
            repeats = np.ones(len(names), np.int64)
        flat = (unit_of * n_repetitions + np.arange(n_repetitions)[:, None]) * n_cells + cells
        tables = np.bincount(flat.ravel(), minlength=len(repeats) * n_repetitions * n_cells)
        return cls(
            tables=tables.reshape(len(repeats), n_repetitions, n_cells),
            repeats=repeats,
            are_speakers=groups is not None,
        )

    @property
    def total(self) -> np.ndarray:
        """Counts (...) of all units."""
        return np.tensordot(self.repeats, self.tables, 1)

    @property
    def have_intervals(self) -> bool:
        """False if there are too few units for an interval."""
        return bool(self.repeats.sum() >= (MIN_SPEAKERS if self.are_speakers else 2))

    def score_intervals(self, statistic: Callable[[np.ndarray], np.ndarray]) -> list[Interval]:
        """Return the interval of each score (K,), 0 to 1, that `statistic` computes from counts (..., S, n_cells)."""
        values = statistic(self.total)
        if not self.have_intervals:
            return [Interval(float(value), None, None) for value in values]
        errors, quantile = self.standard_errors(statistic), self._t_quantile()
        # A score that is the same whichever unit is left out (all right, say) tells as much as one clip of each unit.
        n_effective = np.full_like(errors, self.repeats.sum())
        np.divide(values * (1 - values), errors**2, out=n_effective, where=errors > NO_SPREAD)
        shrinkage = 1 / (1 + quantile**2 / n_effective)
        centres = shrinkage * (values + quantile**2 / (2 * n_effective))
        variances = values * (1 - values) / n_effective + (quantile / (2 * n_effective)) ** 2
        half_widths = shrinkage * quantile * np.sqrt(variances)
        lows, highs = np.maximum(0, centres - half_widths), np.minimum(1, centres + half_widths)
        return [Interval(*map(float, bounds)) for bounds in zip(values, lows, highs, strict=True)]

    def difference_interval(self, statistic: Callable[[np.ndarray], np.ndarray]) -> Interval:
        """Return the interval of the difference that `statistic` computes from counts (..., S, n_cells)."""
        value = float(statistic(self.total))
        if not self.have_intervals:
            return Interval(value, None, None)
        (error,) = self.standard_errors(lambda counts: statistic(counts)[..., None])
        half_width = self._t_quantile() * float(error)
        return Interval(value, value - half_width, value + half_width)

    def standard_errors(self, statistic: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """Return the standard errors (K,) of the delete-one jackknife; 0 for a single unit."""
        n_units = self.repeats.sum()
        left_out = statistic(self.total - self.tables)
        mean = np.average(left_out, axis=0, weights=self.repeats)
        squares = np.tensordot(self.repeats, np.square(left_out - mean), 1)
        return np.sqrt((n_units - 1) / n_units * squares)

    def _t_quantile(self) -> float:
        from scipy.stats import t

        sizes = self.tables.reshape(len(self.tables), -1).sum(1)
        effective = (self.repeats @ sizes) ** 2 / (self.repeats @ sizes**2)
        return float(t.ppf((1 + LEVEL) / 2, max(1.0, effective - 1)))


def known_speakers(speakers: Sequence[str | None]) -> np.ndarray | None:
    """Return the speaker (N,) of each clip if all are known and there are at least two, else None: clips are the units.

    Clips of a single speaker are a sample of that speaker's clips.
    """
    return np.array(speakers) if all(speakers) and len(set(speakers)) > 1 else None


def score(
    truth: np.ndarray, predicted: np.ndarray, n_classes: int, *, groups: np.ndarray | None = None
) -> dict[str, Interval]:
    """Return WAF, accuracy, UAR and macro F1 with intervals over clips, or over the speakers `groups` (N,).

    `predicted` is (N,), or (S, N) of S repetitions: then of the mean of their scores.
    """
    units = Units.count(truth * n_classes + np.atleast_2d(predicted), n_classes**2, groups)

    def statistic(counts: np.ndarray) -> np.ndarray:
        scores = scores_from_confusion(counts.reshape(*counts.shape[:-1], n_classes, n_classes))
        return np.stack([scores[name].mean(-1) for name in SCORES], axis=-1)

    return dict(zip(SCORES, units.score_intervals(statistic), strict=True))


def score_json(
    truth: np.ndarray, predicted: np.ndarray, n_classes: int, *, groups: np.ndarray | None = None
) -> dict[str, dict[str, float | None]]:
    """Return `score` in the form that metrics.json holds."""
    return {name: interval.to_json() for name, interval in score(truth, predicted, n_classes, groups=groups).items()}


def paired_test(
    truth: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    *,
    n_classes: int,
    groups: np.ndarray | None = None,
) -> dict[str, Any]:
    """Return the WAF of `second` minus that of `first`, its interval, and the two-sided p of a sign-flip test.

    Predicted classes are (N,). `p` is the mid-p (Lancaster, 1961) where all exchanges are enumerated for MIN_SPEAKERS
    speakers or more: the plain p of six speakers rejects 3 % of true null hypotheses at 5 %, because it has few values,
    and the mid-p 6 %. With fewer speakers it is the plain p, which cannot be below 2 / 2^speakers.
    """
    units = _paired_units(truth, first, second, n_classes=n_classes, groups=groups)
    interval = _difference_interval(units, n_classes)
    return {
        "difference": interval.value,
        "low": interval.low,
        "high": interval.high,
        "p": _sign_flip_p(units, n_classes),
        "units": int(units.repeats.sum()),
        "unit": "speakers" if units.are_speakers else "clips",
    }


def paired_interval(
    truth: np.ndarray, first: np.ndarray, second: np.ndarray, *, n_classes: int, groups: np.ndarray | None = None
) -> Interval:
    """Return the WAF of `second` minus that of `first`, with its interval."""
    return _difference_interval(_paired_units(truth, first, second, n_classes=n_classes, groups=groups), n_classes)


def difference_errors(
    truth: np.ndarray, predicted: np.ndarray, best: int, *, n_classes: int, groups: np.ndarray | None
) -> np.ndarray:
    """Return the standard error (L,) of how much system `best` of L beats each system in WAF, on the same clips.

    `predicted` (S, L, N) are classes in S repetitions, over which WAF is averaged. The units are the speakers `groups`
    (N,) if there are MIN_SPEAKERS or more, otherwise clips.
    """
    if groups is not None and len(np.unique(groups)) < MIN_SPEAKERS:
        groups = None
    n_repetitions = len(predicted)

    def difference(counts: np.ndarray) -> np.ndarray:
        waf = scores_from_confusion(counts.reshape(*counts.shape[:-1], n_classes, n_classes))["waf"]
        return (waf[..., :n_repetitions] - waf[..., n_repetitions:]).mean(-1, keepdims=True)

    errors = []
    for other in range(predicted.shape[1]):
        # One pair of systems at a time, because the counts of all of them by clip would take gigabytes.
        pair = np.concatenate([predicted[:, best], predicted[:, other]])
        units = Units.count(truth * n_classes + pair, n_classes**2, groups)
        errors.append(float(units.standard_errors(difference)[0]))
    return np.array(errors)


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


def _paired_units(
    truth: np.ndarray, first: np.ndarray, second: np.ndarray, *, n_classes: int, groups: np.ndarray | None
) -> Units:
    """Count the confusions of both systems (U, 2, n_classes^2) by unit."""
    return Units.count(truth * n_classes + np.stack([first, second]), n_classes**2, groups)


def _waf_difference(counts: np.ndarray, n_classes: int) -> np.ndarray:
    """Return the WAF of the second system minus that of the first (...) of counts (..., 2, n_classes^2)."""
    waf = scores_from_confusion(counts.reshape(*counts.shape[:-1], n_classes, n_classes))["waf"]
    return waf[..., 1] - waf[..., 0]


def _difference_interval(units: Units, n_classes: int) -> Interval:
    return units.difference_interval(lambda counts: _waf_difference(counts, n_classes))


def _sign_flip_p(units: Units, n_classes: int) -> float:
    """Return the two-sided p of a difference under exchanges of the two systems within units."""
    # Counts change by this much when the two systems are exchanged in a unit.
    change = (units.tables[:, ::-1] - units.tables).astype(float)
    total = units.total
    observed = abs(float(_waf_difference(total, n_classes)))
    if observed == 0:
        return 1.0
    n_units = int(units.repeats.sum())
    exact = units.are_speakers and n_units <= MAX_EXACT_UNITS
    at_least = equal = n_draws = 0
    for exchanges in _enumerate_exchanges(n_units) if exact else _draw_exchanges(units.repeats):
        values = np.abs(_waf_difference(total + np.tensordot(exchanges.astype(float), change, 1), n_classes))
        # Sums of the same numbers in another order differ by rounding.
        at_least += int(np.sum(values >= observed - 1e-12))
        equal += int(np.sum(np.abs(values - observed) <= 1e-12))
        n_draws += len(values)
    if not exact:
        # Add-one: with finitely many draws a p of exactly zero cannot be claimed.
        return (at_least + 1) / (n_draws + 1)
    return (at_least - (equal / 2 if n_units >= MIN_SPEAKERS else 0)) / n_draws


def _enumerate_exchanges(n_units: int) -> list[np.ndarray]:
    """Return all patterns (B, n_units) of exchanged units, in blocks; those of the first unit are left out.

    Exchanging all units at once only turns the sign, so half of the patterns has the absolute values of the other half.
    """
    patterns = np.arange(2 ** (n_units - 1))[:, None] >> np.arange(n_units) & 1
    return np.array_split(patterns, -(-len(patterns) // 2048))


def _draw_exchanges(repeats: np.ndarray) -> list[np.ndarray]:
    """Return DRAWS random numbers of exchanged units (B, U) of each kind, in blocks."""
    random = np.random.default_rng(0)
    return [random.binomial(repeats, 0.5, (1000, len(repeats))) for _ in range(DRAWS // 1000)]
