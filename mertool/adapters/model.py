"""What one adapter learns: the labels of its clips and what is hidden of all clips.

The head reads the mean over time of the last adapted block. It begins as the linear probe of the frozen
features (Kumar et al., 2022: a random head would first distort them) and is not kept.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from mertool.adapters.blocks import Body, mean_over_time
from mertool.adapters.masked_prediction import Target, span_mask
from mertool.probing.linear import STRENGTH, Probes

if TYPE_CHECKING:
    from mertool.adapters.adapter import Adaptation, Part

HEAD_RATE = 2e-4  # peak learning rate: the head begins at its optimum, and large steps only throw it off
UNLABELLED = -100  # the label of clips without one, which cross-entropy leaves out


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


class AdapterTask:
    """The objective of one adapter and its two losses (see loop.Task)."""

    def __init__(self, shared: "Adaptation", body: Body, part: "Part", learned: np.ndarray, seed: int):
        method = shared.method
        self.shared, self.part, self.seed = shared, part, seed
        self.mask_weight = method.mask_weight if shared.clips.hidden is not None else 0.0
        self.target = self._fit_target(learned) if self.mask_weight > 0 else None
        if self.target and not body.exact:
            # The encoder's own mask vector belongs to its input; here a hidden frame is an average one.
            body.fill.copy_(_mean_frame(shared.inputs, learned))
        head = shared.probe(shared.frozen[-1], part.train).to(shared.device)
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
        """The hidden frames (T,) of each row in that epoch; none at all without a target."""
        if self.target is None:
            return []
        return [span_mask(int(self.shared.lengths[row]), (self.seed, epoch, int(row))) for row in rows]

    def weigh(self, rows: np.ndarray, epoch: int) -> tuple[float, float]:
        labels = self.shared.labels[rows]
        weight = float(self.class_weights[labels[labels != UNLABELLED]].sum())
        return weight, float(sum(mask.sum() for mask in self._masks(rows, epoch)))

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
        masks = self._masks(rows, epoch)
        logits, predicted = objective(inputs, lengths, whole, _padded(masks, inputs) if masks else None)
        label_loss = nn.functional.cross_entropy(
            logits.float(),
            labels[whole],
            self.weights,
            reduction="sum",
            ignore_index=UNLABELLED,
            label_smoothing=self.shared.method.label_smoothing,
        )
        if self.target is None:
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


def _padded(masks: list[np.ndarray], inputs: torch.Tensor) -> torch.Tensor:
    """(B, T): masks (t,) of clips as those of their padded batch."""
    padded = np.zeros(inputs.shape[:2], bool)
    for number, one in enumerate(masks):
        padded[number, : len(one)] = one
    return torch.from_numpy(padded).to(inputs.device)


def _mean_frame(inputs: list[torch.Tensor], rows: np.ndarray) -> torch.Tensor:
    total = sum(inputs[row].float().sum(0) for row in rows)
    return torch.as_tensor(total) / sum(len(inputs[row]) for row in rows)
