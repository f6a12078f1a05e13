"""The table of encoders, and finding an encoder by table name, hub id or local folder. No torch here.

`asr` recognises speech; it is no family of encoders, and has a `load_recogniser` of its own here.

A checkpoint is a row of TABLE; a family is a file of this folder (`speech`, `vision`, `text`), each with
`load(source, device, dtype)` that returns an object with

    layers: int             number of transformer blocks
    channels: int           D
    model, blocks           the torch module, and its transformer blocks in order
    prepare(item)           one input as tensors on the CPU; raises ClipError for one that cannot be used
    cost(prepared) -> float what it costs (seconds, frames, tokens), for batching
    encode_prepared(list, keep) -> list of (L, T, D) float32 tensors, one per input, for the layers in `keep`
    encode(items, keep)     both in one

Layer n is the output of block n, taken by a forward hook; layer 0 is the input of block 1.
"""

import importlib
import json
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mertool.errors import MertoolError, check_choice, suggest
from mertool.files import content_digest

FAMILIES = {"audio": "speech", "video": "vision", "text": "text"}


@dataclass(frozen=True)
class EncoderSpec:
    """One known checkpoint."""

    name: str
    modality: str
    checkpoint: str
    language: str
    parameters: str
    layers: int
    channels: int

    @property
    def revision(self) -> str | None:
        """The commit of the hub that is loaded, where a checked one is known."""
        return REVISIONS.get(self.checkpoint)


REVISIONS = {
    "facebook/hubert-base-ls960": "dba3bb02fda4248b6e082697eee756de8fe8aa8a",
    "microsoft/wavlm-large": "c1423ed94bb01d80a3f5ce5bc39f6026a0f4828c",
    "openai/clip-vit-large-patch14": "32bd64288804d66eefd0ccbe215aa642df71cc41",
    "openai/clip-vit-base-patch32": "3d74acf9a28c67741b2f4f2ea7635f0aaf6f0268",
    "google/vit-base-patch16-224": "3f49326eb077187dfe1c2a2bb15fbd74e6ab91e3",
    "google-bert/bert-base-uncased": "86b5e0934494bd15c9632b12f734a8a67f723594",
    "FacebookAI/roberta-large": "722cf37b1afa9454edce342e7895e588b6ff1d59",
}
ENCODERS = (
    EncoderSpec("hubert-large-zh", "audio", "TencentGameMate/chinese-hubert-large", "Chinese", "317M", 24, 1024),
    EncoderSpec("hubert-base-zh", "audio", "TencentGameMate/chinese-hubert-base", "Chinese", "95M", 12, 768),
    EncoderSpec("wav2vec2-large-zh", "audio", "TencentGameMate/chinese-wav2vec2-large", "Chinese", "317M", 24, 1024),
    EncoderSpec("wav2vec2-base-zh", "audio", "TencentGameMate/chinese-wav2vec2-base", "Chinese", "95M", 12, 768),
    EncoderSpec("hubert-base", "audio", "facebook/hubert-base-ls960", "English", "95M", 12, 768),
    EncoderSpec("hubert-large", "audio", "facebook/hubert-large-ll60k", "English", "317M", 24, 1024),
    EncoderSpec("hubert-xlarge", "audio", "facebook/hubert-xlarge-ll60k", "English", "964M", 48, 1280),
    EncoderSpec("wav2vec2-base", "audio", "facebook/wav2vec2-base", "English", "95M", 12, 768),
    EncoderSpec("wav2vec2-large", "audio", "facebook/wav2vec2-large-lv60", "English", "317M", 24, 1024),
    EncoderSpec("wav2vec2-xlsr", "audio", "facebook/wav2vec2-large-xlsr-53", "53 languages", "317M", 24, 1024),
    EncoderSpec("wavlm-base-plus", "audio", "microsoft/wavlm-base-plus", "English", "95M", 12, 768),
    EncoderSpec("wavlm-large", "audio", "microsoft/wavlm-large", "English", "317M", 24, 1024),
    EncoderSpec("data2vec-audio-base", "audio", "facebook/data2vec-audio-base", "English", "93M", 12, 768),
    EncoderSpec("data2vec-audio-large", "audio", "facebook/data2vec-audio-large", "English", "313M", 24, 1024),
    EncoderSpec("whisper-base", "audio", "openai/whisper-base", "multilingual", "74M", 6, 512),
    EncoderSpec("whisper-large-v3", "audio", "openai/whisper-large-v3", "multilingual", "1.5B", 32, 1280),
    EncoderSpec("clip-vit-l14", "video", "openai/clip-vit-large-patch14", "-", "304M", 24, 1024),
    EncoderSpec("clip-vit-b16", "video", "openai/clip-vit-base-patch16", "-", "86M", 12, 768),
    EncoderSpec("clip-vit-b32", "video", "openai/clip-vit-base-patch32", "-", "88M", 12, 768),
    EncoderSpec("siglip-b16", "video", "google/siglip-base-patch16-224", "-", "93M", 12, 768),
    EncoderSpec("siglip-so400m", "video", "google/siglip-so400m-patch14-384", "-", "428M", 27, 1152),
    EncoderSpec("dinov2-base", "video", "facebook/dinov2-base", "-", "86M", 12, 768),
    EncoderSpec("dinov2-large", "video", "facebook/dinov2-large", "-", "304M", 24, 1024),
    EncoderSpec("vit-base", "video", "google/vit-base-patch16-224", "-", "86M", 12, 768),
    EncoderSpec("roberta-large-zh", "text", "hfl/chinese-roberta-wwm-ext-large", "Chinese", "326M", 24, 1024),
    EncoderSpec("roberta-base-zh", "text", "hfl/chinese-roberta-wwm-ext", "Chinese", "102M", 12, 768),
    EncoderSpec("macbert-large-zh", "text", "hfl/chinese-macbert-large", "Chinese", "326M", 24, 1024),
    EncoderSpec("bert-base", "text", "google-bert/bert-base-uncased", "English", "110M", 12, 768),
    EncoderSpec("roberta-large", "text", "FacebookAI/roberta-large", "English", "355M", 24, 1024),
    EncoderSpec("xlm-roberta-large", "text", "FacebookAI/xlm-roberta-large", "100 languages", "560M", 24, 1024),
    EncoderSpec("qwen2.5-7b", "text", "Qwen/Qwen2.5-7B", "Chinese, English", "7.6B", 28, 3584),
    EncoderSpec("qwen2.5-14b", "text", "Qwen/Qwen2.5-14B", "Chinese, English", "14.8B", 48, 5120),
    EncoderSpec("llama-3.1-8b", "text", "meta-llama/Llama-3.1-8B", "multilingual", "8.0B", 32, 4096),
)
DEFAULTS = {"audio": "hubert-large-zh", "video": "clip-vit-l14", "text": "roberta-large-zh"}

