"""Stage `finetune`: adapters on the chosen layers of a speech encoder, by cross-entropy on labelled clips.

One adapter is trained per fold, without that fold's clips, and one (`final`) on all. So features of a
training clip can come from an adapter that never saw its label, and the score reported here is of
held-out clips. The head reads the mean over time of the last adapted layer; it begins as the linear probe
of the frozen features (Kumar et al., 2022: a random head would first distort them) and is not kept.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mertool import encoders, peft_methods, registry
from mertool.devices import resolve_device, seed_everything
from mertool.encoders.blocks import drop_above, tap
from mertool.encoders.speech import MOST_SECONDS
from mertool.engine import decode
from mertool.engine.plan import WorkItem, item_digest
from mertool.errors import ClipError, MertoolError
from mertool.features import SAMPLE_RATE, format_layers, parse_layers
from mertool.manifest import EMOTIONS, Manifest
from mertool.metrics import paired_bootstrap, score_json
from mertool.runs import Run, make_key, new_run, reuse
from mertool.training.examples import Examples, keep, labelled_examples
from mertool.training.folds import make_folds
from mertool.training.linear import STRENGTH, Probes, fit_probes

ADAPTERS = "adapters"


@dataclass(frozen=True)
class FinetuneOptions:
    """What to adapt and how.

    encoder: table name, hub id or folder. layers: blocks to adapt, counted from 1. method: a file of
    mertool/peft_methods. size: bottleneck width or rank; None is the method's default.
    """

    encoder: str
    layers: str
    method: str = "bottleneck"
    size: int | None = None
    folds: int = 5
    epochs: int = 10
    batch: int = 8
    learning_rate: float = 5e-4
    weight_decay: float = 1e-4
    seed: int = 0
    device: str = "auto"
    workers: int | None = None
    clip_timeout: float = 120.0
    classes: tuple[str, ...] = EMOTIONS
    overwrite: bool = False

    def __post_init__(self) -> None:
        registry.check(peft_methods.PACKAGE, "PEFT method", self.method)
        if self.epochs < 1 or self.batch < 1 or (self.size is not None and self.size < 1):
            raise MertoolError("--epochs, --batch and --size must be at least 1")
        if not 0 < self.learning_rate < 1:
            raise MertoolError(f"learning rate {self.learning_rate:g}: give a number between 0 and 1")


def finetune(
    manifest: Manifest, output: Path, options: FinetuneOptions, progress: Callable[[int, int], None]
) -> tuple[Run, bool]:
    """Train the adapters; the run, and whether it was there already."""
    device = resolve_device(options.device)
    source = encoders.find(options.encoder, "audio")
    weights = source.digest()
    blocks = encoders.count_layers(source)
    layers = parse_layers(options.layers, blocks)
    if min(layers) < 1:
        raise MertoolError(f"layer 0 is the embedding and cannot be adapted: give --layers within 1 to {blocks}")
    examples = labelled_examples(manifest, options.classes)
    by_id = {clip.clip: clip for clip in manifest.clips}
    items = [WorkItem(by_id[clip], item_digest(by_id[clip], "audio")) for clip in examples.clips]
    free = ("device", "workers", "clip_timeout", "overwrite", "encoder")
    key = make_key(
        "finetune",
        {k: v for k, v in asdict(options).items() if k not in free},
        {"weights": weights, "clips": [item.digest for item in items], "manifest": manifest.digest()},
    )
    if found := reuse(output, "finetune", key, options.overwrite):
        return found, True
    make_folds(examples, options.folds, options.seed)  # faults of the labels show before the long work
    encoder = encoders.load("audio", source, device, torch.float32)
    if not hasattr(encoder, "standardise"):
        raise MertoolError(f"{source.name} takes spectrograms: finetune adapts encoders of waveforms")
    waves, examples, skipped = _read_waves(items, examples, encoder, options)
    folds = make_folds(examples, options.folds, options.seed)
    with new_run(
        output,
        "finetune",
        key,
        asdict(options),
        seed=options.seed,
        classes=list(options.classes),
        encoder={**source.to_json(), "weights": weights},
        layers=list(layers),
        folds=folds.to_json(examples),
        adapter_of_clip={clip: f"fold{fold}" for clip, fold in folds.to_json(examples).items()},
    ) as draft:
        trainer = _Trainer(encoder, layers, waves, examples, options, device)
        jobs = [(f"fold{fold}", folds.train(fold), folds.held_out(fold)) for fold in range(folds.count)]
        jobs.append((peft_methods.FINAL, np.arange(len(examples)), np.arange(0)))
        frozen, adapted = np.zeros_like(examples.labels), np.zeros_like(examples.labels)
        losses = {}
        for number, (name, train, held_out) in enumerate(jobs):
            step = partial(_step, progress, number * options.epochs, len(jobs) * options.epochs)
            frozen[held_out], adapted[held_out], losses[name] = trainer.train(
                name, train, held_out, draft.folder / ADAPTERS, step
            )
        draft.metrics.update(
            {
                "clips": len(examples),
                "skipped": skipped,
                "folds": folds.kind,
                "method": options.method,
                "layers": format_layers(layers),
                "trainable": trainer.trainable,
                "parameters": trainer.parameters,
                **_compare(examples.labels, frozen, adapted, options),
                "losses": losses,
            }
        )
        from mertool.plots import curves

        curves(draft.folder / "losses", losses, "cross-entropy", f"{options.method} on layers {format_layers(layers)}")
    return Run.read(output, "finetune"), False


def _compare(labels: np.ndarray, frozen: np.ndarray, adapted: np.ndarray, options: FinetuneOptions) -> dict[str, Any]:
    """Scores of held-out clips before and after adaptation, and the paired difference."""
    classes = len(options.classes)
    scores: dict[str, Any] = {
        name: score_json(labels, guess, classes, options.seed)
        for name, guess in (("frozen", frozen), ("adapted", adapted))
    }
    return {**scores, "gain": paired_bootstrap(labels, frozen, adapted, classes, options.seed)}


def _step(progress: Callable[[int, int], None], before: int, total: int, epoch: int) -> None:
    progress(before + epoch, total)


def _read_waves(
    items: list[WorkItem], examples: Examples, encoder: Any, options: FinetuneOptions
) -> tuple[list[np.ndarray], Examples, dict[str, str]]:
    """The sound of all clips; clips without any are left out and named with their reason."""
    waves, readable, skipped = [], [], {}
    with decode.Decoders(decode.Limits(options.workers, options.clip_timeout)) as decoders:
        found = {item.clip.clip: decoded for item, decoded in decoders.read(items, decode.decode_audio)}
    for item in items:
        decoded = found.pop(item.clip.clip)
        if not isinstance(decoded, ClipError) and encoder.frames(len(decoded.content)) < 1:
            decoded = ClipError("too_short")
        readable.append(not isinstance(decoded, ClipError))
        if isinstance(decoded, ClipError):
            skipped[item.clip.clip] = decoded.reason
        else:
            # Attention grows with the square of the length; half a minute shows the emotion.
            waves.append(decoded.content[: MOST_SECONDS * SAMPLE_RATE])
    if not waves:
        reasons = ", ".join(sorted(set(skipped.values())))
        raise MertoolError(f"none of the {len(items)} labelled clips has readable sound ({reasons})")
    return waves, keep(examples, np.array(readable)), skipped


class _Head(nn.Module):
    """A probe of pooled features (B, D) that goes on learning; its standardisation stays."""

    def __init__(self, probes: Probes):
        super().__init__()
        self.mean, self.scale = probes.mean[0], probes.scale[0]
        self.weight, self.bias = nn.Parameter(probes.weight[0].clone()), nn.Parameter(probes.bias[0].clone())

    def penalty(self) -> torch.Tensor:
        """The probe's own L2 penalty, times the number of training clips."""
        return self.weight.square().sum() / (2 * STRENGTH)

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        return (pooled - self.mean) * self.scale @ self.weight + self.bias


