"""Options of the stage `extract`."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf
from pathlib import Path

from mertool.errors import MertoolError
from mertool.features import MODALITIES, POOLING_MODES, STORAGE_DTYPES
from mertool.options import shared
from mertool.options.option import Options, option, options_of

EXTRACTED = (*MODALITIES, "faces")  # each is a command; faces are crops, without an encoder
ENGINES = {"local": "", "ray": "several GPUs or machines, pip install ray"}
POOLING = dict(zip(POOLING_MODES, ("one vector per clip", "mean and standard deviation", "keep frames"), strict=True))
WHISPER_WINDOWS = {"30": "padded to the 30 s it was trained on", "clip": "as long as the clip"}
DEFAULT_LAYERS = {"audio": "all", "video": "last", "text": "last"}


def parse_shard(text: str) -> tuple[int, int]:
    """(i, n) of `i/n`, counted from 1.

    >>> parse_shard("3/8")
    (3, 8)
    """
    first, _, count = text.partition("/")
    if not (first.isdecimal() and count.isdecimal() and 1 <= int(first) <= int(count)):
        raise MertoolError(f"shard '{text}' cannot be read: give i/n with i from 1 to n, as 3/8")
    return int(first), int(count)


@dataclass(frozen=True, kw_only=True)
class ExtractOptions(Options):
    """Options of an extraction; each modality is a command of its own, with the options that it uses."""

    modality: str = option(help="Modality of the features.", choices=EXTRACTED, on_command_line=False)
    encoder: str | None = option(
        None,
        help="Encoder: a name of `mertool models`, a hub id or a local folder.",
        only_for=MODALITIES,
        default_help={
            "audio": "that of --adapter, else hubert-large-zh",
            "video": "that of --aligner, else clip-vit-l14",
            "text": "roberta-large-zh",
        },
    )
    layers: str | None = option(
        None,
        help="all, last, 16-21, 0,6,12 or last-four-sum. Layer n is the output of transformer block n, layer 0 the "
        "embedding.",
        only_for=MODALITIES,
        default_help=DEFAULT_LAYERS,
    )
    pool: str = option("mean", help="Pooling over time.", noun="pooling", choices=POOLING, only_for=MODALITIES)
    whisper_window: str | None = option(
        None,
        help="Window of a Whisper encoder.",
        noun="window",
        choices=WHISPER_WINDOWS,
        only_for=("audio",),
        default_help="clip",
    )
    as_mertools: bool = option(
        False,
        help="Features as the scripts of MERTools make them: of audio in chunks of 10 s, the last one filled up with "
        "zeros, or of CLIP after its projection.",
        only_for=("audio", "video"),
    )
    adapter: Path | None = option(
        None,
        help="A finetune run; its training clips get the adapter that was trained without them.",
        only_for=("audio",),
    )
    aligner: Path | None = option(
        None, help="An align run: features are mapped into the acoustic space.", only_for=("video",)
    )
    faces: Path | None = option(
        None,
        help="Store of `extract faces` to read; crops that it lacks are added.",
        only_for=("video",),
        default_help="faces.h5 beside the output",
    )
    keep_faces: bool = option(
        True, help="Keep face crops for the next visual encoder: about 0.6 MB per second of video.", only_for=("video",)
    )
    asr: str | None = option(
        None,
        help="Whisper model that transcribes clips without a transcript; the texts are written beside the store.",
        only_for=("text",),
    )
    language: str | None = shared.language(only_for=("text",))
    chinese: str | None = shared.chinese(only_for=("text",))
    vad: bool = shared.vad(only_for=("text",))
    fps: float = option(4.0, help="Face frames per second of video.", above=0, maximum=120, only_for=("video", "faces"))
    frames: Path | None = option(
        None,
        help="A second store, with the frames of the same layers from the same pass of the encoder.",
        only_for=MODALITIES,
    )
    storage: str = option("float16", help="Number format in the store.", choices=STORAGE_DTYPES, only_for=MODALITIES)
    device: str = shared.device()
    dtype: str = shared.dtype(only_for=MODALITIES)
    batch_seconds: float | None = option(
        None,
        help="Padded seconds of media per batch, 0 for one clip at a time.",
        minimum=0,
        below=inf,
        unit="seconds",
        default_help="what suits the device",
        only_for=("audio", "video"),
    )
    workers: int | None = shared.workers()
    clip_timeout: float = shared.clip_timeout()
    engine: str = option("local", help="Where clips are processed.", choices=ENGINES)
    ray_address: str | None = option(
        None,
        help="A running Ray: auto or HOST:PORT.",
        default_help="one on this machine, for this command",
    )
    shard: str | None = option(
        None,
        help="i/n: the i-th of n parts of the clips, for job arrays; `store merge` joins them.",
        validate=parse_shard,
    )
    overwrite: bool = shared.overwrite()

    def conflicts(self) -> Iterator[str]:
        # The command line offers each modality its own options only; a Python call could mix them.
        for declared in options_of(ExtractOptions):
            is_set = getattr(self, declared.name) != declared.default
            if is_set and declared.only_for and self.modality not in declared.only_for:
                yield f"{declared.flag} belongs to `extract {'|'.join(declared.only_for)}`"
        if self.modality == "text":
            yield from shared.recognition_conflicts(
                self.asr, language=self.language, chinese=self.chinese, vad=self.vad
            )
        if self.ray_address and self.engine != "ray":
            yield "--ray-address belongs to --engine ray"
        if self.engine == "ray" and self.device.startswith("cuda:"):
            yield f"--device {self.device} with --engine ray: each worker gets a GPU of its own, give cuda"
        if self.as_mertools and self.adapter:
            yield "--as-mertools: an adapter is used as it was trained, in windows of its own: leave out one of the two"
        if self.as_mertools and self.whisper_window:
            yield "--as-mertools: MERTools takes Whisper's decoder, which mertool does not run: leave it out"
        if self.as_mertools and self.modality == "video" and self.layers not in (None, "last"):
            yield f"--layers {self.layers}: the image features of --as-mertools follow the last layer: leave it out"
        if self.frames and self.pool == "none":
            yield "--frames: --pool none keeps frames in the output already; leave out one of the two"
        if self.aligner and self.pool != "mean":
            yield f"an aligner gives one vector per clip: leave out --pool {self.pool}"
