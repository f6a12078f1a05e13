"""Probes of all layers at once against scikit-learn, one layer and fold at a time.

    python tests/bench/probe.py
    python tests/bench/probe.py --full
    python tests/bench/probe.py --tiny

5,000 clips, 25 layers, 1,024 channels, 5 folds, 6 classes; made features (see `make_layers`): `correlated` as hidden
states are, and `isotropic`. Both sides fit the same 125 training parts for one penalty, from float32 features; each
row counts fits per second. mertool's clock holds everything from the features in memory to the logits of the
held-out clips, standardisation too; scikit-learn gets features that were standardised before its clock starts.

Its fits take minutes, so they are timed on `--layers` layers spread over the depth (`--full`: all), and its pace is
theirs. mertool fits all layers before and after, in turn with it, since the pace of a machine drifts; `processor_ratio`
compares the processor time of both sides, which other programs disturb less. "Agree" is the
share of held-out clips that both give the same class; `objective` is (ours - theirs) / theirs of the mean objective
of the training parts, in float64: below zero, ours is nearer to the optimum. Writes build/bench/probe.json.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from report import ROOT, Row, others, publish, say

RESULT = ROOT / "build" / "bench" / "probe.json"
STRENGTH, ALPHA = 0.1, 1000.0
ALPHAS = tuple(10 ** (6 - step / 4) for step in range(25))  # the stage's grid
FOLDS, CLASSES = 5, 6


@dataclass(frozen=True)
class Size:
    """clips, layers and channels, and how many layers scikit-learn is timed on."""

    clips: int
    layers: int
    channels: int
    timed: int

    def spread(self) -> list[int]:
        """The layers of the baseline, spread over the depth."""
        return sorted({round(place) for place in np.linspace(0, self.layers - 1, self.timed + 2)[1:-1]})


@dataclass(frozen=True)
class Data:
    """Features (N, L, D), labels and fold of each clip (N,)."""

    values: np.ndarray
    labels: np.ndarray
    fold_of: np.ndarray


def main() -> None:
    options = parse()
    size = Size(200, 4, 32, 1) if options.tiny else Size(5000, 25, 1024, options.layers)
    if options.full:
        size = Size(size.clips, size.layers, size.channels, size.layers)
    rows: list[Row] = []
    for kind in ("correlated", "isotropic"):
        data = make_layers(kind, size, np.random.default_rng(0))
        for name, case in CASES.items():
            if options.only and name not in options.only:
                continue
            rows.append(
                measure(f"probe/{name}{'' if kind == 'correlated' else '-isotropic'}", case, data, size, options)
            )
    publish(rows, options.output, "probes of all layers and folds")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Probes of all layers at once against scikit-learn.")
    parser.add_argument("--layers", type=int, default=2, help="layers that scikit-learn is timed on")
    parser.add_argument("--full", action="store_true", help="time scikit-learn on all layers (10 min and more)")
    parser.add_argument("--tiny", action="store_true", help="a smoke test")
    parser.add_argument("--only", nargs="*", choices=sorted(CASES), help="some cases")
    parser.add_argument("--device", default="cpu", help="where mertool fits: cpu or cuda")
    parser.add_argument("--output", type=Path, default=RESULT, help="where the JSON goes")
    return parser.parse_args()


def make_layers(kind: str, size: Size, rng: np.random.Generator) -> Data:
    """Features of made layers, in which the classes' means differ in an eighth of the directions, most at depth 2/3.

    `isotropic` channels are independent and of one size. `correlated` ones are turned so that the k-th direction has
    variance 1/k (the first few per cent of the directions hold most of the variance, as in hidden states), with channel
    sizes spread over a factor of 30, common offsets, and a few channels of 20 times the size, as transformers have.
    """
    labels = rng.integers(0, CLASSES, size.clips)
    strengths = np.sqrt(np.arange(1, size.channels + 1)) if kind == "correlated" else np.ones(size.channels)
    turn = np.linalg.qr(rng.normal(size=(size.channels,) * 2))[0].astype(np.float32)
    values = np.empty((size.clips, size.layers, size.channels), np.float32)
    for layer in range(size.layers):
        depth = layer / max(1, size.layers - 1)
        means = np.zeros((CLASSES, size.channels), np.float32)
        means[:, : size.channels // 8] = rng.normal(size=(CLASSES, size.channels // 8))
        means *= 0.05 + 0.15 * np.exp(-(((depth - 0.67) / 0.25) ** 2))
        x = rng.standard_normal((size.clips, size.channels), np.float32) + means[labels]
        if kind == "correlated":
            x = (x / strengths.astype(np.float32)) @ turn[rng.permutation(size.channels)]
            sizes = 30 ** rng.uniform(0, 1, size.channels)
            sizes[rng.choice(size.channels, 3, replace=False)] *= 20
            x = x * sizes + sizes * rng.normal(size=size.channels)
        values[:, layer] = x
    return Data(values, labels, rng.permutation(size.clips) % FOLDS)


@dataclass(frozen=True)
class Case:
    """ours (features on the device, labels, folds) -> logits (P, L, N, C); theirs(penalty) -> an unfitted model."""

    ours: Callable[[Any, Any, Any], np.ndarray]
    theirs: Callable[[float], Any]
    penalties: tuple[float, ...]
    words: str
    tolerance: float | None = None


def ours_logistic(tolerance: float) -> Callable[[Any, Any, Any], np.ndarray]:
    """mertool's fits to a tolerance."""
    return partial(_ours_logistic, tolerance)


