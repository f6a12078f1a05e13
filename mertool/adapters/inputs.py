"""Batches of clips for the adapted blocks: which clips, in what order, how many at once."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from mertool.adapters.blocks import AdaptableBlocks, mean_over_time

# Padded frames of a forward pass: few on a CPU, where padding costs time and memory; on a GPU enough to fill it.
MAX_FRAMES_CPU = 1600
MAX_FRAMES_GPU = 16_000
SORTED_BATCHES = 8  # clips of this many batches are sorted by length together
# Frames that a training step leaves out of each clip, in random blocks. It makes training twice as fast, and what is
# learned does not hang on single moments of a clip.
DROPPED_SHARE, DROPPED_BLOCK = 0.6, 4


@dataclass(frozen=True, kw_only=True)
class BlockInputs:
    """Inputs of the blocks that training runs, for all clips.

    Attributes:
        frames: Inputs (T, .) of each clip, on the CPU.
        lengths: Number of frames (N,) of each clip.
        channels: Channels of a block's output.
        supports_padding: Whether clips of different lengths may share a forward pass.
        accelerator: The device, the precision and the processes that share the work.
    """

    frames: Sequence[torch.Tensor]
    lengths: np.ndarray
    channels: int
    supports_padding: bool
    accelerator: Accelerator

    def length_batches(self, rows: np.ndarray, share: float = 1.0) -> list[np.ndarray]:
        """Divide `rows` into batches for one forward pass each: sorted by length, with few padded frames.

        `share` is that of the frames of each clip that the pass gets.
        """
        max_frames = (MAX_FRAMES_CPU if self.accelerator.device.type == "cpu" else MAX_FRAMES_GPU) / share
        batches: list[list[int]] = []
        for row in sorted(rows, key=lambda row: -self.lengths[row]):
            # The first clip of a batch is its longest, to whose length all others are padded.
            fits = batches and self.lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= max_frames
            if fits and self.supports_padding:
                batches[-1].append(int(row))
            else:
                batches.append([int(row)])
        return [np.array(batch) for batch in batches]

    def load(self, rows: np.ndarray, kept: Sequence[np.ndarray] | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the inputs (B, T, .) of `rows`, zero-padded, and their lengths (B,), on the device.

        `kept` has the indices of the frames to load of each clip; by default all are.
        """
        device = self.accelerator.device
        clips = [self.frames[row] for row in rows]
        if kept is not None:
            clips = [clip[torch.from_numpy(frames)] for clip, frames in zip(clips, kept, strict=True)]
        padded = nn.utils.rnn.pad_sequence(clips, batch_first=True)
        lengths = torch.tensor([len(clip) for clip in clips])
        return padded.to(device, non_blocking=True).float(), lengths.to(device)

    @torch.no_grad()
    def mean_pool(self, blocks: AdaptableBlocks, rows: np.ndarray, layers: tuple[int, ...]) -> torch.Tensor:
        """Return the means over time (len(layers), len(rows), D) of blocks `layers`; processes share the work."""
        accelerator = self.accelerator
        pooled = torch.zeros(len(layers), len(self.lengths), self.channels, device=accelerator.device)
        own_rows = rows[accelerator.process_index :: accelerator.num_processes]
        for batch in self.length_batches(own_rows):
            inputs, lengths = self.load(batch)
            with accelerator.autocast():
                outputs = blocks(inputs, lengths, None, layers)
            for index, layer in enumerate(layers):
                pooled[index, batch] = mean_over_time(outputs[layer], lengths)
        if accelerator.num_processes > 1:
            # Each process has zeros in the rows of the others, so the sum gathers them.
            pooled = accelerator.reduce(pooled, "sum")
        return pooled[:, rows].clone()

    def mean_frame(self, rows: np.ndarray) -> torch.Tensor:
        """Return the mean frame of the clips `rows`, on the CPU."""
        total = sum(self.frames[row].float().sum(0) for row in rows)
        return torch.as_tensor(total) / sum(len(self.frames[row]) for row in rows)


def kept_frames(n_frames: int, seed: tuple[int, ...]) -> np.ndarray:
    """Return the indices of the frames of a clip that a training step keeps: random blocks of four, at least one."""
    n_blocks = -(-n_frames // DROPPED_BLOCK)
    n_kept = max(1, round((1 - DROPPED_SHARE) * n_blocks))
    blocks = np.sort(np.random.default_rng(seed).permutation(n_blocks)[:n_kept])
    frames = (blocks[:, None] * DROPPED_BLOCK + np.arange(DROPPED_BLOCK)).ravel()
    return frames[frames < n_frames]


def epoch_batches(
    labelled: np.ndarray, unlabelled: np.ndarray, lengths: np.ndarray, *, batch_size: int, seed: tuple[int, int]
) -> list[np.ndarray]:
    """Return the rows of every step of an epoch, in random order.

    A batch has `batch_size` of the rows `labelled`, of similar length, and about as many of `unlabelled` if there are
    enough. `seed` is that of the run and the number of the epoch.
    """
    rng = np.random.default_rng(seed)
    n_batches = -(-len(labelled) // batch_size)
    divided = []
    # At most as many unlabelled clips as labelled ones, others in each epoch: they must not dominate the step.
    for rows in (labelled, rng.permutation(unlabelled)[: len(labelled)]):
        order = rng.permutation(rows)
        size = SORTED_BATCHES * batch_size
        chunks = [order[start : start + size] for start in range(0, len(order), size)]
        by_length = [chunk[np.argsort(lengths[chunk], kind="stable")] for chunk in chunks]
        divided.append(np.array_split(np.concatenate([*by_length, np.zeros(0, np.int64)]), n_batches))
    batches = [np.concatenate(pair) for pair in zip(*divided, strict=True)]
    return [batches[index] for index in rng.permutation(n_batches)]
