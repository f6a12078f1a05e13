"""Clips through the aligner: padded chunks, gradients without keeping activations, several devices."""

from collections.abc import Iterator

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.checkpoint import checkpoint

from mertool.alignment.data import Frames
from mertool.encoders.aligner import Aligner

# Padded frames of one forward pass.
AT_ONCE = {"cpu": 4096}
AT_ONCE_ON_GPU = 65_536


def embed(
    aligner: nn.Module, frames: list[np.ndarray], device: torch.device, at_once: int | None = None
) -> torch.Tensor:
    """Frames (T, C) of each clip -> (B, A), in chunks of clips of similar length.

    With several chunks the gradient is cached in the manner of GradCache (Gao et al., 2021): chunks are run without
    keeping activations, and run again, with the same dropout, when the gradient of the loss over all clips is
    there. So the batch of a contrastive loss may be as large as wanted, and the gradient is the one of a single pass.
    """
    lengths = np.array([len(one) for one in frames])
    chunks = _chunks(lengths, at_once or AT_ONCE.get(device.type, AT_ONCE_ON_GPU))
    found = []
    for chunk in chunks:
        padded, mask = pad([frames[place] for place in chunk], device)
        if len(chunks) > 1 and torch.is_grad_enabled():
            found.append(checkpoint(aligner, padded, mask, use_reentrant=False))
        else:
            found.append(aligner(padded, mask))
    back = torch.from_numpy(np.argsort(np.concatenate(chunks))).to(device)
    return torch.cat(found)[back]


def pad(frames: list[np.ndarray], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Frames (B, T, C) with zeros behind the shorter ones, and the mask (B, T) of those that are there."""
    padded = nn.utils.rnn.pad_sequence([torch.from_numpy(one) for one in frames], batch_first=True)
    lengths = torch.tensor([len(one) for one in frames])
    mask = torch.arange(padded.shape[1]) < lengths[:, None]
    return padded.to(device), mask.to(device)


@torch.no_grad()
def embed_stored(
    aligner: Aligner, frames: Frames, chosen: np.ndarray, device: torch.device
) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
    """Clips `chosen`, ascending, and their vectors (B, A), block by block."""
    training = aligner.training
    aligner.eval()
    try:
        with frames.in_order(chosen) as blocks:
            for clips, found in blocks:
                yield clips, embed(aligner, found, device)
    finally:
        aligner.train(training)


def encode_distributed(aligner: Aligner, frames: Frames, chosen: np.ndarray, accelerator: Accelerator) -> torch.Tensor:
    """Vectors (len(chosen), A) of clips `chosen`, ascending; the work is shared by the devices."""
    device = accelerator.device
    vectors = torch.zeros(len(chosen), aligner.sizes["acoustic"], device=device)
    mine = np.array_split(chosen, accelerator.num_processes)[accelerator.process_index]
    for clips, found in embed_stored(aligner, frames, mine, device):
        vectors[np.searchsorted(chosen, clips)] = found
    return accelerator.reduce(vectors, "sum") if accelerator.num_processes > 1 else vectors


def gather(mine: torch.Tensor, count: int, accelerator: Accelerator) -> torch.Tensor:
    """Vectors (count, A) of all devices, of which device r holds every world-th from r on; gradients reach `mine`."""
    world, rank = accelerator.num_processes, accelerator.process_index
    if world == 1:
        return mine
    padded = mine.new_zeros(-(-count // world), mine.shape[1])
    padded[: len(mine)] = mine.detach()
    everyone = accelerator.gather(padded).view(world, *padded.shape).transpose(0, 1).flatten(0, 1)[:count].clone()
    everyone[rank::world] = mine
    return everyone


def _chunks(lengths: np.ndarray, at_once: int) -> list[np.ndarray]:
    """Places sorted by length, in runs of at most `at_once` padded frames."""
    chunks: list[list[int]] = []
    for place in np.argsort(-lengths, kind="stable"):
        if chunks and lengths[chunks[-1][0]] * (len(chunks[-1]) + 1) <= at_once:
            chunks[-1].append(int(place))
        else:
            chunks.append([int(place)])
    return [np.array(chunk) for chunk in chunks]
