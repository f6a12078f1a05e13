"""The training data of an aligner: frames streamed from a store, and acoustic targets in memory.

The frames of all clips are too large for memory. They are read in blocks of clips with neighbouring ids. Stores mostly
hold clips in this order, and frames lie end to end in the file, so a block costs one read and not a seek per clip. For
training, blocks come in random order and their clips pass through a shuffle buffer. At 64 frames of 768 channels in
float16, the buffer takes 0.2 GB and a batch of 1,024 clips 0.1 GB.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from mertool.alignment.false_negatives import FalseNegativeFilter
from mertool.alignment.targets import AlignmentSplit
from mertool.encoders.aligner import uniform_frame_indices
from mertool.errors import MertoolError
from mertool.extraction.prefetch import Prefetcher
from mertool.store import FeatureStore

BLOCK_CLIPS = 32  # clips that are read together
MAX_GAP = 8  # clips of the store that are read and dropped rather than skipped by another read
SHUFFLE_BUFFER_CLIPS = 2048
PREFETCH = 1  # batches or blocks that are read ahead


class ClipBatch(NamedTuple):
    """Frames of some clips.

    Attributes:
        rows: Rows (B,) of the clips in the stream.
        frames: Frames (T, C) of each, as stored.
    """

    rows: np.ndarray
    frames: list[np.ndarray]


@dataclass(frozen=True)
class FrameStream:
    """Clips of a frame store that are read block by block, in a background thread.

    Attributes:
        store: A frame store of one layer.
        store_rows: Row in the store (N,) of each clip of the stream; ascending rows are read fastest.
        max_frames: Of a longer clip so many frames are taken at equal distances; None takes all.
    """

    store: FeatureStore
    store_rows: np.ndarray
    max_frames: int | None

    def in_order(self, rows: np.ndarray) -> Prefetcher[ClipBatch]:
        """Return the clips `rows`, ascending, as one batch per block."""
        return Prefetcher((ClipBatch(block, self.read(block)) for block in self._split_blocks(rows)), PREFETCH)

    def shuffled_batches(
        self, rows: np.ndarray, count: int, *, seed: tuple[int, ...], first: int = 0
    ) -> Prefetcher[ClipBatch]:
        """Return the clips `rows`, ascending, in `count` random batches of nearly equal size, from batch `first` on.

        The order depends only on `seed`, so a training that resumes within an epoch gets the batches it would have had.
        """
        return Prefetcher(self._shuffle(rows, count, seed, first=first), PREFETCH)

    def read(self, rows: np.ndarray) -> list[np.ndarray]:
        """Read the frames (T, C) of the clips of one block; NaN or infinity raises MertoolError."""
        store_rows = self.store_rows[rows]
        ascending = np.sort(store_rows)
        frames_of: dict[int, np.ndarray] = {}
        for near in np.split(ascending, np.flatnonzero(np.diff(ascending) > MAX_GAP) + 1):
            first = int(near[0])
            frames_of |= enumerate(self.store.read_frame_block(first, int(near[-1]) + 1), first)
        clips = []
        for store_row in store_rows.tolist():
            frames = frames_of[store_row]
            # Indexing by an array copies, so that the block can be freed while a few of its clips wait in the buffer.
            frames = frames[uniform_frame_indices(len(frames), self.max_frames or len(frames))]
            if not np.isfinite(frames).all():
                raise MertoolError(
                    f"{self.store.path}: the frames of clip '{self.store.ids[store_row]}' hold NaN or infinity: see "
                    "`mertool store check`, and extract it again"
                )
            clips.append(frames)
        return clips

    def _split_blocks(self, rows: np.ndarray) -> list[np.ndarray]:
        """Split ascending rows where they pass from one block to another."""
        if not len(rows):
            return []
        return np.split(rows, np.flatnonzero(np.diff(rows // BLOCK_CLIPS)) + 1)

    def _shuffle(self, rows: np.ndarray, count: int, seed: tuple[int, ...], *, first: int) -> Iterator[ClipBatch]:
        random = np.random.default_rng(seed)
        sizes = [len(batch) for batch in np.array_split(rows, count)]
        blocks = self._split_blocks(rows)
        frames: dict[int, np.ndarray] = {}  # of the clips that were read and are in no batch yet
        buffer = queue = np.zeros(0, np.int64)
        batch = 0
        for n_read, number in enumerate(random.permutation(len(blocks)), 1):
            frames |= zip(blocks[number].tolist(), self.read(blocks[number]), strict=True)
            # The buffer is shuffled with every block, so that a clip may leave it at any time.
            buffer = random.permutation(np.concatenate([buffer, blocks[number]]))
            # After the last block everything leaves the buffer.
            capacity = SHUFFLE_BUFFER_CLIPS if n_read < len(blocks) else 0
            queue, buffer = np.concatenate([queue, buffer[capacity:]]), buffer[:capacity]
            while batch < count and len(queue) >= sizes[batch]:
                batch_rows, queue = queue[: sizes[batch]], queue[sizes[batch] :]
                batch_frames = [frames.pop(int(row)) for row in batch_rows]
                batch += 1
                if batch > first:
                    yield ClipBatch(batch_rows, batch_frames)


def frame_statistics(stream: FrameStream, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation (C,), float32, of all frames of the clips `rows`; in one pass.

    A channel that does not vary gets the deviation 1, so that dividing by it does no harm.
    """
    total = total_of_squares = np.zeros(stream.store.channels)
    count = 0
    with stream.in_order(rows) as batches:
        for _, frames in batches:
            # Single precision would lose digits in sums over millions of frames.
            values = np.concatenate(frames).astype(np.float64)
            total, total_of_squares = total + values.sum(0), total_of_squares + np.square(values).sum(0)
            count += len(values)
    mean = total / count
    std = np.sqrt(np.maximum(total_of_squares / count - np.square(mean), 0))
    return mean.astype(np.float32), np.where(std > 1e-5, std, 1).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class AlignmentData:
    """The clips that an aligner is trained and scored on; row i of all fields is the same clip.

    Attributes:
        stream: Frames of the N clips.
        targets: Acoustic targets (N, A), float16 or float32.
        split: Rows of the training, development and held-out clips.
        false_negatives: Decides which pairs of clips are no negatives.
    """

    stream: FrameStream
    targets: np.ndarray
    split: AlignmentSplit
    false_negatives: FalseNegativeFilter

    def acoustic(self, rows: np.ndarray, device: torch.device) -> torch.Tensor:
        """Return the acoustic targets (B, A) of clips, float32."""
        return torch.from_numpy(self.targets[rows]).to(device).float()
