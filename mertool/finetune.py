"""Stage `finetune`: adapters on the chosen layers of a speech encoder, by cross-entropy on labelled clips.

One adapter is trained per fold, without that fold's clips, and one (`final`) on all. So features of a
training clip can come from an adapter that never saw its label, and the score reported here is of
held-out clips. The head reads the mean over time of the last adapted layer; it is not kept.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mertool import encoders, peft_methods, registry
from mertool.devices import resolve_device, seed_everything, worker_count
from mertool.encoders.blocks import drop_above, tap
from mertool.encoders.speech import pad
from mertool.engine import decode
from mertool.engine.plan import WorkItem, item_digest
from mertool.errors import ClipError, MertoolError
from mertool.features import format_layers, parse_layers
from mertool.manifest import EMOTIONS, Manifest
from mertool.metrics import score
from mertool.runs import Run, make_key, new_run, reuse
from mertool.training.examples import Examples, keep, labelled_examples
from mertool.training.folds import make_folds

ADAPTERS = "adapters"
LEAST_SAMPLES = 400  # one frame of the convolutional front end


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
    layers = parse_layers(options.layers, encoders.count_layers(source))
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
    waves, examples, skipped = _read_waves(items, examples, options)
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
        trainer = _Trainer(source, layers, waves, examples, options, device)
        jobs = [(f"fold{fold}", folds.train(fold), folds.held_out(fold)) for fold in range(folds.count)]
        jobs.append((peft_methods.FINAL, np.arange(len(examples)), np.arange(0)))
        total = len(jobs) * options.epochs
        guess, losses = np.zeros(len(examples), np.int64), {}
        for number, (name, train, held_out) in enumerate(jobs):
            step = partial(_step, progress, number * options.epochs, total)
            losses[name], answers = trainer.train(name, train, held_out, draft.folder, step)
            guess[held_out] = answers
        draft.metrics.update(
            {
                "clips": len(examples),
                "skipped": skipped,
                "folds": folds.kind,
                "method": options.method,
                "layers": format_layers(layers),
                "trainable": trainer.trainable,
                "parameters": trainer.parameters,
                "held_out": {
                    name: value.to_json()
                    for name, value in score(examples.labels, guess, len(options.classes), options.seed).items()
                },
                "losses": losses,
            }
        )
        from mertool.plots import curves

        curves(draft.folder / "losses", losses, "cross-entropy", f"{options.method} on layers {format_layers(layers)}")
    return Run.read(output, "finetune"), False


def _step(progress: Callable[[int, int], None], before: int, total: int, epoch: int) -> None:
    progress(before + epoch, total)


def _read_waves(
    items: list[WorkItem], examples: Examples, options: FinetuneOptions
) -> tuple[list[np.ndarray], Examples, dict[str, str]]:
    """The sound of all clips; clips without any are left out and named with their reason."""
    waves, readable, skipped = [], [], {}
    outcomes = decode.decode_in_processes(
        items, decode.decode_audio, worker_count(options.workers), options.clip_timeout
    )
    for item, decoded in outcomes:
        readable.append(not isinstance(decoded, ClipError))
        if isinstance(decoded, ClipError):
            skipped[item.clip.clip] = decoded.reason
        else:
            waves.append(decoded.content)
    if not waves:
        raise MertoolError(
            f"none of the {len(items)} labelled clips has readable sound ({sorted(set(skipped.values()))})"
        )
    return waves, keep(examples, np.array(readable)), skipped


class _Head(nn.Module):
    """Mean over the real frames, layer norm, linear: (B, T, D), frames per clip (B,) -> (B, C)."""

    def __init__(self, channels: int, classes: int):
        super().__init__()
        self.norm, self.classify = nn.LayerNorm(channels), nn.Linear(channels, classes)

    def forward(self, hidden: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
        real = (torch.arange(hidden.shape[1], device=hidden.device)[None] < frames[:, None])[..., None]
        return self.classify(self.norm((hidden * real).sum(1) / frames[:, None]))


class _Trainer:
    """Loads the frozen encoder once and trains one fresh adapter after the other on it."""

    def __init__(
        self,
        source: encoders.Source,
        layers: tuple[int, ...],
        waves: list[np.ndarray],
        examples: Examples,
        options: FinetuneOptions,
        device: torch.device,
    ):
        self.source, self.layers, self.options, self.device = source, layers, options, device
        self.labels = torch.as_tensor(examples.labels, device=device)
        self.waves = waves
        self.trainable = self.parameters = 0

    def train(
        self, name: str, train: np.ndarray, held_out: np.ndarray, folder: Path, progress: Callable[[int], None]
    ) -> tuple[list[float], np.ndarray]:
        """Train adapter `name` on rows `train` and save it; mean loss by epoch, classes of rows `held_out`."""
        seed_everything(self.options.seed)
        encoder = encoders.load("audio", self.source, self.device, torch.float32)
        if not hasattr(encoder, "prepare"):
            raise MertoolError(f"{self.source.name} takes spectrograms: finetune adapts encoders of waveforms")
        self._samples = [encoder.prepare(wave) for wave in self.waves]
        size = self.options.size or registry.load(peft_methods.PACKAGE, "PEFT method", self.options.method).SIZE
        self.parameters = sum(p.numel() for p in encoder.model.parameters())
        model = peft_methods.add_adapter(encoder.model, encoder.blocks, self.layers, self.options.method, size)
        model.to(self.device)
        adapters = [p for p in model.parameters() if p.requires_grad]
        self.trainable = sum(p.numel() for p in adapters)
        drop_above(encoder.blocks, max(self.layers))
        head = _Head(encoder.channels, len(self.options.classes)).to(self.device)
        options = self.options
        optimizer = torch.optim.AdamW(
            [*adapters, *head.parameters()], lr=options.learning_rate, weight_decay=options.weight_decay
        )
        steps = -(-len(train) // options.batch)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.learning_rate, options.epochs * steps)
        order = np.random.default_rng(options.seed)
        losses = []
        for epoch in range(options.epochs):
            encoder.model.train()
            total = 0.0
            for batch in np.array_split(order.permutation(train), steps):
                optimizer.zero_grad()
                loss = self._backward(encoder, head, batch)
                if not np.isfinite(loss):
                    raise MertoolError(f"the loss became {loss} in epoch {epoch + 1}: give a smaller --learning-rate")
                nn.utils.clip_grad_norm_([*adapters, *head.parameters()], 1.0)
                optimizer.step()
                schedule.step()
                total += loss * len(batch)
            losses.append(total / len(train))
            progress(epoch + 1)
        encoder.model.eval()
        with torch.inference_mode():
            groups = self._groups(encoder, held_out)
            answers = {row: guess for group in groups for row, guess in self._guess(encoder, head, group)}
        peft_methods.save_adapter(model, folder / ADAPTERS, name)
        return losses, np.array([answers[row] for row in held_out], np.int64)

    def _backward(self, encoder: Any, head: nn.Module, batch: np.ndarray) -> float:
        """Mean loss of a batch; its gradient is gathered over parts the encoder can take together."""
        total = 0.0
        for group in self._groups(encoder, batch):
            logits = self._logits(encoder, head, group)
            loss = nn.functional.cross_entropy(logits, self.labels[group], reduction="sum") / len(batch)
            loss.backward()
            total += float(loss.detach())
        return total

    def _groups(self, encoder: Any, rows: np.ndarray) -> list[np.ndarray]:
        """Rows that may share a forward pass: sorted by length and padded, or one by one without padding."""
        ordered = np.array(sorted(rows, key=lambda row: len(self._samples[row])), np.int64)
        count = -(-len(rows) // self.options.batch) if encoder.pads else len(rows)
        return [part for part in np.array_split(ordered, max(1, count)) if len(part)]

    def _logits(self, encoder: Any, head: nn.Module, rows: np.ndarray) -> torch.Tensor:
        padded, mask = pad([self._samples[row] for row in rows])
        options = {} if mask.all() else {"attention_mask": mask.to(self.device)}
        frames = torch.tensor([encoder.frames(len(self._samples[row])) for row in rows], device=self.device)
        last = max(self.layers)
        with tap(encoder.blocks, [last]) as found:
            encoder.model(padded.to(self.device), **options)
        return head(found[last], frames)

    def _guess(self, encoder: Any, head: nn.Module, rows: np.ndarray) -> list[tuple[int, int]]:
        logits = self._logits(encoder, head, rows)
        return list(zip(rows.tolist(), logits.argmax(1).tolist(), strict=True))
