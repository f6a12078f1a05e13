"""Linear probes of all layers under nested cross-validation: penalties, and later windows, are chosen without the clips
that score them.

The outer probe of fold i trains on the other folds. Its penalty is chosen by probes that were trained without i and a
neighbour j (cyclic distance at most 2) and score fold j, for all such j. So inner parts are outer folds too: stratified
and speaker-disjoint where those are, and a fit without {i, j} serves both i and j. With two folds nothing is left to
choose on, and the penalty is fixed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch

from mertool.learning.folds import Folds
from mertool.probing.logistic import MEMORY, BatchedLogisticRegression
from mertool.probing.ridge import Ridge, class_targets

# From the strongest penalty to the weakest; ties go to the stronger.
PENALTIES = {
    "logistic": (1e-4, 1e-3, 1e-2, 1e-1, 1.0),
    "ridge": tuple(float(f"{10 ** (6 - step / 4):.3g}") for step in range(25)),  # 1e6 to 1
}
FIXED = {"logistic": 1e-2, "ridge": 1e3}  # with two folds
NEIGHBOURS = 2
CPU_BYTES = 1 << 29


@dataclass(frozen=True)
class ProbePredictions:
    """What linear probes of L layers say of clips they were not trained on, over S shuffles into F folds.

    logits, control (S, L, N, C): of the probe of each clip's fold; control was trained on shuffled labels.
    inner (S, F, L, N): class guessed for the choices of an outer fold, by probes that saw neither that fold nor
    the clip's own; -1 where there is none. chosen (S, F, L): the penalty. unsolved: fits beyond the tolerance.
    """

    logits: np.ndarray
    control: np.ndarray
    inner: np.ndarray
    chosen: np.ndarray
    unsolved: int


@dataclass(frozen=True)
class _Part:
    """A training part: all folds of a shuffle but `without`; `rows` are the clips of those, which it scores."""

    shuffle: int
    without: tuple[int, ...]
    rows: np.ndarray


@dataclass(frozen=True)
class _Task:
    """Features (B, N, D) of some layers and what is asked of them, on the device."""

    features: torch.Tensor
    labels: torch.Tensor
    shuffled: torch.Tensor
    shuffles: list[Folds]
    parts: list[_Part]
    classes: int
    penalties: tuple[float, ...]


# Called with the number of the penalty, the part, whether it is the control, and logits (B, C, rows of the part).
Take = Callable[[int, _Part, bool, torch.Tensor], None]
Progress = Callable[[int, int], None]


def inner_pairs(count: int) -> list[tuple[int, int]]:
    """Pairs of folds that are left out together.

    >>> inner_pairs(4), len(inner_pairs(10))
    ([(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)], 20)
    """
    pairs = combinations(range(count), 2)
    return [(i, j) for i, j in pairs if min(j - i, count - j + i) <= NEIGHBOURS] if count > 2 else []


def probe_linear(
    values: np.ndarray,
    labels: np.ndarray,
    shuffled: np.ndarray,
    shuffles: list[Folds],
    classes: int,
    estimator: str,
    device: torch.device,
    progress: Progress,
) -> ProbePredictions:
    """Probe layers values (N, L, D) for labels (N,), and with the same penalties for the control.

    That is `shuffled` labels (S, N), other ones for each of the S `shuffles` of the folds.
    """
    parts = [
        _Part(number, without, np.flatnonzero(np.isin(folds.fold_of, without)))
        for number, folds in enumerate(shuffles)
        for without in [*((fold,) for fold in range(folds.count)), *inner_pairs(folds.count)]
    ]
    nested = any(len(part.without) > 1 for part in parts)
    penalties = PENALTIES[estimator] if nested else (FIXED[estimator],)
    answers = _Answers.empty(len(penalties), shuffles, values.shape, classes)
    fit = _fit_logistic if estimator == "logistic" else _fit_ridge
    outer = sum(folds.count for folds in shuffles)
    numbers = _numbers(values.shape, (len(parts) + outer) * classes, shuffles[0].count, estimator)
    chunks = layer_chunks(values.shape[1], numbers, device)
    unsolved = 0
    for number, chunk in enumerate(chunks):
        features = torch.as_tensor(values[:, chunk], device=device).transpose(0, 1).contiguous()
        true, control = (torch.as_tensor(given, device=device) for given in (labels, shuffled))
        task = _Task(features, true, control, shuffles, parts, classes, penalties)

        def take(
            penalty: int, part: _Part, control: bool, logits: torch.Tensor, chunk: slice = chunk, task: _Task = task
        ) -> None:
            answers.take(penalty, part, control, logits, chunk, task, estimator)

        unsolved += fit(task, take, within(progress, number, len(chunks)))
    return answers.check_choice(shuffles, penalties, unsolved)


def layer_chunks(layers: int, numbers: int, device: torch.device) -> list[slice]:
    """Layers that are worked on together, if each needs so many float32 numbers."""
    most = CPU_BYTES if device.type == "cpu" else CPU_BYTES << 5
    rounds = -(-layers // max(1, most // (4 * numbers)))
    even = -(-layers // rounds)
    return [slice(start, min(start + even, layers)) for start in range(0, layers, even)]


def _numbers(shape: tuple[int, ...], columns: int, folds: int, estimator: str) -> int:
    """Float32 numbers a layer of features (N, L, D) needs, for weights of so many columns in all."""
    clips, _, channels = shape
    if estimator == "ridge":
        return clips * (3 * channels + columns) + channels**2 * (folds + 10)
    return clips * (3 * channels + 6 * columns) + channels * (2 * channels + 4 * MEMORY * columns)


def within(progress: Progress, number: int, count: int) -> Progress:
    """Progress of one of several equal shares of the work."""
    return lambda done, total: progress(number * total + done, count * total)


def _fit_logistic(task: _Task, take: Take, progress: Progress) -> int:
    """Every part and, on shuffled labels, every outer part, along the path of penalties; fits that did not converge."""
    outer = [part for part in task.parts if len(part.without) == 1]
    clips, device = len(task.labels), task.features.device
    trains = torch.ones(len(task.parts) + len(outer), clips, device=device)
    for row, part in enumerate([*task.parts, *outer]):
        trains[row, torch.as_tensor(part.rows, device=device)] = 0
    labels = torch.cat([task.labels.expand(len(task.parts), -1), task.shuffled[[part.shuffle for part in outer]]])
    solver = BatchedLogisticRegression(task.features, labels, trains, task.classes)
    theta, unsolved = None, 0
    for number, strength in enumerate(task.penalties):
        solution = solver.solve(strength, theta)
        theta = solution.theta
        unsolved += int((~solution.converged).sum())
        logits = solver.logits(theta)
        for row, part in enumerate([*task.parts, *outer]):
            rows = torch.as_tensor(part.rows, device=device)
            take(number, part, row >= len(task.parts), logits[:, row, :, rows])
        progress(number + 1, len(task.penalties))
    return unsolved


def _fit_ridge(task: _Task, take: Take, progress: Progress) -> int:
    """The same in closed form; the control is more columns of the same system."""
    device, done = task.features.device, 0
    for shuffle, folds in enumerate(task.shuffles):
        both = (task.labels, task.shuffled[shuffle])
        targets = torch.cat([class_targets(given, task.classes) for given in both], 1)
        ridge = Ridge(task.features, targets, torch.as_tensor(folds.fold_of, device=device), folds.count)
        for part in (part for part in task.parts if part.shuffle == shuffle):
            weights = ridge.solve(part.without, task.penalties)
            scores = ridge.scores(weights, torch.as_tensor(part.rows, device=device))
            for number in range(len(task.penalties)):
                take(number, part, False, scores[:, number, : task.classes])
                if len(part.without) == 1:
                    take(number, part, True, scores[:, number, task.classes :])
            done += 1
            progress(done, len(task.parts))
    return 0


@dataclass(frozen=True)
class _Answers:
    """What all parts said by penalty: outer, control (P, S, L, N, C), inner (P, S, F, L, N), loss (P, S, F, L)."""

    outer: np.ndarray
    control: np.ndarray
    inner: np.ndarray
    loss: np.ndarray

    @classmethod
    def empty(cls, penalties: int, shuffles: list[Folds], shape: tuple[int, ...], classes: int) -> "_Answers":
        clips, layers, _ = shape
        most = max(folds.count for folds in shuffles)
        outer = np.zeros((penalties, len(shuffles), layers, clips, classes), np.float32)
        inner = np.full((penalties, len(shuffles), most, layers, clips), -1, np.int16)
        return cls(outer, outer.copy(), inner, np.zeros(inner.shape[:-1]))

    def take(
        self, penalty: int, part: _Part, control: bool, logits: torch.Tensor, chunk: slice, task: _Task, estimator: str
    ) -> None:
        """Keep logits (B, C, n) of a part's rows."""
        if len(part.without) == 1:
            kept = (self.control if control else self.outer)[penalty, part.shuffle][chunk]
            kept[:, part.rows] = logits.mT.cpu().numpy()
            return
        fold_of = task.shuffles[part.shuffle].fold_of[part.rows]
        labels = task.labels[torch.as_tensor(part.rows, device=logits.device)]
        loss = _losses(logits, labels, estimator).cpu().numpy()
        guess = logits.argmax(1).cpu().numpy()
        for outer, judged in (part.without, part.without[::-1]):
            here = fold_of == judged
            self.loss[penalty, part.shuffle, outer, chunk] += loss[:, here].sum(1)
            self.inner[penalty, part.shuffle, outer][chunk][:, part.rows[here]] = guess[:, here]

    def check_choice(self, shuffles: list[Folds], penalties: tuple[float, ...], unsolved: int) -> ProbePredictions:
        """The answers under the penalty of the least inner loss, for each shuffle, outer fold and layer."""
        best = self.loss.argmin(0)  # (S, F, L)
        logits, control = np.zeros_like(self.outer[0]), np.zeros_like(self.outer[0])
        inner = np.take_along_axis(self.inner, best[None, ..., None], 0)[0]
        layers = np.arange(best.shape[2])
        for number, folds in enumerate(shuffles):
            for fold in range(folds.count):
                rows, of = folds.held_out(fold), best[number, fold]
                logits[number][:, rows] = self.outer[of, number, layers][:, rows]
                control[number][:, rows] = self.control[of, number, layers][:, rows]
        return ProbePredictions(logits, control, inner, np.array(penalties)[best], unsolved)


def _losses(logits: torch.Tensor, labels: torch.Tensor, estimator: str) -> torch.Tensor:
    """What penalties are chosen by, (B, n): cross-entropy of logits (B, C, n), or squared error of decision values."""
    labels = labels.expand(len(logits), -1)
    if estimator == "logistic":
        return torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    targets = class_targets(labels, logits.shape[1]).mT
    return (logits - targets).square().sum(1)
