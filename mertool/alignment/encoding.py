"""Clips through the aligner: padded chunks, gradient caching for large batches, several devices."""

from collections.abc import Iterator

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.checkpoint import checkpoint

from mertool.alignment.data import FrameStream
from mertool.encoders.aligner import Aligner

# Padded frames of one forward pass.
MAX_PADDED_FRAMES_CPU = 4096
MAX_PADDED_FRAMES_GPU = 65_536


def encode_clips(
    aligner: nn.Module, frames: list[np.ndarray], device: torch.device, *, max_padded_frames: int | None = None
) -> torch.Tensor:
    """Return the vectors (B, A) of B clips with frames (T, C), computed in chunks of clips of similar length.

    If there are several chunks and gradients are needed, they are cached as in GradCache (Gao et al., 2021): each chunk
    runs without keeping its activations, and runs again, with the same dropout, in the backward pass. So the batch of a
    contrastive loss may be of any size, and the gradient is that of a single forward pass.
    """
    if max_padded_frames is None:
        max_padded_frames = MAX_PADDED_FRAMES_CPU if device.type == "cpu" else MAX_PADDED_FRAMES_GPU
    chunks = _chunk_by_length(np.array([len(clip) for clip in frames]), max_padded_frames)
    recompute = len(chunks) > 1 and torch.is_grad_enabled()
    vectors = []
    for chunk in chunks:
        padded, mask = pad_frames([frames[clip] for clip in chunk], device)
        vectors.append(checkpoint(aligner, padded, mask, use_reentrant=False) if recompute else aligner(padded, mask))
    original_order = torch.from_numpy(np.argsort(np.concatenate(chunks))).to(device)
    return torch.cat(vectors)[original_order]


def pad_frames(frames: list[np.ndarray], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the frames (B, T, C), zero-padded at the end, and a mask (B, T) that is true where there is a frame."""
    padded = nn.utils.rnn.pad_sequence([torch.from_numpy(clip) for clip in frames], batch_first=True)
    lengths = torch.tensor([len(clip) for clip in frames])
    mask = torch.arange(padded.shape[1]) < lengths[:, None]
    return padded.to(device), mask.to(device)


@torch.no_grad()
def encode_stream(
    aligner: Aligner, stream: FrameStream, rows: np.ndarray, *, device: torch.device
) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
    """Yield the rows (B,) and vectors (B, A) of the clips `rows`, ascending, block by block; without dropout."""
    was_training = aligner.training
    aligner.eval()
    try:
        with stream.in_order(rows) as batches:
            for batch in batches:
                yield batch.rows, encode_clips(aligner, batch.frames, device)
    finally:
        aligner.train(was_training)


def encode_distributed(
    aligner: Aligner, stream: FrameStream, rows: np.ndarray, *, accelerator: Accelerator
) -> torch.Tensor:
    """Return the vectors (len(rows), A) of the clips `rows`, ascending; each process encodes a share of them."""
    vectors = torch.zeros(len(rows), aligner.sizes["acoustic"], device=accelerator.device)
    share = np.array_split(rows, accelerator.num_processes)[accelerator.process_index]
    for encoded_rows, encoded in encode_stream(aligner, stream, share, device=accelerator.device):
        vectors[np.searchsorted(rows, encoded_rows)] = encoded
    # The rows of the other processes are zero here, so the sum joins all shares.
    return accelerator.reduce(vectors, "sum") if accelerator.num_processes > 1 else vectors


def all_gather_with_grad(local: torch.Tensor, count: int, accelerator: Accelerator) -> torch.Tensor:
    """Return the vectors (count, A) of all processes; gradients reach those of this one.

    Process r of R holds vectors r, r + R, ... in `local`.
    """
    n_processes, rank = accelerator.num_processes, accelerator.process_index
    if n_processes == 1:
        return local
    # All processes must send equally many rows; those without a vector at the end send zeros, which are cut off.
    padded = local.new_zeros(-(-count // n_processes), local.shape[1])
    padded[: len(local)] = local.detach()
    by_process = accelerator.gather(padded).view(n_processes, *padded.shape)
    vectors = by_process.transpose(0, 1).flatten(0, 1)[:count].clone()
    vectors[rank::n_processes] = local
    return vectors


def _chunk_by_length(lengths: np.ndarray, max_padded_frames: int) -> list[np.ndarray]:
    """Return indices by descending length, cut into chunks of at most `max_padded_frames` padded frames."""
    chunks: list[list[int]] = []
    # Stable, because the chunks decide which dropout mask a clip gets: they must not depend on the version of NumPy.
    for index in np.argsort(-lengths, kind="stable").tolist():
        if chunks and lengths[chunks[-1][0]] * (len(chunks[-1]) + 1) <= max_padded_frames:
            chunks[-1].append(index)
        else:
            chunks.append([index])
    return [np.array(chunk) for chunk in chunks]
