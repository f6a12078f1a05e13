"""Comparison of trained adapters with the frozen encoder, on the clips that their training left out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mertool.adapters import methods as peft_methods
from mertool.adapters.blocks import AdaptableBlocks
from mertool.adapters.cross_validation import AdapterSplit, join_held_out
from mertool.adapters.layer_probes import FrozenProbes
from mertool.adapters.model import side_by_side
from mertool.adapters.setup import Adapter, AdapterSetup, TrainingHistory
from mertool.encoders.hidden_states import truncate_after
from mertool.learning.cka import linear_cka
from mertool.learning.folds import speaker_groups
from mertool.learning.labelled_clips import LabelledClips
from mertool.significance import adjust_by_holm, paired_test, score_json

# Systems that are scored: a probe of frozen features, the trained head, a new probe of adapted features, and the mean
# of the first two.
SYSTEMS = ("frozen", "adapted", "adapted_probe", "averaged")
MAX_OFFSET_CLIPS = 500  # enough for a mean: the offset varies little from clip to clip


@dataclass(frozen=True, kw_only=True)
class AdapterResult:
    """Outputs of one adapter for its H held-out clips, and how it was trained.

    Attributes:
        head_logits: Logits (H, C) of the trained classification head.
        frozen_logits: Logits (H, C) of a linear probe of all W blocks side by side, without the adapter; for the
            penalties of the probes see layer_probes.py.
        adapted_logits: The same with the adapter.
        frozen_layer_logits: Logits (W, H, C) of a linear probe of each block, without the adapter.
        adapted_layer_logits: The same with the adapter.
        cka: Linear CKA (W,) of each block's features without and with the adapter; NaN for fewer than two clips.
        history: Losses by epoch.
        n_trainable: Number of trained parameters of the adapter.
    """

    head_logits: np.ndarray
    frozen_logits: np.ndarray
    adapted_logits: np.ndarray
    frozen_layer_logits: np.ndarray
    adapted_layer_logits: np.ndarray
    cka: np.ndarray
    history: TrainingHistory
    n_trainable: int


def evaluate_adapter(
    setup: AdapterSetup, split: AdapterSplit, adapter: Adapter, frozen_probes: FrozenProbes
) -> AdapterResult:
    """Apply the trained head, and linear probes with and without the adapter, to the held-out clips."""
    blocks = adapter.model.blocks
    adapted = setup.inputs.mean_pool(blocks, setup.labelled_rows, blocks.layers)
    frozen_layer_logits, adapted_layer_logits = frozen_probes.layer_logits(split, adapted)
    frozen_logits, adapted_logits = frozen_probes.window_logits(split, adapted)
    with torch.no_grad():
        head_logits = adapter.model.head(side_by_side(adapted)[split.held_out]).cpu().numpy()
    # On held-out clips: on training clips any adapter changes the features more.
    pairs = zip(setup.frozen_features[:, split.held_out], adapted[:, split.held_out], strict=True)
    return AdapterResult(
        head_logits=head_logits,
        frozen_logits=frozen_logits,
        adapted_logits=adapted_logits,
        frozen_layer_logits=frozen_layer_logits,
        adapted_layer_logits=adapted_layer_logits,
        cka=np.array([linear_cka(*pair) if len(split.held_out) > 1 else float("nan") for pair in pairs]),
        history=adapter.history,
        n_trainable=peft_methods.count_trainable(adapter.peft_model),
    )


def measure_mean_offset(setup: AdapterSetup, split: AdapterSplit, adapter: Adapter) -> torch.Tensor:
    """Return the mean offset (layers + 1, D) of an adapter: the mean change of each layer's features by it.

    The mean is over the clips that the adapter was trained on, at most 500 of them.
    """
    rng = np.random.default_rng(setup.config.seed)
    rows = rng.permutation(split.train)[:MAX_OFFSET_CLIPS]
    offset = torch.zeros(setup.encoder_layers + 1, setup.inputs.channels, device=setup.accelerator.device)
    adapted, frozen = (_mean_features(setup, blocks, rows) for blocks in (adapter.model.blocks, setup.blocks))
    offset[setup.blocks.first :] = adapted - frozen
    return offset


def _mean_features(setup: AdapterSetup, blocks: AdaptableBlocks, rows: np.ndarray) -> torch.Tensor:
    """Return the mean over clips (layers, D) of the features of every layer from the first adapted block up."""
    layers = tuple(range(blocks.first, setup.encoder_layers + 1))
    # Training leaves out the blocks above, but later stages read their output too.
    blocks.blocks.extend(setup.upper_blocks)
    features = setup.inputs.mean_pool(blocks, rows, layers)
    truncate_after(blocks.blocks, blocks.last)
    return features.mean(1)


@dataclass(frozen=True, kw_only=True)
class HeldOutScorer:
    """Scores predictions for held-out clips, with intervals and paired tests.

    Attributes:
        examples: The labelled clips (N).
        n_classes: Number of classes.
    """

    examples: LabelledClips
    n_classes: int

    def score(self, logits: np.ndarray) -> dict[str, Any]:
        """Return the scores of logits (N, C), as metrics.json holds them."""
        return score_json(self.examples.labels, logits.argmax(-1), self.n_classes, groups=self._groups)

    def compare(self, first: np.ndarray, second: np.ndarray) -> dict[str, Any]:
        """Return the gain in WAF of the second logits (N, C) over the first, by a paired test."""
        return paired_test(
            self.examples.labels,
            first.argmax(-1),
            second.argmax(-1),
            n_classes=self.n_classes,
            groups=self._groups,
        )

    @property
    def _groups(self) -> np.ndarray | None:
        return speaker_groups(self.examples)


def score_adaptation(
    scorer: HeldOutScorer,
    splits: Sequence[AdapterSplit],
    results: Sequence[AdapterResult],
    *,
    layers: tuple[int, ...],
) -> dict[str, Any]:
    """Return the scores of all clips without and with adapters, and of a probe of each block.

    The systems are a probe of the frozen features, the trained head, a new probe of the adapted features, and the mean
    of the probabilities of the head and the frozen probe.
    """
    frozen = join_held_out(splits, [result.frozen_layer_logits for result in results])
    adapted = join_held_out(splits, [result.adapted_layer_logits for result in results])
    cka = np.mean([result.cka for result, split in zip(results, splits, strict=True) if len(split.held_out)], axis=0)
    probes: dict[str, dict[str, Any]] = {
        str(layer): {
            "frozen": scorer.score(frozen[index]),
            "adapted": scorer.score(adapted[index]),
            "gain": scorer.compare(frozen[index], adapted[index]),
            "cka": float(cka[index]),
        }
        for index, layer in enumerate(layers)
    }
    adjust_by_holm([probe["gain"] for probe in probes.values()])
    systems = held_out_probabilities(splits, results)
    gains = {name: scorer.compare(systems["frozen"], systems[name]) for name in SYSTEMS[1:]}
    adjust_by_holm(list(gains.values()))
    return {**{name: scorer.score(systems[name]) for name in SYSTEMS}, "gains": gains, "probes": probes}


def held_out_probabilities(splits: Sequence[AdapterSplit], results: Sequence[AdapterResult]) -> dict[str, np.ndarray]:
    """Return the probabilities (N, C) of each of `SYSTEMS` for all clips, by adapters that held them out."""
    logits = {name: [getattr(result, f"{name}_logits") for result in results] for name in ("frozen", "head", "adapted")}
    joined = {name: torch.from_numpy(join_held_out(splits, parts)) for name, parts in logits.items()}
    frozen, head, adapted = (joined[name].double().softmax(1).numpy() for name in logits)
    return dict(zip(SYSTEMS, (frozen, head, adapted, (frozen + head) / 2), strict=True))
