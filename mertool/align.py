"""Stage `align`: a visual encoder into the acoustic space, from clips without labels.

The anchor is the frozen audio of the same clip: u = mean over layers of the standardised, time-pooled
hidden states. The aligner maps the frames of the face to z_v in the same space and learns by symmetric
InfoNCE that a clip's own sound is nearer than other clips' (temperature learned). Labels are not read.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mertool.devices import resolve_device, seed_everything
from mertool.encoders.aligner import Aligner
from mertool.errors import MertoolError
from mertool.features import Recipe
from mertool.files import check_writable
from mertool.metrics import Interval
from mertool.runs import Run, make_key, new_run, reuse
from mertool.store import ClipFeatures, FeatureStore, write_store

LEAST_CLIPS = 8
DRAWS = 2000


@dataclass(frozen=True)
class AlignOptions:
    """width: channels inside the aligner. held_out: share of the clips kept for the retrieval scores."""

    width: int = 128
    epochs: int = 60
    batch: int = 256
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    held_out: float = 0.2
    seed: int = 0
    device: str = "auto"
    overwrite: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.held_out < 1:
            raise MertoolError(f"held-out share {self.held_out:g}: give a number between 0 and 1")
        if min(self.width, self.epochs) < 1 or self.batch < 2:
            raise MertoolError("--width and --epochs must be at least 1, --batch at least 2")


@dataclass(frozen=True)
class _Pairs:
    """Frames (T, channels) and acoustic vector (A,) of every clip that has both."""

    clips: list[str]
    frames: list[torch.Tensor]
    acoustic: torch.Tensor


def align(
    audio: Path, video: Path, output: Path, aligned: Path, options: AlignOptions, progress: Callable[[int, int], None]
) -> tuple[Run, bool]:
    """Train the aligner on the clips both stores hold, and write the aligned store of all video clips."""
    check_writable(aligned, audio, video)
    device = resolve_device(options.device)
    with FeatureStore(audio) as sound, FeatureStore(video) as sight:
        _check(sound, sight)
        key = make_key(
            "align",
            {k: v for k, v in asdict(options).items() if k not in ("device", "overwrite")},
            {"audio": [sound.fingerprint, sound.digests()], "video": [sight.fingerprint, sight.digests()]},
        )
        found = reuse(output, "align", key, options.overwrite)
        if not found:
            pairs = _read_pairs(sound, sight)
            facts = {"audio": sound.recipe.to_json(), "video": sight.recipe.to_json(), "origin": sight.origin}
            _train(pairs, output, key, facts, options, device, progress)
        run = found or Run.read(output, "align")
        if not found or not _is_fresh(aligned, run, sight):
            _write_aligned(aligned, run, sight, device)
    return run, found is not None


def info_nce(visual: torch.Tensor, acoustic: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Symmetric InfoNCE of matched rows (B, A), (B, A); `scale` is the log of the inverse temperature."""
    similar = nn.functional.normalize(visual, dim=1) @ nn.functional.normalize(acoustic, dim=1).T
    logits = similar * scale.clamp(max=np.log(100)).exp()
    target = torch.arange(len(logits), device=logits.device)
    return (nn.functional.cross_entropy(logits, target) + nn.functional.cross_entropy(logits.T, target)) / 2


def retrieval(visual: np.ndarray, acoustic: np.ndarray, seed: int = 0) -> dict[str, Any]:
    """Recall at 1 and 5 both ways with intervals over queries, and chance, for matched rows (N, A)."""
    a = visual / np.linalg.norm(visual, axis=1, keepdims=True)
    b = acoustic / np.linalg.norm(acoustic, axis=1, keepdims=True)
    similar = a @ b.T
    rng = np.random.default_rng(seed)
    draws = rng.integers(0, len(a), (DRAWS, len(a)))
    scores: dict[str, Any] = {"clips": len(a)}
    for way, matrix in (("video_to_audio", similar), ("audio_to_video", similar.T)):
        own = np.diagonal(matrix)[:, None]
        rank = (matrix > own).sum(1) + 1
        scores[way] = {"median_rank": float(np.median(rank))}
        for most in (1, 5):
            hits = (rank <= most).astype(float)
            low, high = np.quantile(hits[draws].mean(1), [0.025, 0.975])
            scores[way][f"recall@{most}"] = Interval(float(hits.mean()), float(low), float(high)).to_json()
    scores["chance"] = {f"recall@{most}": min(1.0, most / len(a)) for most in (1, 5)}
    return scores


def _check(sound: FeatureStore, sight: FeatureStore) -> None:
    if sound.recipe.modality != "audio" or not sound.pooled:
        raise MertoolError(f"--audio {sound.path}: a pooled store of `extract audio` is needed")
    if sight.recipe.modality != "video" or sight.pooled:
        raise MertoolError(f"--video {sight.path}: frames are needed, from `extract video --pool none`")
    if len(sight.layers) != 1:
        raise MertoolError(f"--video {sight.path} holds {len(sight.layers)} layers: extract one, with --layers last")


