"""Finding a checkpoint by table name, hub id or local folder, and reading its configuration."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mertool.encoders.families import EncoderFamily, family_for
from mertool.encoders.table import ENCODERS, encoder_names
from mertool.errors import MertoolError, suggest
from mertool.files import content_digest

CONFIGURATION = ("*.json", "*.txt", "*.model", "*.jinja")
SAFE_WEIGHTS = ("*.safetensors",)
# Checkpoints without safetensors, chinese-hubert among them: torch reads these with weights_only.
TORCH_WEIGHTS = ("pytorch_model*.bin",)


@dataclass(frozen=True, kw_only=True)
class CheckpointRef:
    """A checkpoint on this machine.

    name: its short name, hub id or the name of its folder.
    folder: where its files are.
    checkpoint: its hub id, or the local folder; this is how others find it.
    revision: the commit of the hub, if one is known.
    """

    name: str
    folder: Path
    checkpoint: str
    revision: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return how others find the checkpoint, for a run's record."""
        return {"name": self.name, "checkpoint": self.checkpoint, "revision": self.revision}

    def digest(self) -> str:
        """Return the SHA-256 of configuration, vocabulary and weights."""
        files = [path for pattern in CONFIGURATION for path in self.folder.glob(pattern)]
        weights = [path for pattern in SAFE_WEIGHTS for path in self.folder.glob(pattern)]
        weights = weights or [path for pattern in TORCH_WEIGHTS for path in self.folder.glob(pattern)]
        return content_digest(files + weights)

    def config(self) -> dict[str, Any]:
        """Read config.json; raises MertoolError."""
        try:
            config: dict[str, Any] = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise MertoolError(f"{self.folder}/config.json cannot be read ({error})") from error
        return config

    def family(self, modality: str) -> EncoderFamily:
        """Return the family that loads the checkpoint as an encoder of `modality`; raises MertoolError."""
        try:
            return family_for(str(self.config().get("model_type")), modality)
        except MertoolError as error:
            raise MertoolError(f"{self.folder} cannot be loaded as an encoder for {modality}: {error}") from error


def resolve_encoder(name: str, modality: str, revision: str | None = None) -> CheckpointRef:
    """Find an encoder by table name, local folder or hub id; download it where a hub can be reached.

    Raises MertoolError if it is not found, or if it encodes another modality.
    """
    checkpoint = _locate(name, modality, revision)
    checkpoint.family(modality)
    return checkpoint


def resolve_recogniser(name: str) -> CheckpointRef:
    """Find a Whisper by table name, local folder or hub id."""
    valid = [spec.name for spec in ENCODERS if spec.family == "whisper"]
    if "/" not in name and not Path(name).is_dir() and name not in valid:
        raise MertoolError(
            f"unknown speech recogniser '{name}' (--asr): {suggest(name, valid)}valid: {', '.join(valid)}, a hub id of "
            "a Whisper as owner/model, or a local folder"
        )
    return _locate(name, "audio", None)


def count_layers(checkpoint: CheckpointRef) -> int:
    """Return the number of transformer blocks, read from the configuration without loading the model."""
    config = checkpoint.config()
    nested = config.get("vision_config") or config.get("text_config") or {}
    for settings in (config, nested):
        for key in ("num_hidden_layers", "encoder_layers", "n_layer"):
            if isinstance(settings.get(key), int):
                return int(settings[key])
    # A hub's CLIP configuration may leave out what equals the class's default.
    from transformers import AutoConfig

    loaded = AutoConfig.from_pretrained(checkpoint.folder)
    return int(getattr(loaded, "vision_config", loaded).num_hidden_layers)


def stores_half_precision(checkpoint: CheckpointRef) -> bool:
    """Whether the weights are kept in half precision, as those of large language models are."""
    config = checkpoint.config()
    return str(config.get("dtype") or config.get("torch_dtype")).removeprefix("torch.") in ("bfloat16", "float16")


def _locate(name: str, modality: str, revision: str | None) -> CheckpointRef:
    spec = next((spec for spec in ENCODERS if spec.name == name), None)
    if spec:
        if spec.modality != modality:
            valid = ", ".join(encoder_names(modality))
            raise MertoolError(f"encoder '{name}' is for {spec.modality}: for {modality} take {valid}")
        folder = _download(spec.checkpoint, revision or spec.revision)
        return CheckpointRef(name=name, folder=folder, checkpoint=spec.checkpoint, revision=spec.revision)
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").exists():
            raise MertoolError(f"encoder folder {folder} has no config.json: give a Hugging Face model folder")
        folder = folder.resolve()
        return CheckpointRef(name=folder.name, folder=folder, checkpoint=str(folder))
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise MertoolError(f"encoder folder {name} does not exist")
    if "/" not in name:
        known = encoder_names(modality)
        raise MertoolError(
            f"unknown encoder '{name}': {suggest(name, known)}valid: {', '.join(known)}, a hub id as "
            "owner/model, or a local folder"
        )
    return CheckpointRef(name=name, folder=_download(name, revision), checkpoint=name, revision=revision)


def _download(checkpoint: str, revision: str | None) -> Path:
    """Return the folder of a hub's checkpoint in the local cache, filled from the hub if it is not there."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.utils import LocalEntryNotFoundError, logging

    logging.set_verbosity_error()  # it logs each attempt; the error below says all of it in one line

    def get(patterns: tuple[str, ...], *, local: bool) -> Path:
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
    except Exception as error:  # the hub's client raises many kinds, and all of them mean that it cannot be had
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    option = f" --revision {revision}" if revision else ""
    raise MertoolError(
        f"encoder '{checkpoint}' is not in the cache {constants.HF_HUB_CACHE} and cannot be fetched ({reason}): "
        f"where there is a connection run `hf download {checkpoint}{option}` and copy the cache, or give a local "
        "folder instead"
    )


def _has_weights(folder: Path) -> bool:
    return any(any(folder.glob(pattern)) for pattern in SAFE_WEIGHTS + TORCH_WEIGHTS)
