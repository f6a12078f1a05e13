"""Options of the stage `extract`."""

from dataclasses import dataclass
from pathlib import Path

from mertool.errors import MertoolError, check_choice
from mertool.features import POOLING_MODES, STORAGE_DTYPES

EXTRACTED = ("audio", "video", "faces", "text")
ENGINES = ("local", "ray")


@dataclass(frozen=True, kw_only=True)
class ExtractOptions:
    """What to extract and how.

    encoder: table name, hub id or folder; None is the table's default.
    layers: `all`, `last`, `16-21`, `0,6,12` or `last-four-sum`; 0 is the embedding, 1..n transformer blocks.
    pool: `mean` over time, or `none` to keep frames.
    adapter: a finetune run; training clips get the adapter that did not see them.
    aligner: an align run (video): pooled features in the acoustic space.
    faces: a store of face crops (video), read and completed; None is one beside the output.
    asr: a Whisper that recognises what is said in clips without a transcript (text).
    keep_faces: whether crops found now are stored for the next visual encoder.
    fps: face frames per second of video.
    batch_seconds: padded seconds of media per batch; None is what suits the device.
    clip_timeout: seconds after which a decoder is killed.
    engine: `local`, or `ray` for several GPUs or machines, at `ray_address` or on a Ray of our own.
    shard: `i/n` does the i-th of n parts of the clips, into a store of its own.
    """

    modality: str
    encoder: str | None = None
    layers: str | None = None
    pool: str = "mean"
    adapter: Path | None = None
    aligner: Path | None = None
    faces: Path | None = None
    keep_faces: bool = True
    asr: str | None = None
    fps: float = 4.0
    device: str = "auto"
    dtype: str = "auto"
    storage: str = "float16"
    batch_seconds: float | None = None
    workers: int | None = None
    clip_timeout: float = 120.0
    engine: str = "local"
    ray_address: str | None = None
    shard: str | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        check_choice("modality", self.modality, EXTRACTED)
        check_choice("pooling", self.pool, POOLING_MODES)
        check_choice("storage", self.storage, STORAGE_DTYPES)
        check_choice("engine", self.engine, ENGINES)
        if self.ray_address and self.engine != "ray":
            raise MertoolError("--ray-address belongs to --engine ray")
        if self.engine == "ray" and self.device.startswith("cuda:"):
            raise MertoolError(
                f"--device {self.device} with --engine ray: each worker gets a GPU of its own, give cuda"
            )
        if not 0 < self.fps <= 120:
            raise MertoolError(f"fps {self.fps:g} is not in the range of video: give 0.1 to 120")
        if not self.clip_timeout > 0:
            raise MertoolError(f"--clip-timeout {self.clip_timeout:g}: give more than 0 seconds")
        if self.workers is not None and self.workers < 1:
            raise MertoolError(f"--workers {self.workers}: give at least 1")
        if self.batch_seconds is not None and not 0 <= self.batch_seconds < float("inf"):
            raise MertoolError(f"--batch-seconds {self.batch_seconds:g}: give seconds, or 0 for one clip at a time")
        if self.aligner and self.pool == "none":
            raise MertoolError("an aligner gives one vector per clip: leave out --pool none")
        if self.faces and self.modality != "video":
            raise MertoolError("--faces belongs to `extract video`")
        if self.shard:
            parse_shard(self.shard)


def parse_shard(text: str) -> tuple[int, int]:
    """(i, n) of `i/n`, counted from 1.

    >>> parse_shard("3/8")
    (3, 8)
    """
    first, _, count = text.partition("/")
    if not (first.isdecimal() and count.isdecimal() and 1 <= int(first) <= int(count)):
        raise MertoolError(f"shard '{text}' cannot be read: give i/n with i from 1 to n, as 3/8")
    return int(first), int(count)
