"""Finding a checkpoint by table name, hub id or local folder, and reading its configuration."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mertool.encoders.checkpoint_files import (
    CONFIG,
    CONFIGURATION,
    checkpoint_files,
    loadable_view,
    read_json,
    weight_files,
)
from mertool.encoders.families import EncoderFamily, family_for
from mertool.encoders.table import ENCODERS, EncoderSpec, encoder_names
from mertool.errors import MertoolError, suggest
from mertool.files import content_digest

# Patterns of what is fetched from a hub: shards have names of their own.
SAFE_PATTERNS = (*CONFIGURATION, "*.safetensors")
TORCH_PATTERNS = ("pytorch_model*.bin",)


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
        """Return the SHA-256 of the files that are loaded: configuration, vocabulary and weights.

        Raises MertoolError if one of them is missing or cannot be read.
        """
        try:
            return content_digest(checkpoint_files(self.folder))
        except OSError as error:
            raise MertoolError(f"{error.filename or self.folder} cannot be read ({error.strerror})") from error

    def config(self) -> dict[str, Any]:
        """Read config.json; raises MertoolError."""
        return read_json(self.folder / CONFIG)

    def family(self, modality: str) -> EncoderFamily:
        """Return the family that loads the checkpoint as an encoder of `modality`; raises MertoolError."""
        try:
            return family_for(str(self.config().get("model_type")), modality)
        except MertoolError as error:
            raise MertoolError(f"{self.folder} cannot be loaded as an encoder for {modality}: {error}") from error


def check_encoder(name: str, modality: str) -> None:
    """Raise MertoolError for an encoder that cannot be: of another modality, misspelt, or a folder that is not one.

    Nothing is downloaded, so a hub id passes.
    """
    if spec := _find_row(name):
        if spec.modality != modality:
            valid = ", ".join(encoder_names(modality))
            raise MertoolError(f"encoder '{name}' is for {spec.modality}: for {modality} take {valid}")
        return
    if folder := _find_folder(name):
        _folder_ref(folder).family(modality)
    elif "/" not in name:
        known = encoder_names(modality)
        raise MertoolError(
            f"unknown encoder '{name}': {suggest(name, known)}valid: {', '.join(known)}, a hub id as "
            "owner/model, or a local folder"
        )


def check_recogniser(name: str) -> None:
    """Raise MertoolError for a speech recogniser that cannot be; nothing is downloaded."""
    valid = [spec.name for spec in ENCODERS if spec.family == "whisper"]
    if not _find_folder(name) and "/" not in name and name not in valid:
        raise MertoolError(
            f"unknown speech recogniser '{name}' (--asr): {suggest(name, valid)}valid: {', '.join(valid)}, a hub id of "
            "a Whisper as owner/model, or a local folder"
        )


def resolve_encoder(name: str, modality: str, revision: str | None = None) -> CheckpointRef:
    """Find an encoder by table name, local folder or hub id; download it where a hub can be reached.

    Raises MertoolError if it is not found, or if it encodes another modality.
    """
    check_encoder(name, modality)
    checkpoint = _locate(name, revision)
    checkpoint.family(modality)
    return checkpoint


def resolve_recogniser(name: str) -> CheckpointRef:
    """Find a Whisper by table name, local folder or hub id; raises MertoolError."""
    check_recogniser(name)
    return _locate(name, None)


def count_layers(checkpoint: CheckpointRef) -> int:
    """Return the number of transformer blocks, read from the configuration without loading the model."""
    config = checkpoint.config()
    nested = config.get("vision_config") or config.get("text_config") or {}
    for settings in (config, nested):
        for key in ("num_hidden_layers", "encoder_layers", "n_layer"):
            if isinstance(settings, dict) and type(count := settings.get(key)) is int and count > 0:
                return count
    # A hub's CLIP configuration may leave out what equals the class's default.
    from mertool.encoders.pretrained import load_config

    try:
        with loadable_view(checkpoint.folder) as view:
            loaded = load_config(view)
        return int(getattr(loaded, "vision_config", loaded).num_hidden_layers)
    except (AttributeError, TypeError, ValueError, KeyError, OSError) as error:
        raise MertoolError(f"{checkpoint.folder}/{CONFIG} does not tell the number of transformer blocks") from error


def stores_half_precision(checkpoint: CheckpointRef) -> bool:
    """Return True if the weights are kept in half precision, as those of large language models are."""
    config = checkpoint.config()
    return str(config.get("dtype") or config.get("torch_dtype")).removeprefix("torch.") in ("bfloat16", "float16")


def _find_row(name: str) -> EncoderSpec | None:
    return next((spec for spec in ENCODERS if spec.name == name), None)


def _find_folder(name: str) -> Path | None:
    """Return the local folder that `name` is, None for another name; raises MertoolError if it is no model."""
    folder = Path(name).expanduser()
    if folder.is_dir() and not _find_row(name):
        if not (folder / CONFIG).is_file():
            raise MertoolError(f"encoder folder {folder} has no {CONFIG}: give a Hugging Face model folder")
        return folder.resolve()
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise MertoolError(f"encoder folder {name} does not exist")
    return None


def _folder_ref(folder: Path) -> CheckpointRef:
    return CheckpointRef(name=folder.name, folder=folder, checkpoint=str(folder))


def _locate(name: str, revision: str | None) -> CheckpointRef:
    """Find the files of a checkpoint; a name of the table means that row, even beside a folder of the same name."""
    if spec := _find_row(name):
        folder = _download(spec.checkpoint, revision or spec.revision)
        return CheckpointRef(name=name, folder=folder, checkpoint=spec.checkpoint, revision=spec.revision)
    if local := _find_folder(name):
        return _folder_ref(local)
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
        folder = get(SAFE_PATTERNS, local=False)
        if not _has_weights(folder):
            folder = get(TORCH_PATTERNS, local=False)
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
    """Return True if the folder has the weights that would be loaded, all shards of them included."""
    try:
        return bool(weight_files(folder))
    except MertoolError:
        return False