def _read_pairs(sound: FeatureStore, sight: FeatureStore) -> _Pairs:
    clips = [clip for clip in sight.ids if clip in sound.index]
    if len(clips) < LEAST_CLIPS:
        raise MertoolError(
            f"{sound.path} and {sight.path} have {len(clips)} clips in common, at least {LEAST_CLIPS} are needed: "
            "are they of the same manifest?"
        )
    values = sound.read(clips)
    deviation = values.std(0)
    scaled = (values - values.mean(0)) / np.where(deviation > 1e-5, deviation, 1)
    frames = [torch.from_numpy(frames.astype(np.float32)) for frames in sight.all_frames(clips)]
    return _Pairs(clips, frames, torch.from_numpy(scaled.mean(1)))


def _train(
    pairs: _Pairs,
    output: Path,
    key: str,
    facts: dict[str, Any],
    options: AlignOptions,
    device: torch.device,
    progress: Callable[[int, int], None],
) -> None:
    seed_everything(options.seed)
    order = np.random.default_rng(options.seed).permutation(len(pairs.clips))
    apart = max(2, round(len(order) * options.held_out))
    held_out, train = order[:apart], order[apart:]
    frames, mask = _pad(pairs.frames, device)
    acoustic = pairs.acoustic.to(device)
    aligner = Aligner(frames.shape[-1], options.width, acoustic.shape[1]).to(device)
    seen = torch.cat([pairs.frames[row] for row in train])
    aligner.mean.copy_(seen.mean(0))
    aligner.std.copy_(torch.where(seen.std(0) > 1e-5, seen.std(0), torch.ones(seen.shape[1])))
    scale = nn.Parameter(torch.tensor(np.log(1 / 0.07), device=device, dtype=torch.float32))
    optimizer = torch.optim.AdamW(
        [*aligner.parameters(), scale], lr=options.learning_rate, weight_decay=options.weight_decay
    )
    losses = []
    for epoch in range(options.epochs):
        aligner.train()
        total = 0.0
        shuffled = train[torch.randperm(len(train)).numpy()]
        parts = np.array_split(shuffled, -(-len(train) // options.batch))
        for rows in parts:
            loss = info_nce(aligner(frames[rows], mask[rows]), acoustic[rows], scale)
            if not torch.isfinite(loss):
                raise MertoolError(f"the loss became {loss:g} in epoch {epoch + 1}: give a smaller --learning-rate")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += float(loss.detach()) * len(rows)
        losses.append(total / len(train))
        progress(epoch + 1, options.epochs)
    aligner.eval()
    with torch.inference_mode():
        visual = aligner(frames[held_out], mask[held_out])
    scores = retrieval(visual.cpu().numpy(), acoustic[held_out].cpu().numpy(), options.seed)
    clips = {"held_out_clips": [pairs.clips[row] for row in held_out], "sizes": aligner.sizes}
    with new_run(output, "align", key, asdict(options), seed=options.seed, **facts, **clips) as draft:
        draft.save_tensors("aligner", aligner.state_dict())
        draft.metrics.update({"train_clips": len(train), "held_out": scores, "loss": losses})
        from mertool.plots import curves

        curves(draft.folder / "loss", {"training": losses}, "InfoNCE", "Video frames to the sound of the same clip")


def _pad(frames: list[torch.Tensor], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    lengths = torch.tensor([len(f) for f in frames])
    padded = nn.utils.rnn.pad_sequence(frames, batch_first=True)
    return padded.to(device), (torch.arange(padded.shape[1])[None] < lengths[:, None]).to(device)


def _aligned_recipe(run: Run, sight: FeatureStore) -> Recipe:
    """That of `extract video --aligner RUN`, so both ways to the features give one store."""
    return Recipe.from_json({**sight.recipe.to_json(), "pool": "mean", "aligner": run.digest()})


def _is_fresh(aligned: Path, run: Run, sight: FeatureStore) -> bool:
    if not aligned.exists():
        return False
    with FeatureStore(aligned) as store:
        return store.fingerprint == _aligned_recipe(run, sight).fingerprint and store.digests() == sight.digests()


def _write_aligned(aligned: Path, run: Run, sight: FeatureStore, device: torch.device) -> None:
    aligner = Aligner.load(run.folder).to(device)
    digests, facts = sight.digests(), sight.facts()
    rows = []
    for row, clip in enumerate(sight.ids):
        frames = torch.from_numpy(sight.frames(clip).astype(np.float32)).to(device)
        seen = (float(facts["seconds"][row]), int(facts["frames_seen"][row]), float(facts["face_share"][row]))
        rows.append(ClipFeatures(clip, digests[clip], aligner.embed(frames[None]).cpu().numpy(), *seen))
    origin = {**sight.origin, "aligner": str(run.folder.absolute())}
    write_store(aligned, _aligned_recipe(run, sight), origin, rows, sight.failures())
