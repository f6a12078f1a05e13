"""One adapter: fresh in its blocks, trained on one part of the clips, judged on another.

The head reads the mean over time of the last adapted block. It begins as the linear probe of the frozen
features (Kumar et al., 2022: a random head would first distort them) and is not kept.
"""

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from mertool import peft_methods
from mertool.adaptation.body import Body, mean_over_time
from mertool.adaptation.clips import Clips
from mertool.adaptation.loop import History, Rows, Schedule, fit
from mertool.adaptation.masked import Target, span_mask
from mertool.devices import seed_everything
from mertool.encoders.blocks import drop_above
from mertool.errors import MertoolError, choose
from mertool.training.checkpoint import Checkpoint
from mertool.training.linear import STRENGTH, Probes, fit_probes
from mertool.training.similarity import linear_cka

# Frames of one forward pass: on a CPU little padding and little memory, on a GPU as much as it takes to fill it.
AT_ONCE = {"cpu": 1600}
AT_ONCE_ON_GPU = 16_000
CLASS_WEIGHTS = ("none", "balanced")
HEAD_RATE = 2e-4  # peak learning rate: the head begins at its optimum, and large steps only throw it off
SHIFT_CLIPS = 500  # of which an adapter's mean shift is taken; clips differ little in it
UNLABELLED = -100  # the label of clips without one, which cross-entropy leaves out


@dataclass(frozen=True)
class Method:
    """What is trained and on which loss.

    name: a file of mertool/peft_methods, size: its width or rank. Loss: cross-entropy with `class_weights` and
    `label_smoothing`, plus `mask_weight` times the reconstruction of hidden frames.
    """

    name: str
    size: int | None
    layers: tuple[int, ...]
    mask_weight: float = 0.1
    mask_target: str = "units"
    class_weights: str = "none"
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        choose("class weights", self.class_weights, CLASS_WEIGHTS)
        if not 0 <= self.label_smoothing < 1:
            raise MertoolError(f"label smoothing {self.label_smoothing:g}: give a number from 0 to below 1")
        if not 0 <= self.mask_weight < float("inf"):
            raise MertoolError(f"mask weight {self.mask_weight:g}: give 0 (no masks) or more")


@dataclass(frozen=True)
class Part:
    """Rows an adapter learns from, those its best epoch is chosen on, and those it is judged on."""

    train: np.ndarray
    develop: np.ndarray
    held_out: np.ndarray


@dataclass(frozen=True)
class Trained:
    """What came of one adapter. Logits are of its held-out rows (H, C); `layers` of the probes of each adapted
    block and all blocks between, (W, H, C); `cka` (W,) how alike a block is before and after."""

    frozen: np.ndarray
    adapted: np.ndarray
    layers_frozen: np.ndarray
    layers_adapted: np.ndarray
    cka: np.ndarray
    history: History
    trainable: int