def _ours_logistic(tolerance: float, values: Any, labels: Any, fold_of: Any) -> np.ndarray:
    """Logits of each clip by the probe that held it out, layers in groups that fit the memory."""
    import torch

    from mertool.probing.logistic import BatchedLogisticRegression
    from mertool.probing.nested_cv import layer_chunks

    train_masks = torch.stack([(fold_of != fold).float() for fold in range(FOLDS)])
    clips, layers, channels = values.shape
    found = []
    for chunk in layer_chunks(layers, 4 * clips * channels, values.device):
        features = values[:, chunk].transpose(0, 1).contiguous()
        solver = BatchedLogisticRegression.from_features(
            features, labels.expand(FOLDS, -1), train_masks, n_classes=CLASSES
        )
        solution = solver.solve(STRENGTH, tolerance=tolerance)
        if not bool(solution.converged.all()):
            raise SystemExit("a fit did not reach the tolerance")
        logits = solver.logits(solution.weights)
        found.append(logits[:, fold_of, :, torch.arange(clips, device=values.device)].movedim(1, 0).cpu().numpy())
    return np.concatenate(found)[None]


def ours_ridge(penalties: tuple[float, ...]) -> Callable[[Any, Any, Any], np.ndarray]:
    """The same in closed form."""

    def fit(values: Any, labels: Any, fold_of: Any) -> np.ndarray:
        import torch

        from mertool.probing.ridge import Ridge, class_targets

        clips, layers, _ = values.shape
        found = np.zeros((len(penalties), layers, clips, CLASSES), np.float32)
        targets = class_targets(labels, CLASSES)
        for layer in range(layers):
            ridge = Ridge.from_features(values[None, :, layer].contiguous(), targets, fold_of, n_folds=FOLDS)
            for fold in range(FOLDS):
                rows = torch.nonzero(fold_of == fold)[:, 0]
                scores = ridge.scores(ridge.solve([fold], penalties), rows)[0]
                found[:, layer, rows.cpu().numpy()] = scores.mT.cpu().numpy()
        return found

    return fit


def logistic(tolerance: float) -> Callable[[float], Any]:
    """scikit-learn's, to a tolerance on the same gradient (that of the mean loss)."""
    from sklearn.linear_model import LogisticRegression

    return lambda strength: LogisticRegression(C=strength, tol=tolerance, max_iter=100_000)


def ridge(alpha: float) -> Any:
    from sklearn.linear_model import RidgeClassifier

    return RidgeClassifier(alpha=alpha)


CASES = {
    "logistic": Case(ours_logistic(1e-5), logistic(1e-5), (STRENGTH,), "LogisticRegression(C=0.1, tol=1e-5)", 1e-5),
    "logistic-loose": Case(ours_logistic(1e-4), logistic(1e-4), (STRENGTH,), "LogisticRegression(C=0.1)", 1e-4),
    "ridge-one": Case(ours_ridge((ALPHA,)), ridge, (ALPHA,), "RidgeClassifier(alpha=1000)"),
    "ridge": Case(ours_ridge(ALPHAS), ridge, ALPHAS, "RidgeClassifier, the stage's 25 penalties from 1 to 1e6"),
}


