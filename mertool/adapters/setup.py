"""Preparation of training: the state that the adapters of one encoder share, and a new adapter with its heads."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from mertool.adapters import methods as peft_methods
from mertool.adapters.blocks import AdaptableBlocks
from mertool.adapters.cross_validation import AdapterSplit
from mertool.adapters.data import AdaptationData
from mertool.adapters.inputs import BlockInputs
from mertool.adapters.masked_prediction import ReconstructionTarget
from mertool.adapters.model import AdapterModel, ClassificationHead, side_by_side
from mertool.learning.labelled_clips import IGNORE_INDEX


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """Method, loss and optimization of an adapter. `FinetuneOptions` checks the values.

    Attributes:
        method: PEFT method, a file of mertool/adapters/methods.
        size: Its width, rank or number of vectors; None for a method without a size.
        layers: Adapted blocks, counted from 1.
        mask_weight: Weight of the reconstruction loss beside the cross-entropy.
        mask_target: Target of the reconstruction (see masked_prediction.py).
        class_weights: `balanced` weights the cross-entropy by inverse class frequency, `none` does not.
        label_smoothing: Of the cross-entropy, from 0 to below 1.
        epochs: Number of epochs.
        batch_size: Labelled clips per step, over all processes.
        learning_rate: Of the adapter, after the warm-up.
        weight_decay: Of the adapter.
        seed: Of initialization, batches and masks.
    """

    method: str
    size: int | None
    layers: tuple[int, ...]
    mask_weight: float = 0.1
    mask_target: str = "units"
    class_weights: str = "none"
    label_smoothing: float = 0.1
    epochs: int = 10
    batch_size: int = 16
    learning_rate: float = 5e-4
    weight_decay: float = 0.01
    seed: int = 0

    def count_steps(self, split: AdapterSplit) -> int:
        """Return the number of training steps on `split`."""
        return self.epochs * -(-len(split.train) // self.batch_size)


@dataclass(frozen=True, kw_only=True)
class AdapterSetup:
    """State that all adapters of one encoder share: frozen blocks, clips and configuration. Made by `prepare`.

    Attributes:
        config: Method, loss and optimization.
        blocks: The frozen blocks; each adapter gets a copy.
        upper_blocks: The blocks above, which only the mean offset of an adapter needs.
        inputs: Inputs of the blocks for all clips.
        labels: Class index (N,) of each clip: labelled clips first, then those with IGNORE_INDEX.
        reconstruction_frames: Frames (T, M) of each clip that masked frames are reconstructed as; None without masks.
        n_classes: Number of classes.
        frozen_features: Means over time (W, n, D) of the frozen blocks from the first adapted one to the last, for the
            n labelled clips.
        encoder_parameters: Number of parameters of the whole encoder.
        encoder_layers: Number of blocks of the whole encoder.
        accelerator: Device, precision and processes.
    """

    config: AdapterConfig
    blocks: AdaptableBlocks
    upper_blocks: tuple[nn.Module, ...]
    inputs: BlockInputs
    labels: np.ndarray
    reconstruction_frames: Sequence[np.ndarray] | None
    n_classes: int
    frozen_features: torch.Tensor
    encoder_parameters: int
    encoder_layers: int
    accelerator: Accelerator

    @property
    def labelled_rows(self) -> np.ndarray:
        """Rows (n,) of the labelled clips, the first n."""
        return np.flatnonzero(self.labels != IGNORE_INDEX)

    @property
    def unlabelled_rows(self) -> np.ndarray:
        """Rows of the other clips."""
        return np.flatnonzero(self.labels == IGNORE_INDEX)

    @property
    def window_features(self) -> torch.Tensor:
        """The frozen features of all blocks side by side (n, W D)."""
        return side_by_side(self.frozen_features)


def prepare(
    encoder: Any,
    data: AdaptationData,
    labels: np.ndarray,
    *,
    n_classes: int,
    config: AdapterConfig,
    from_frontend: bool,
    accelerator: Accelerator,
) -> AdapterSetup:
    """Strip `encoder` down to the blocks that training runs (in place), and compute the frozen features of the clips.

    `labels` (N,) are those of the clips of `data`: labelled clips first, then unlabelled ones with IGNORE_INDEX.
    """
    encoder_parameters = sum(parameter.numel() for parameter in encoder.model.parameters())
    upper_blocks = tuple(encoder.blocks[max(config.layers) :])
    blocks = AdaptableBlocks.from_encoder(encoder, config.layers, from_frontend=from_frontend)
    inputs = BlockInputs(
        frames=data.inputs[0 if from_frontend else blocks.first - 1],
        lengths=data.lengths(),
        channels=encoder.channels,
        supports_padding=blocks.supports_padding,
        accelerator=accelerator,
    )
    return AdapterSetup(
        config=config,
        blocks=blocks,
        upper_blocks=upper_blocks,
        inputs=inputs,
        labels=labels,
        reconstruction_frames=data.reconstruction_frames,
        n_classes=n_classes,
        frozen_features=inputs.mean_pool(blocks, np.flatnonzero(labels != IGNORE_INDEX), blocks.layers),
        encoder_parameters=encoder_parameters,
        encoder_layers=encoder.num_layers,
        accelerator=accelerator,
    )


@dataclass
class TrainingHistory:
    """Losses by epoch, as metrics.json holds them.

    Attributes:
        label_loss: Mean cross-entropy of the training clips.
        mask_loss: Mean reconstruction loss of masked frames, 0 without masks.
    """

    label_loss: list[float] = field(default_factory=list)
    mask_loss: list[float] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """An adapter before, in or after training.

    Attributes:
        peft_model: The encoder with the adapter, as PEFT saves it.
        model: The blocks of the same encoder, with both heads.
        target: Target of the reconstruction loss; None without masks.
        class_weights: Weight (C,) of each class in the cross-entropy.
        history: Losses by epoch.
    """

    peft_model: Any
    model: AdapterModel
    target: ReconstructionTarget | None
    class_weights: np.ndarray
    history: TrainingHistory = field(default_factory=TrainingHistory)

    @property
    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """Parameters of the adapter and the heads that are trained, by name."""
        return {name: value for name, value in self.model.named_parameters() if value.requires_grad}


def new_adapter(setup: AdapterSetup, split: AdapterSplit) -> Adapter:
    """Add an untrained adapter to a copy of the frozen blocks, and make both heads for the clips of `split`."""
    config, device = setup.config, setup.accelerator.device
    blocks = deepcopy(setup.blocks)
    peft_model = peft_methods.add_adapter(
        blocks.model, blocks.blocks, config.layers, method=config.method, size=config.size
    )
    peft_model.to(device)
    target = _fit_target(setup, blocks, split)
    head = ClassificationHead.from_features(setup.window_features[split.train], setup.n_classes)
    reconstruction_head = nn.Linear(setup.inputs.channels, target.size).to(device) if target else None
    return Adapter(
        peft_model=peft_model,
        model=AdapterModel(blocks, head.to(device), reconstruction_head),
        target=target,
        class_weights=_class_weights(setup, split),
    )


def _fit_target(setup: AdapterSetup, blocks: AdaptableBlocks, split: AdapterSplit) -> ReconstructionTarget | None:
    """Fit the reconstruction target on the training clips and the unlabelled ones; None without masks."""
    config = setup.config
    if setup.reconstruction_frames is None or config.mask_weight == 0:
        return None
    rows = np.concatenate([split.train, setup.unlabelled_rows])
    if not blocks.from_frontend:
        # The encoder's own mask embedding belongs to its first block. Here a masked frame is an average one.
        blocks.mask_embedding.copy_(setup.inputs.mean_frame(rows))
    return ReconstructionTarget.fit(config.mask_target, setup.reconstruction_frames, rows, seed=config.seed)


def _class_weights(setup: AdapterSetup, split: AdapterSplit) -> np.ndarray:
    """Return the weight (C,) of each class, on average 1 over the training clips, and 0 for a class without any."""
    if setup.config.class_weights == "none":
        return np.ones(setup.n_classes)
    counts = np.bincount(setup.labels[split.train], minlength=setup.n_classes)
    # Label smoothing has a share of every class in the loss, so an absent class must not have a large weight.
    inverse = np.divide(len(split.train), counts, out=np.zeros(setup.n_classes), where=counts > 0)
    return inverse / np.count_nonzero(counts)