class Adaptation:
    """What several adapters of one encoder share: the clips, their labels, the frozen features.

    `encoder` is changed for good: only the blocks that training runs are left of it. `labels` (N,) of all
    clips, labelled ones first, then UNLABELLED ones.
    """

    def __init__(
        self,
        encoder: Any,
        clips: Clips,
        labels: np.ndarray,
        classes: int,
        method: Method,
        exact: bool,
        accelerator: Accelerator,
    ):
        self.method, self.classes, self.accelerator = method, classes, accelerator
        self.encoder, self.clips, self.labels = encoder, clips, labels
        self.parameters = sum(p.numel() for p in encoder.model.parameters())
        self.above = tuple(encoder.blocks[max(method.layers) :])  # which only the mean shift of adapters needs
        self.body = Body(encoder, method.layers, exact)
        self.inputs = clips.inputs[0 if exact else self.body.first - 1]
        self.lengths = clips.lengths()
        self.window = tuple(range(self.body.first, self.body.last + 1))
        self.frozen = self.pool(self.body, np.flatnonzero(labels != UNLABELLED))

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    def train(
        self, part: Part, schedule: Schedule, folder: Path, name: str, checkpoint: Checkpoint, progress: Any
    ) -> Trained:
        """Train an adapter and save it as `folder/name`."""
        seed_everything(schedule.seed)
        body = deepcopy(self.body)
        method = self.method
        peft = peft_methods.add_adapter(body.model, body.blocks, method.layers, method.name, method.size)
        peft.to(self.device)
        trainable = peft_methods.count_trainable(peft)
        unlabelled = np.flatnonzero(self.labels == UNLABELLED)
        task = _Task(self, body, part, np.concatenate([part.train, unlabelled]), schedule.seed)
        rows = Rows(part.train, unlabelled if task.target else unlabelled[:0], self.lengths)
        history = fit(task, rows, schedule, self.accelerator, checkpoint, progress)
        if self.accelerator.is_main_process:
            peft_methods.save_adapter(peft, folder, name)
        shift = self._shift(body, np.union1d(part.train, part.develop), schedule.seed)
        if self.accelerator.is_main_process:
            peft_methods.save_shift(folder / name, shift)
        return self._judge(body, task.head, part, history, trainable)

    def _shift(self, body: Body, learned: np.ndarray, seed: int) -> torch.Tensor:
        """(layers + 1, D): what the adapter in `body` adds to each layer, in the mean over clips it learned from."""
        rows = np.random.default_rng(seed).permutation(learned)[:SHIFT_CLIPS]
        layers = tuple(range(body.first, self.encoder.layers + 1))
        means = []
        for one in (self.body, body):
            one.blocks.extend(self.above)
            means.append(self.pool(one, rows, layers).mean(1))
            drop_above(one.blocks, body.last)
        shift = torch.zeros(self.encoder.layers + 1, self.encoder.channels, device=self.device)
        shift[body.first :] = means[1] - means[0]
        return shift

    def _judge(self, body: Body, head: "Head", part: Part, history: History, trainable: int) -> Trained:
        labelled = np.flatnonzero(self.labels != UNLABELLED)
        adapted = self.pool(body, labelled)
        before: list[np.ndarray] = []
        after: list[np.ndarray] = []
        cka = []
        for row in range(len(self.window)):
            both = (self.frozen[row], adapted[row])
            for features, found in zip(both, (before, after), strict=True):
                probe = self._probe(features, part.train)
                found.append(probe(features[part.held_out]).detach().cpu().numpy())
            judged = (features[part.held_out] for features in both)
            cka.append(linear_cka(*judged) if len(part.held_out) > 1 else float("nan"))
        with torch.no_grad():
            logits = head(adapted[-1][part.held_out]).cpu().numpy()
        return Trained(before[-1], logits, np.stack(before), np.stack(after), np.array(cka), history, trainable)

    def _probe(self, features: torch.Tensor, train: np.ndarray) -> "Head":
        """The linear probe of labelled rows' features (N, D), fitted on rows `train`."""
        trains = torch.zeros(1, len(features), device=self.device)
        trains[0, train] = 1
        labels = torch.as_tensor(self.labels[: len(features)], device=self.device)
        return Head(fit_probes(features, labels, trains, self.classes))

    def parts(self, rows: np.ndarray) -> list[np.ndarray]:
        """Rows that may share a forward pass: sorted by length, so many padded frames at most."""
        most = AT_ONCE.get(self.device.type, AT_ONCE_ON_GPU) if self.body.pads else 0
        found: list[list[int]] = []
        for row in sorted(rows, key=lambda row: -self.lengths[row]):
            if found and self.lengths[found[-1][0]] * (len(found[-1]) + 1) <= most:
                found[-1].append(int(row))
            else:
                found.append([int(row)])
        return [np.array(part) for part in found]

    def load(self, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs (B, T, D) of rows on the device, zero-padded, and their lengths (B,)."""
        padded = nn.utils.rnn.pad_sequence([self.inputs[row] for row in rows], batch_first=True)
        lengths = torch.as_tensor(self.lengths[rows])
        return padded.to(self.device, non_blocking=True).float(), lengths.to(self.device)

    @torch.no_grad()
    def pool(self, body: Body, rows: np.ndarray, layers: tuple[int, ...] | None = None) -> torch.Tensor:
        """Means over time (W, len(rows), D) of every block of the window, for `rows`; work is shared by devices."""
        keep = self.window if layers is None else layers
        pooled = torch.zeros(len(keep), len(self.lengths), self.encoder.channels, device=self.device)
        mine = rows[self.accelerator.process_index :: self.accelerator.num_processes]
        for some in self.parts(mine):
            inputs, lengths = self.load(some)
            with self.accelerator.autocast():
                found = body(inputs, lengths, None, keep)
            for number, layer in enumerate(keep):
                pooled[number, some] = mean_over_time(found[layer], lengths)
        if self.accelerator.num_processes > 1:
            pooled = self.accelerator.reduce(pooled, "sum")
        return pooled[:, rows].clone()


class Head(nn.Module):
    """A probe of pooled features (B, D) that goes on learning; its standardisation stays."""

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, probes: Probes):
        super().__init__()
        self.register_buffer("mean", probes.mean[0].clone())
        self.register_buffer("scale", probes.scale[0].clone())
        self.weight, self.bias = nn.Parameter(probes.weight[0].clone()), nn.Parameter(probes.bias[0].clone())

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        with torch.autocast(pooled.device.type, enabled=False):  # standardised small differences need their digits
            return (pooled.float() - self.mean) * self.scale @ self.weight + self.bias


class Objective(nn.Module):
    """Blocks with adapters, the head, and the layer that tells what was hidden."""

    def __init__(self, body: Body, head: Head, reader: nn.Linear | None):
        super().__init__()
        self.body, self.head, self.reader = body, head, reader

    def forward(
        self, inputs: torch.Tensor, lengths: torch.Tensor, whole: torch.Tensor, mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Logits (len(whole), C) of the clips of rows `whole`, and predictions (M, size) of frames of all clips that
        `mask` hides, in its order.

        Two passes: the head must learn from features like those it judges later, of which nothing is hidden.
        """
        last = self.body.last
        shown = self.body(inputs[whole], lengths[whole], None, (last,))[last]
        logits = self.head(mean_over_time(shown, lengths[whole]))
        if self.reader is None or mask is None:
            return logits, None
        return logits, self.reader(self.body(inputs, lengths, mask, (last,))[last][mask])


class _Task:
    """The objective of one adapter and its two losses (see loop.Task)."""

    def __init__(self, shared: Adaptation, body: Body, part: Part, learned: np.ndarray, seed: int):
        method = shared.method
        self.shared, self.part, self.seed = shared, part, seed
        self.mask_weight = method.mask_weight if shared.clips.hidden is not None else 0.0
        self.target = self._fit_target(learned) if self.mask_weight > 0 else None
        if self.target and not body.exact:
            # The encoder's own mask vector belongs to its input; here a hidden frame is an average one.
            body.fill.copy_(_mean_frame(shared.inputs, learned))
        head = shared._probe(shared.frozen[-1], part.train).to(shared.device)
        reader = nn.Linear(shared.encoder.channels, self.target.size).to(shared.device) if self.target else None
        self.head, self.objective = head, Objective(body, head, reader)
        counts = np.bincount(shared.labels[part.train], minlength=shared.classes)
        balanced = len(part.train) / np.maximum(counts, 1) / np.count_nonzero(counts)
        self.class_weights = balanced if method.class_weights == "balanced" else np.ones(shared.classes)
        self.weights = torch.as_tensor(self.class_weights, dtype=torch.float32, device=shared.device)

    def _fit_target(self, learned: np.ndarray) -> Target:
        hidden = self.shared.clips.hidden
        assert hidden is not None
        return Target(self.shared.method.mask_target, hidden.__getitem__, learned, self.seed)

    def _masks(self, rows: np.ndarray, epoch: int) -> list[np.ndarray]:
        return [span_mask(int(self.shared.lengths[row]), (self.seed, epoch, int(row))) for row in rows]

    def weigh(self, rows: np.ndarray, epoch: int) -> tuple[float, float]:
        labels = self.shared.labels[rows]
        weight = float(self.class_weights[labels[labels != UNLABELLED]].sum())
        return weight, float(sum(mask.sum() for mask in self._masks(rows, epoch))) if self.target else 0.0

    def parts(self, rows: np.ndarray) -> list[np.ndarray]:
        return self.shared.parts(rows)

    def peak(self, name: str, rate: float) -> float:
        return min(rate, HEAD_RATE) if name.startswith("head.") else rate

    def penalty(self) -> torch.Tensor:
        """The probe's own L2 penalty."""
        return self.head.weight.square().sum() / (2 * STRENGTH * len(self.part.train))

    def terms(self, objective: nn.Module, rows: np.ndarray, epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
        inputs, lengths = self.shared.load(rows)
        labels = torch.as_tensor(self.shared.labels[rows], device=inputs.device)
        labelled = torch.nonzero(labels != UNLABELLED)[:, 0]
        # Of several devices, one without a label still takes part, with a clip that counts for nothing.
        whole = labelled if len(labelled) else torch.arange(1, device=inputs.device)
        masks = self._masks(rows, epoch) if self.target else None
        mask = None
        if masks:
            padded = np.zeros(inputs.shape[:2], bool)
            for number, one in enumerate(masks):
                padded[number, : len(one)] = one
            mask = torch.from_numpy(padded).to(inputs.device)
        logits, predicted = objective(inputs, lengths, whole, mask)
        label_loss = nn.functional.cross_entropy(
            logits.float(),
            labels[whole],
            self.weights,
            reduction="sum",
            ignore_index=UNLABELLED,
            label_smoothing=self.shared.method.label_smoothing,
        )
        if not self.target or not masks or predicted is None:
            return label_loss, label_loss.new_zeros(())
        wanted = torch.cat([self.target.of(int(row))[one] for row, one in zip(rows, masks, strict=True)])
        return label_loss, self.target.loss(predicted.float(), wanted.to(inputs.device))

    def development_loss(self) -> float:
        """Mean cross-entropy of the development part, without masks."""
        rows = self.part.develop
        pooled = self.shared.pool(self.objective.body, rows, (self.objective.body.last,))[0]
        labels = torch.as_tensor(self.shared.labels[rows], device=pooled.device)
        with torch.no_grad():
            return float(nn.functional.cross_entropy(self.head(pooled), labels))


def _mean_frame(inputs: list[torch.Tensor], rows: np.ndarray) -> torch.Tensor:
    total = sum(inputs[row].float().sum(0) for row in rows)
    return torch.as_tensor(total) / sum(len(inputs[row]) for row in rows)