class _Trainer:
    """Holds the frozen encoder and what its convolutional front end makes of every clip.

    The front end is frozen and has no dropout, so its output is computed once; masks are those of the
    samples, as the encoder would have seen them.
    """

    def __init__(
        self,
        encoder: Any,
        layers: tuple[int, ...],
        waves: list[np.ndarray],
        examples: Examples,
        options: FinetuneOptions,
        device: torch.device,
    ):
        self.layers, self.options, self.device = layers, options, device
        self.labels = torch.as_tensor(examples.labels, device=device)
        self.encoder = encoder
        self.parameters = sum(p.numel() for p in self.encoder.model.parameters())
        self.trainable = 0
        self.samples = [len(wave) for wave in waves]
        with torch.inference_mode():
            prepared = (self.encoder.standardise(wave)[None].to(device) for wave in waves)
            self.fronts = [self.encoder.model.feature_extractor(wave)[0].clone().cpu() for wave in prepared]
        self.encoder.model.feature_extractor = nn.Identity()
        drop_above(self.encoder.blocks, max(layers))
        self.frozen = self._pool_all(self.encoder)

    def train(
        self, name: str, train: np.ndarray, held_out: np.ndarray, folder: Path, progress: Callable[[int], None]
    ) -> tuple[np.ndarray, np.ndarray, list[float]]:
        """Train adapter `name` on rows `train` and save it.

        Returns the classes of rows `held_out` before and after, and the mean loss by epoch.
        """
        options = self.options
        seed_everything(options.seed)
        encoder = deepcopy(self.encoder)
        size = options.size or registry.load(peft_methods.PACKAGE, "PEFT method", options.method).SIZE
        model = peft_methods.add_adapter(encoder.model, encoder.blocks, self.layers, options.method, size)
        model.to(self.device)
        adapters = [p for p in model.parameters() if p.requires_grad]
        self.trainable = sum(p.numel() for p in adapters)
        head = self._probe(train).to(self.device)
        before = self._guess(head, self.frozen[held_out])
        losses = self._fit(encoder, head, [*adapters, *head.parameters()], train, progress)
        after = self._guess(head, self._pool_all(encoder, held_out))
        peft_methods.save_adapter(model, folder, name)
        return before, after, losses

    def _fit(
        self,
        encoder: Any,
        head: _Head,
        parameters: list[nn.Parameter],
        train: np.ndarray,
        progress: Callable[[int], None],
    ) -> list[float]:
        options = self.options
        optimizer = torch.optim.AdamW(parameters, lr=options.learning_rate, weight_decay=options.weight_decay)
        steps = -(-len(train) // options.batch)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.learning_rate, options.epochs * steps)
        order = np.random.default_rng(options.seed)
        losses = []
        # The encoder stays in eval mode: dropout in its frozen blocks would train adapters for features
        # that extraction never sees.
        for epoch in range(options.epochs):
            total = 0.0
            for batch in np.array_split(order.permutation(train), steps):
                optimizer.zero_grad()
                loss = self._backward(encoder, head, batch)
                (head.penalty() / len(train)).backward()
                if not np.isfinite(loss):
                    raise MertoolError(f"the loss became {loss} in epoch {epoch + 1}: give a smaller --learning-rate")
                nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
                schedule.step()
                total += loss * len(batch)
            losses.append(total / len(train))
            progress(epoch + 1)
        return losses

    def _backward(self, encoder: Any, head: nn.Module, batch: np.ndarray) -> float:
        """Mean loss of a batch; its gradient is gathered over parts the encoder can take together."""
        total = 0.0
        for rows in self._groups(batch):
            logits = head(self._pool(encoder, rows))
            loss = nn.functional.cross_entropy(logits, self.labels[rows], reduction="sum") / len(batch)
            loss.backward()
            total += float(loss.detach())
        return total

    def _groups(self, rows: np.ndarray) -> list[np.ndarray]:
        """Rows that may share a forward pass: sorted by length and padded, or one by one without padding."""
        ordered = np.array(sorted(rows, key=lambda row: self.samples[row]), np.int64)
        count = -(-len(rows) // self.options.batch) if self.encoder.pads else len(rows)
        return [part for part in np.array_split(ordered, max(1, count)) if len(part)]

    def _pool(self, encoder: Any, rows: np.ndarray) -> torch.Tensor:
        """Mean over the real frames of the last adapted layer, (B, D)."""
        fronts = nn.utils.rnn.pad_sequence([self.fronts[row].T for row in rows], batch_first=True).transpose(1, 2)
        samples = torch.tensor([self.samples[row] for row in rows])
        mask = torch.arange(int(samples.max()))[None] < samples[:, None]
        options = {} if mask.all() else {"attention_mask": mask.long().to(self.device)}
        last = max(self.layers)
        with tap(encoder.blocks, [last]) as found:
            encoder.model(fronts.to(self.device), **options)
        hidden = found[last]
        frames = torch.tensor([self.fronts[row].shape[1] for row in rows], device=self.device)
        real = torch.arange(hidden.shape[1], device=self.device)[None] < frames[:, None]
        return (hidden * real[..., None]).sum(1) / frames[:, None]

    @torch.inference_mode()
    def _pool_all(self, encoder: Any, rows: np.ndarray | None = None) -> torch.Tensor:
        """Pooled features (N, D) of `rows` (default: all), in their order."""
        chosen = np.arange(len(self.fronts)) if rows is None else rows
        pooled = torch.zeros(len(self.fronts), encoder.channels, device=self.device)
        for group in self._groups(chosen):
            pooled[group] = self._pool(encoder, group)
        return pooled[chosen]

    def _probe(self, train: np.ndarray) -> _Head:
        """The linear probe of the frozen features of rows `train`."""
        trains = torch.zeros(1, len(self.fronts), device=self.device)
        trains[0, train] = 1
        frozen = self.frozen.clone()  # out of inference mode
        return _Head(fit_probes(frozen, self.labels, trains, len(self.options.classes)))

    @torch.inference_mode()
    def _guess(self, head: nn.Module, pooled: torch.Tensor) -> np.ndarray:
        return head(pooled).argmax(1).cpu().numpy()