def measure(name: str, case: Case, data: Data, size: Size, options: argparse.Namespace) -> Row:
    """Both sides in turn: ours on all layers, theirs on some, ours on all again."""
    import torch

    device = torch.device(options.device)
    given = [torch.as_tensor(part, device=device) for part in (data.values, data.labels, data.fold_of)]
    busy, ours, ours_cpu, logits = [others()], [], [], np.zeros(0)
    theirs = Theirs()
    for turn in range(2):
        began, worked = time.perf_counter(), time.process_time()
        logits = case.ours(*given)
        ours.append(time.perf_counter() - began)
        ours_cpu.append(time.process_time() - worked)
        say(f"{name}: mertool {ours[-1]:.1f} s for {size.layers} layers")
        if not turn:
            for layer in size.spread():
                theirs.fit(case, data, layer, logits)
                say(f"{name}: scikit-learn {theirs.seconds:.1f} s for {theirs.fits} fits")
            busy.append(others())
    fits = size.layers * FOLDS * len(case.penalties)
    fields = {
        "seconds": {"mertool": ours, "scikit_learn": theirs.seconds},
        "processor_seconds": {"mertool": ours_cpu, "scikit_learn": theirs.cpu},
        "processor_ratio": theirs.cpu / theirs.fits * fits / (sum(ours_cpu) / len(ours_cpu)),
        "fits": {"mertool": fits, "scikit_learn": theirs.fits},
        "scikit_learn_layers": size.spread(),
        "scikit_learn_all_layers": theirs.seconds * fits / theirs.fits,
        "agree": theirs.agree / theirs.clips,
        "objective": theirs.objective() if case.tolerance else None,
        "model": case.words,
        "device": str(device),
        "threads": torch.get_num_threads(),
        "others": busy,
        **vars(size),
    }
    return Row(name, fits / (sum(ours) / len(ours)), "fits/s", theirs.fits / theirs.seconds, fields)


class Theirs:
    """scikit-learn's fits: their time, and how they compare with ours."""

    def __init__(self) -> None:
        self.seconds, self.cpu, self.fits, self.agree, self.clips = 0.0, 0.0, 0, 0, 0
        self.gaps: list[float] = []

    def fit(self, case: Case, data: Data, layer: int, logits: np.ndarray) -> None:
        """Every fold and penalty of one layer."""
        for train, held_out, x in parts(data, layer):
            y = data.labels[train]
            for number, penalty in enumerate(case.penalties):
                model = case.theirs(penalty)
                began, worked = time.perf_counter(), time.process_time()
                model.fit(x[train], y)
                self.seconds += time.perf_counter() - began
                self.cpu += time.process_time() - worked
                self.fits += 1
                self.agree += int((model.predict(x[held_out]) == logits[number, layer, held_out].argmax(-1)).sum())
                self.clips += len(held_out)
                if case.tolerance:
                    self.gaps.append(gap(model, x[train], y, penalty, case.tolerance))

    def objective(self) -> dict[str, float]:
        """Mean and extremes of (ours - theirs) / theirs."""
        return {"mean": float(np.mean(self.gaps)), "least": min(self.gaps), "most": max(self.gaps)}


def parts(data: Data, layer: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Training rows, held-out rows, and features (N, D) standardised by the training rows, of each fold."""
    from sklearn.preprocessing import StandardScaler

    for fold in range(FOLDS):
        train, held_out = (np.flatnonzero((data.fold_of == fold) == held) for held in (False, True))
        scaler = StandardScaler().fit(data.values[train, layer].astype(np.float64))
        yield train, held_out, scaler.transform(data.values[:, layer].astype(np.float64)).astype(np.float32)


def gap(model: Any, x: np.ndarray, labels: np.ndarray, strength: float, tolerance: float) -> float:
    """(ours - theirs) / theirs of the objective on the same features; ours is fitted once more, alone."""
    import torch

    from mertool.probing.logistic import BatchedLogisticRegression

    solver = BatchedLogisticRegression.from_features(
        torch.as_tensor(x)[None], torch.as_tensor(labels)[None], torch.ones(1, len(x)), n_classes=CLASSES
    )
    weights = solver.solve(strength, tolerance=tolerance).weights[0, 0].numpy()
    solutions = (weights[:, :-1], weights[:, -1]), (model.coef_, model.intercept_)
    values = [objective(weight, bias, x, labels, strength) for weight, bias in solutions]
    return (values[0] - values[1]) / values[1]


def objective(weight: np.ndarray, bias: np.ndarray, x: np.ndarray, labels: np.ndarray, strength: float) -> float:
    """Mean cross-entropy + |W|^2 / (2 C n), in float64."""
    logits = x.astype(np.float64) @ weight.T.astype(np.float64) + bias
    shifted = logits - logits.max(1, keepdims=True)
    entropy = np.log(np.exp(shifted).sum(1)) - shifted[np.arange(len(x)), labels]
    return float(entropy.mean() + np.square(weight.astype(np.float64)).sum() / (2 * strength * len(x)))


if __name__ == "__main__":
    main()