CONFIGURATION = ("*.json", "*.txt", "*.model", "*.jinja")
SAFE_WEIGHTS = ("*.safetensors",)
# Checkpoints without safetensors, chinese-hubert among them: torch reads these with weights_only.
TORCH_WEIGHTS = ("pytorch_model*.bin",)


@dataclass(frozen=True)
class CheckpointRef:
    """Where an encoder was found: its short name, its folder on this machine and how others find it."""

    name: str
    folder: Path
    checkpoint: str
    revision: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "checkpoint": self.checkpoint, "revision": self.revision}

    def digest(self) -> str:
        """SHA-256 of configuration, vocabulary and weights."""
        files = [path for pattern in CONFIGURATION for path in self.folder.glob(pattern)]
        weights = [path for pattern in SAFE_WEIGHTS for path in self.folder.glob(pattern)]
        weights = weights or [path for pattern in TORCH_WEIGHTS for path in self.folder.glob(pattern)]
        return content_digest(files + weights)


def find(name: str, modality: str, revision: str | None = None) -> CheckpointRef:
    """Find an encoder by table name, local folder or hub id; download it where a hub can be reached."""
    row = next((row for row in ENCODERS if row.name == name), None)
    if row:
        if row.modality != modality:
            valid = [other.name for other in ENCODERS if other.modality == modality]
            raise MertoolError(f"encoder '{name}' is for {row.modality}: for {modality} take {', '.join(valid)}")
        return CheckpointRef(name, _fetch(row.checkpoint, revision or row.revision), row.checkpoint, row.revision)
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").exists():
            raise MertoolError(f"encoder folder {folder} has no config.json: give a Hugging Face model folder")
        return CheckpointRef(folder.resolve().name, folder.resolve(), str(folder.resolve()))
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise MertoolError(f"encoder folder {name} does not exist")
    if "/" not in name:
        valid = [other.name for other in ENCODERS if other.modality == modality]
        raise MertoolError(
            f"unknown encoder '{name}': {suggest(name, valid)}valid: {', '.join(valid)}, a hub id as "
            "owner/model, or a local folder"
        )
    return CheckpointRef(name, _fetch(name, revision), name, revision)


