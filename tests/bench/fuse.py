"""The official protocol of fusion, all members at once against one model at a time in plain PyTorch.

    python tests/bench/fuse.py
    python tests/bench/fuse.py --device cuda
    python tests/bench/fuse.py --tiny

50 draws x 5 folds x 100 epochs of the official attention fusion on 5,030 made clips of 1024, 1024 and 768 channels are
25,000 epochs of models of three widths. A few epochs of some members of each width are timed; the whole protocol is
their time an epoch, making them included, times how many of its epochs are of that width. Nothing else is scaled. Both
sides train with Adam (batches of 32, dropout on the inputs) and score the held-out fold after every epoch.

The plain side holds its tensors in memory and has no loader; it is timed with torch's default Adam, which is what the
official script has (`fuse/protocol`), and with `fused=True`, the fastest (`fuse/protocol-fused`); on one thread and on
all, of which the faster counts. Everything is float32. Sides take turns; `processor_ratio` compares the processor time
of ours and of the plain side on one thread, which other programs disturb less. A row counts epochs of models per
second; `hours` is the whole protocol. Writes build/bench/fuse.json.
"""

import argparse
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from report import ROOT, Row, others, publish, say
from torch import nn

from mertool.fusion.ensemble import members_per_stack, train_members
from mertool.fusion.heads import HeadSpec
from mertool.fusion.hyperparameters import Trial, sample_trials
from mertool.fusion.modality_features import ModalityFeatures
from mertool.fusion.trainer import EnsembleMember, FusionTraining
from mertool.learning.folds import Folds
from mertool.metrics import confusion_matrix, scores_from_confusion

RESULT = ROOT / "build" / "bench" / "fuse.json"
HEAD, CLASSES, FOLDS, EPOCHS, BATCH, DROPOUT = "attention-mertools", 6, 5, 100, 32, 0.3
OFFICIAL = FusionTraining(batch=BATCH, weight_decay=1e-5, decoupled=False, cosine=False, modality_dropout=0.0)


@dataclass(frozen=True)
class Size:
    """clips, channels of each modality, draws of the protocol; timed: epochs of the plain side, of ours, members (at
    most: as many as fill two stacks, so that two threads have one each)."""

    clips: int
    channels: tuple[int, ...]
    draws: int
    plain_epochs: int
    epochs: int
    members: int


