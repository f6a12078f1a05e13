"""The units of intervals and paired tests, clips or speakers, and the jackknife and sign-flip test over them.

A score is a function of sums over clips: counts of confusions for classes, moments for numbers. A unit is a table of
such sums, so that leaving a unit out is a subtraction, and exchanging two systems within a unit an exchange of tables.
`significance` says which intervals and tests these are.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np

LEVEL = 0.95
MIN_SPEAKERS = 5
MAX_EXACT_UNITS = 16
DRAWS = 10_000  # of exchanges, where they are not enumerated
MAX_BLOCK_VALUES = 1 << 24  # of drawn exchanges in memory at once
NO_SPREAD = 1e-9  # standard errors below are zero but for rounding
LARGEST_CORRELATION = 1 - 1e-9  # Fisher's z of 1 is infinite
SMALLEST_ERROR = 1e-12  # the logarithm of 0 is infinite

Statistic = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Interval:
    """A score with its 95 % confidence interval; the bounds are None where there is none."""

    value: float
    low: float | None
    high: float | None

    def to_json(self) -> dict[str, float | None]:
        """Return the three numbers as metrics.json holds them."""
        return {"value": self.value, "low": self.low, "high": self.high}


class Kind(Enum):
    """The kind of a score, on which its interval depends."""

    SHARE = "from 0 to 1"
    CORRELATION = "from -1 to 1"
    ERROR = "from 0 on"


@dataclass(frozen=True, kw_only=True)
class Units:
    """Tables of sums over the clips of each unit, which is a clip or a speaker; equal clips may be one row.

    Attributes:
        tables: Sums (U, S, K) of each kind of unit in S repetitions or systems.
        repeats: How often (U,) each kind occurs; 1 for speakers.
        sizes: Number of clips (U,) of each kind of unit.
        are_speakers: False if the units are clips.
    """

    tables: np.ndarray
    repeats: np.ndarray
    sizes: np.ndarray
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
            sizes=np.bincount(unit_of, minlength=len(repeats)),
            are_speakers=groups is not None,
        )

    @classmethod
    def sum(cls, values: np.ndarray, groups: np.ndarray | None) -> "Units":
        """Sum values (S, N, K) of N clips in S repetitions, by clip or by `groups` (N,)."""
        by_clip = values.swapaxes(0, 1)
        unit_of = np.arange(len(by_clip)) if groups is None else np.unique(groups, return_inverse=True)[1]
        sizes = np.bincount(unit_of)
        tables = by_clip
        if groups is not None:
            tables = np.zeros((len(sizes), *by_clip.shape[1:]))
            np.add.at(tables, unit_of, by_clip)
        return cls(tables=tables, repeats=np.ones_like(sizes), sizes=sizes, are_speakers=groups is not None)

    @property
    def total(self) -> np.ndarray:
        """Sums (...) over all units."""
        return np.tensordot(self.repeats, self.tables, 1)

    @property
    def n_units(self) -> int:
        """Number of units."""
        return int(self.repeats.sum())

    @property
    def have_intervals(self) -> bool:
        """False if there are too few units for an interval."""
        return self.n_units >= (MIN_SPEAKERS if self.are_speakers else 2)

    def score_intervals(self, statistic: Statistic, kinds: tuple[Kind, ...] | None = None) -> list[Interval]:
        """Return the interval of each score (K,) that `statistic` computes from tables (..., S, n); default: shares.

        For a share it is Wilson's. A correlation is transformed to Fisher's z, an error to its logarithm, and their
        intervals are symmetric there.
        """
        values = statistic(self.total)
        if not self.have_intervals:
            return [Interval(float(value), None, None) for value in values]
        kinds = kinds or (Kind.SHARE,) * len(values)
        left_out = statistic(self.total - self.tables)
        quantile = self._t_quantile()
        intervals = []
        for position, (value, kind) in enumerate(zip(values.tolist(), kinds, strict=True)):
            scores = left_out[..., position]
            if kind is Kind.SHARE:
                low, high = self._wilson(value, self._jackknife(scores), quantile)
            else:
                forth, back = (_fisher, np.tanh) if kind is Kind.CORRELATION else (_log, np.exp)
                half_width = quantile * self._jackknife(forth(scores))
                low, high = (float(back(forth(value) + sign * half_width)) for sign in (-1, 1))
            # The transformation of a perfect score is rounded.
            intervals.append(Interval(value, min(low, value), max(high, value)))
        return intervals

    def difference_interval(self, statistic: Statistic) -> Interval:
        """Return the interval of the difference that `statistic` computes from tables (..., S, n)."""
        value = float(statistic(self.total))
        if not self.have_intervals:
            return Interval(value, None, None)
        (error,) = self.standard_errors(lambda tables: statistic(tables)[..., None])
        half_width = self._t_quantile() * float(error)
        return Interval(value, value - half_width, value + half_width)

    def standard_errors(self, statistic: Statistic) -> np.ndarray:
        """Return the standard errors (K,) of the delete-one jackknife; 0 for a single unit."""
        left_out = statistic(self.total - self.tables)
        return np.array([self._jackknife(left_out[..., position]) for position in range(left_out.shape[-1])])

    def paired_test(self, difference: Statistic) -> dict[str, Any]:
        """Return a difference of two systems, its interval, and the two-sided p of the sign-flip test.

        The tables are (U, 2, n). `difference` computes it from tables (..., 2, n) and turns its sign when the systems
        are exchanged.
        """
        interval = self.difference_interval(difference)
        return {
            "difference": interval.value,
            "low": interval.low,
            "high": interval.high,
            "p": self._sign_flip_p(difference),
            "units": self.n_units,
            "unit": "speakers" if self.are_speakers else "clips",
        }

    def _jackknife(self, left_out: np.ndarray) -> float:
        """Return the standard error from the scores (U,) that remain when a unit of each kind is left out."""
        mean = np.average(left_out, weights=self.repeats)
        return float(np.sqrt((self.n_units - 1) / self.n_units * (self.repeats @ np.square(left_out - mean))))

    def _wilson(self, value: float, error: float, quantile: float) -> tuple[float, float]:
        # A score that is the same whichever unit is left out (all right, say) tells as much as one clip of each unit.
        n_effective = value * (1 - value) / error**2 if error > NO_SPREAD else self.n_units
        shrinkage = 1 / (1 + quantile**2 / n_effective)
        centre = shrinkage * (value + quantile**2 / (2 * n_effective))
        variance = value * (1 - value) / n_effective + (quantile / (2 * n_effective)) ** 2
        half_width = shrinkage * quantile * np.sqrt(variance)
        return float(max(0.0, centre - half_width)), float(min(1.0, centre + half_width))

    def _t_quantile(self) -> float:
        from scipy.stats import t

        effective = (self.repeats @ self.sizes) ** 2 / (self.repeats @ self.sizes**2)
        return float(t.ppf((1 + LEVEL) / 2, max(1.0, effective - 1)))

    def _sign_flip_p(self, difference: Statistic) -> float:
        """Return the two-sided p of a difference under exchanges of the two systems within units."""
        # Sums change by this much when the two systems are exchanged in a unit.
        change = (self.tables[:, ::-1] - self.tables).astype(float)
        total = self.total
        observed = abs(float(difference(total)))
        if observed == 0:
            return 1.0
        exact = self.are_speakers and self.n_units <= MAX_EXACT_UNITS
        at_least = equal = n_draws = 0
        for exchanges in _enumerate_exchanges(self.n_units) if exact else _draw_exchanges(self.repeats):
            values = np.abs(difference(total + np.tensordot(exchanges.astype(float), change, 1)))
            # Sums of the same numbers in another order differ by rounding.
            at_least += int(np.sum(values >= observed - 1e-12))
            equal += int(np.sum(np.abs(values - observed) <= 1e-12))
            n_draws += len(values)
        if not exact:
            # Add-one: with finitely many draws a p of exactly zero cannot be claimed.
            return (at_least + 1) / (n_draws + 1)
        return (at_least - (equal / 2 if self.n_units >= MIN_SPEAKERS else 0)) / n_draws


def _fisher(correlation: np.ndarray | float) -> Any:
    return np.arctanh(np.clip(correlation, -LARGEST_CORRELATION, LARGEST_CORRELATION))


def _log(error: np.ndarray | float) -> Any:
    return np.log(np.maximum(error, SMALLEST_ERROR))


def _enumerate_exchanges(n_units: int) -> Iterator[np.ndarray]:
    """Yield all patterns (B, n_units) of exchanged units, in blocks; those of the first unit are left out.

    Exchanging all units at once only turns the sign, so half of the patterns has the absolute values of the other half.
    """
    patterns = np.arange(2 ** (n_units - 1))[:, None] >> np.arange(n_units) & 1
    yield from np.array_split(patterns, -(-len(patterns) // 2048))


def _draw_exchanges(repeats: np.ndarray) -> Iterator[np.ndarray]:
    """Yield DRAWS random numbers of exchanged units (B, U) of each kind, in blocks that fit the memory."""
    random = np.random.default_rng(0)
    size = max(1, min(1000, MAX_BLOCK_VALUES // len(repeats)))
    for start in range(0, DRAWS, size):
        yield random.binomial(repeats, 0.5, (min(size, DRAWS - start), len(repeats)))