def find_recogniser(name: str) -> CheckpointRef:
    """Find a Whisper by table name, local folder or hub id."""
    valid = [row.name for row in ENCODERS if "whisper" in row.name]
    if "/" not in name and not Path(name).is_dir() and name not in valid:
        raise MertoolError(
            f"unknown speech recogniser '{name}' (--asr): {suggest(name, valid)}valid: {', '.join(valid)}, a hub id of "
            "a Whisper as owner/model, or a local folder"
        )
    return find(name, "audio")


def count_layers(source: CheckpointRef) -> int:
    """Number of transformer blocks, read from the configuration alone."""
    try:
        config = json.loads((source.folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MertoolError(f"{source.folder}/config.json cannot be read ({error})") from error
    nested = config.get("vision_config") or config.get("text_config") or {}
    for settings in (config, nested):
        for key in ("num_hidden_layers", "encoder_layers", "n_layer"):
            if isinstance(settings.get(key), int):
                return int(settings[key])
    # A hub's CLIP configuration may leave out what equals the class's default.
    from transformers import AutoConfig

    loaded = AutoConfig.from_pretrained(source.folder)
    return int(getattr(loaded, "vision_config", loaded).num_hidden_layers)


def stores_half_precision(source: CheckpointRef) -> bool:
    """Whether the weights are kept in half precision, as those of large language models are."""
    config = json.loads((source.folder / "config.json").read_text(encoding="utf-8"))
    return str(config.get("dtype") or config.get("torch_dtype")).removeprefix("torch.") in ("bfloat16", "float16")


def load(modality: str, source: CheckpointRef, device: Any, dtype: Any) -> Any:
    """Load an encoder of one modality onto a device; see the top of this file for what comes back."""
    check_choice("modality", modality, FAMILIES)
    return _load(FAMILIES[modality], f"an encoder for {modality}", source, device, dtype)


def load_recogniser(source: CheckpointRef, device: Any, dtype: Any) -> Any:
    """Load a Whisper that recognises speech (see asr.py)."""
    return _load("asr", "a speech recogniser", source, device, dtype)


def _load(module: str, what: str, source: CheckpointRef, device: Any, dtype: Any) -> Any:
    os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")  # or transformers asks the hub to convert
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", module="transformers")  # deprecations between it and PEFT
    warnings.filterwarnings("ignore", "Support for mismatched key_padding_mask")  # how WavLM calls torch
    family = importlib.import_module(f"mertool.encoders.{module}")
    try:
        return family.load(source.folder, device, dtype)
    except _unloadable() as error:
        if type(error).__name__ == "OutOfMemoryError":  # of the device: a RuntimeError that is no fault of the folder
            raise
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise MertoolError(f"{source.folder} cannot be loaded as {what}: {first}") from error


def _unloadable() -> tuple[type[Exception], ...]:
    """What loading a damaged or foreign model folder raises."""
    from safetensors import SafetensorError

    return (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError)


def _fetch(checkpoint: str, revision: str | None) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.utils import LocalEntryNotFoundError, logging

    logging.set_verbosity_error()  # it tells of every try; the one line below says it all

    def get(patterns: tuple[str, ...], local: bool) -> Path:
        folder = snapshot_download(checkpoint, revision=revision, allow_patterns=list(patterns), local_files_only=local)
        return Path(folder)

    try:
        folder = get(CONFIGURATION, local=True)
        if _has_weights(folder):
            return folder
    except (LocalEntryNotFoundError, OSError, ValueError):
        pass
    try:
        folder = get(CONFIGURATION + SAFE_WEIGHTS, local=False)
        if not _has_weights(folder):
            folder = get(TORCH_WEIGHTS, local=False)
        if _has_weights(folder):
            return folder
        reason = "the hub has neither safetensors nor pytorch_model.bin of it"
    except Exception as error:  # the hub's client raises many kinds, all of which mean: not to be had
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    at = f" --revision {revision}" if revision else ""
    raise MertoolError(
        f"encoder '{checkpoint}' is not in the cache {constants.HF_HUB_CACHE} and cannot be fetched ({reason}): "
        f"where there is a connection run `hf download {checkpoint}{at}` and copy the cache, or give a local "
        "folder instead"
    )


def _has_weights(folder: Path) -> bool:
    return any(any(folder.glob(pattern)) for pattern in SAFE_WEIGHTS + TORCH_WEIGHTS)
