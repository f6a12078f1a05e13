"""One adapter: fresh in its blocks, trained on one part of the clips, judged on another.

What is trained, and on which losses, is in objective.py.
"""

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from mertool.adapters import methods as peft_methods
from mertool.adapters.blocks import Body, mean_over_time
from mertool.adapters.data import Clips
from mertool.adapters.model import UNLABELLED, AdapterTask, Head
from mertool.adapters.trainer import History, Rows, Schedule, fit
from mertool.devices import seed_everything
from mertool.encoders.hidden_states import truncate_after
from mertool.errors import MertoolError, check_choice
from mertool.learning.checkpoint import Checkpoint
from mertool.learning.cka import linear_cka
from mertool.options.finetune import CLASS_WEIGHTS
from mertool.probing.linear import fit_probes

# Frames of one forward pass: on a CPU little padding and little memory, on a GPU as much as it takes to fill it.
AT_ONCE = {"cpu": 1600}
AT_ONCE_ON_GPU = 16_000
MAX_OFFSET_CLIPS = 500  # of which an adapter's mean shift is taken; clips differ little in it


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
        check_choice("class weights", self.class_weights, CLASS_WEIGHTS)
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
        task = AdapterTask(self, body, part, np.concatenate([part.train, unlabelled]), schedule.seed)
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
        rows = np.random.default_rng(seed).permutation(learned)[:MAX_OFFSET_CLIPS]
        layers = tuple(range(body.first, self.encoder.layers + 1))
        means = []
        for one in (self.body, body):
            one.blocks.extend(self.above)
            means.append(self.pool(one, rows, layers).mean(1))
            truncate_after(one.blocks, body.last)
        shift = torch.zeros(self.encoder.layers + 1, self.encoder.channels, device=self.device)
        shift[body.first :] = means[1] - means[0]
        return shift

    def _judge(self, body: Body, head: Head, part: Part, history: History, trainable: int) -> Trained:
        labelled = np.flatnonzero(self.labels != UNLABELLED)
        adapted = self.pool(body, labelled)
        before: list[np.ndarray] = []
        after: list[np.ndarray] = []
        cka = []
        for row in range(len(self.window)):
            both = (self.frozen[row], adapted[row])
            for features, found in zip(both, (before, after), strict=True):
                probe = self.probe(features, part.train)
                found.append(probe(features[part.held_out]).detach().cpu().numpy())
            judged = (features[part.held_out] for features in both)
            cka.append(linear_cka(*judged) if len(part.held_out) > 1 else float("nan"))
        with torch.no_grad():
            logits = head(adapted[-1][part.held_out]).cpu().numpy()
        return Trained(before[-1], logits, np.stack(before), np.stack(after), np.array(cka), history, trainable)

    def probe(self, features: torch.Tensor, train: np.ndarray) -> Head:
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