class Data:
    """Made features (N, 1, D) of each modality, labels (N,) and fold of each clip."""

    def __init__(self, size: Size, device: torch.device):
        rng = np.random.default_rng(0)
        labels = rng.integers(0, CLASSES, size.clips)
        self.features = []
        for channels in size.channels:
            means = 0.11 * rng.normal(size=(CLASSES, channels))
            values = (rng.normal(size=(size.clips, channels)) + means[labels]).astype(np.float32)
            self.features.append(torch.from_numpy(values)[:, None].to(device))
        self.labels = torch.from_numpy(labels).to(device)
        self.present = torch.ones(size.clips, len(size.channels), dtype=torch.bool, device=device)
        self.folds = Folds(rng.permutation(size.clips) % FOLDS, FOLDS, "made")
        self.shapes = [(1, channels) for channels in size.channels]
        self.device = device

    def rows(self, fold: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Training and held-out rows."""
        parts = self.folds.train(fold), self.folds.held_out(fold)
        return tuple(torch.from_numpy(part).to(self.device) for part in parts)  # type: ignore[return-value]


class Plain(nn.Module):
    """The official attention fusion, as one writes it."""

    def __init__(self, channels: tuple[int, ...], width: int):
        super().__init__()
        self.encoders = nn.ModuleList(_encoder(size, width) for size in channels)
        self.attention, self.weigh = _encoder(len(channels) * width, width), nn.Linear(width, len(channels))
        self.classify = nn.Linear(width, CLASSES)

    def forward(self, vectors: list[torch.Tensor]) -> torch.Tensor:
        hidden = [encode(vector) for encode, vector in zip(self.encoders, vectors, strict=True)]
        weights = self.weigh(self.attention(torch.cat(hidden, 1)))
        return self.classify(torch.matmul(torch.stack(hidden, 2), weights[:, :, None])[:, :, 0])


def _encoder(size: int, width: int) -> nn.Sequential:
    layers = [layer for inputs in (size, width, width) for layer in (nn.Linear(inputs, width), nn.ReLU())]
    return nn.Sequential(nn.Dropout(DROPOUT), *layers)


def main() -> None:
    options = parse()
    device = torch.device(options.device)
    # A GPU is not full before it trains all models of a width, of which the protocol has 75 to 95.
    size = Size(5030, (1024, 1024, 768), 50, 1, 2, 40 if device.type == "cpu" else 75)
    if options.tiny:
        size = Size(200, (16, 16, 12), 4, 1, 2, 4)
    data, busy = Data(size, device), [others()]
    widths = Counter(trial.width for trial in sample_trials(size.draws, epochs=EPOCHS, seed=0))
    cores = torch.get_num_threads()
    threads = sorted({1, cores}) if device.type == "cpu" else [cores]
    sides: dict[str, Callable[[int], RateEstimator]] = {"ours": partial(ours, data, size)}
    for count in threads:
        sides[f"plain-{count}"] = partial(plain, data, size, count, False)
        sides[f"fused-{count}"] = partial(plain, data, size, count, True)
    found: dict[str, dict[int, list[RateEstimator]]] = {name: {width: [] for width in widths} for name in sides}
    ours(data, replace(size, members=2, epochs=1), 64)  # the first step of a process loads libraries
    for turn in range(options.turns):
        for width in widths:
            for name, side in sides.items():
                found[name][width].append(side(width))
                say(f"turn {turn + 1}, width {width}, {name}: {found[name][width][-1].wall:.3f} s an epoch of a model")
    busy.append(others())
    totals = {name: _total(paces, widths, "wall") for name, paces in found.items()}
    work = {name: _total(paces, widths, "processor") for name, paces in found.items()}
    best = {kind: min((f"{kind}-{n}" for n in threads), key=totals.__getitem__) for kind in ("plain", "fused")}
    epochs = size.draws * FOLDS * EPOCHS
    rows = []
    for name, kind in (("fuse/protocol", "plain"), ("fuse/protocol-fused", "fused")):
        their = best[kind]
        fields = {
            "hours": {"mertool": totals["ours"] / 3600, "plain": totals[their] / 3600},
            "epoch_seconds": {side: _seconds(found[side]) for side in ("ours", their)},
            "models_by_width": {str(width): FOLDS * count for width, count in sorted(widths.items())},
            "timed": {"members": size.members, "epochs": size.epochs, "plain_epochs": size.plain_epochs},
            "plain": their,
            "processor_ratio": work[f"{kind}-{threads[0]}"] / work["ours"],
            "device": str(device),
            "threads": cores,
            "others": busy,
            **vars(size),
        }
        rows.append(Row(name, epochs / totals["ours"], "epochs of models/s", epochs / totals[their], fields))
    publish(rows, options.output, "the official fusion protocol")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="All members at once against one model at a time.")
    parser.add_argument("--device", default="cpu", help="where both sides train: cpu or cuda")
    parser.add_argument("--turns", type=int, default=2, help="how often each side is timed")
    parser.add_argument("--tiny", action="store_true", help="a smoke test")
    parser.add_argument("--output", type=Path, default=RESULT, help="where the JSON goes")
    return parser.parse_args()


@dataclass(frozen=True)
class RateEstimator:
    """Seconds of an epoch of a model, and seconds of processors."""

    wall: float
    processor: float


class Clock:
    """Counts from its making."""

    def __init__(self, device: torch.device):
        self.wall, self.processor = _now(device), time.process_time()

    def pace(self, device: torch.device, epochs: int) -> RateEstimator:
        return RateEstimator((_now(device) - self.wall) / epochs, (time.process_time() - self.processor) / epochs)


def _now(device: torch.device) -> float:
    if device.type in ("cuda", "mps"):
        getattr(torch, device.type).synchronize()
    return time.perf_counter()


def _total(paces: dict[int, list[RateEstimator]], draws: dict[int, int], what: str) -> float:
    """Seconds of the whole protocol."""
    means = {width: float(np.mean([getattr(pace, what) for pace in found])) for width, found in paces.items()}
    return sum(FOLDS * EPOCHS * count * means[width] for width, count in draws.items())


def _seconds(paces: dict[int, list[RateEstimator]]) -> dict[str, list[float]]:
    return {str(width): [pace.wall for pace in found] for width, found in sorted(paces.items())}


def ours(data: Data, size: Size, width: int) -> RateEstimator:
    """An epoch of a model: members of one width, over all folds."""
    splits = [data.rows(fold) for fold in range(FOLDS)]
    spec = HeadSpec(HEAD, data.shapes, CLASSES)
    count = min(size.members, 2 * members_per_stack(spec, width, data.device))
    trial = Trial(width=width, dropout=DROPOUT, learning_rate=1e-3, epochs=size.epochs)
    began = Clock(data.device)
    members = []
    for number in range(count):
        train, held_out = splits[number % FOLDS]
        member = EnsembleMember(
            fold=0, rows=train, labels=data.labels, seed=number, trial=trial, validation_rows=held_out
        )
        members.append(member)
    train_members(spec, ModalityFeatures(data.features, data.present), members, training=OFFICIAL)
    return began.pace(data.device, count * size.epochs)


def plain(data: Data, size: Size, threads: int, fused: bool, width: int) -> RateEstimator:
    """An epoch of a model, trained and scored as one does without mertool."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return _plain(data, size, fused, width)
    finally:
        torch.set_num_threads(before)


def _plain(data: Data, size: Size, fused: bool, width: int) -> RateEstimator:
    began = Clock(data.device)
    vectors = [values[:, 0].contiguous() for values in data.features]
    train, held_out = data.rows(0)
    model = Plain(size.channels, width).to(data.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-5, **({"fused": True} if fused else {}))
    for _ in range(size.plain_epochs):
        model.train()
        for rows in train[torch.randperm(len(train), device=data.device)].split(BATCH):
            loss = nn.functional.cross_entropy(model([values[rows] for values in vectors]), data.labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            guess = torch.cat([model([v[rows] for v in vectors]).argmax(1) for rows in held_out.split(BATCH)])
        scores_from_confusion(confusion_matrix(data.labels[held_out].cpu().numpy(), guess.cpu().numpy(), CLASSES))
    return began.pace(data.device, size.plain_epochs)


if __name__ == "__main__":
    main()
