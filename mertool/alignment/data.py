"""Clips out of a frame store, in order or mixed, read ahead in a thread; the store is never in memory as a whole.

One read takes a block of neighbouring clips, since frames stand end to end in the file and single clips would cost a
seek each. Blocks come in random order, and their clips are mixed in a buffer of BUFFER clips. At 100 frames of 768
channels in float16, of which 64 are kept, the buffer takes 0.2 GB and a batch of 1,024 clips 0.1 GB.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mertool.encoders.aligner import evenly
from mertool.errors import MertoolError
from mertool.extraction.prefetch import Prefetcher
from mertool.store import FeatureStore

BLOCK = 32  # neighbouring rows of the store
BUFFER = 2048  # clips
AHEAD = 1  # batches or blocks that wait to be used while the next one is read

Some = tuple[np.ndarray, list[np.ndarray]]  # numbers of clips (B,), and the frames (T, C) of each


@dataclass(frozen=True)
class Frames:
    """Clips of a frame store, numbered in the order of their `rows` there; of each at most `most` frames."""

    store: FeatureStore
    rows: np.ndarray
    most: int | None

    def blocks(self, chosen: np.ndarray) -> list[np.ndarray]:
        """Clips `chosen`, ascending, by the block of the store they stand in."""
        return np.split(chosen, np.flatnonzero(np.diff(self.rows[chosen] // BLOCK)) + 1) if len(chosen) else []

    def read(self, clips: np.ndarray) -> list[np.ndarray]:
        """Frames of the clips of one block."""
        rows = self.rows[clips]
        found = self.store.frame_block(int(rows[0]), int(rows[-1]) + 1)
        kept = []
        for row in rows:
            frames = found[row - rows[0]]
            frames = frames[evenly(len(frames), self.most or len(frames))]  # a copy, so that the block itself is freed
            if not np.isfinite(frames).all():
                raise MertoolError(
                    f"{self.store.path}: the frames of clip '{self.store.ids[row]}' hold NaN or infinity: see "
                    "`mertool store check`, and extract it again"
                )
            kept.append(frames)
        return kept

    def in_order(self, chosen: np.ndarray) -> Prefetcher[Some]:
        """Clips `chosen`, ascending, block by block."""
        return Prefetcher(((block, self.read(block)) for block in self.blocks(chosen)), AHEAD)

    def mixed(self, chosen: np.ndarray, batches: int, seed: tuple[int, ...], first: int = 0) -> Prefetcher[Some]:
        """Clips `chosen` in `batches` batches of random clips, nearly equal in size, from batch `first` on.

        The order depends on `seed` alone.
        """
        return Prefetcher(self._mix(chosen, batches, seed, first), AHEAD)

    def _mix(self, chosen: np.ndarray, batches: int, seed: tuple[int, ...], first: int) -> Iterator[Some]:
        random = np.random.default_rng(seed)
        sizes = [len(part) for part in np.array_split(chosen, batches)]
        blocks = self.blocks(chosen)
        frames: dict[int, np.ndarray] = {}
        buffer = drawn = np.zeros(0, np.int64)
        done = 0
        for count, number in enumerate(random.permutation(len(blocks)), 1):
            frames |= zip(blocks[number].tolist(), self.read(blocks[number]), strict=True)
            buffer = random.permutation(np.concatenate([buffer, blocks[number]]))
            keep = BUFFER if count < len(blocks) else 0
            drawn, buffer = np.concatenate([drawn, buffer[keep:]]), buffer[:keep]
            while done < batches and len(drawn) >= sizes[done]:
                batch, drawn = drawn[: sizes[done]], drawn[sizes[done] :]
                taken = [frames.pop(int(clip)) for clip in batch]
                done += 1
                if done > first:
                    yield batch, taken


def frame_statistics(frames: Frames, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation (C,) of the channels over all frames of clips `chosen`, in one pass, float32."""
    total = square = np.zeros(frames.store.channels)
    count = 0
    with frames.in_order(chosen) as blocks:
        for _, found in blocks:
            values = np.concatenate(found).astype(np.float64)
            total, square = total + values.sum(0), square + np.square(values).sum(0)
            count += len(values)
    mean = total / count
    deviation = np.sqrt(np.maximum(square / count - np.square(mean), 0))
    return mean.astype(np.float32), np.where(deviation > 1e-5, deviation, 1).astype(np.float32)
