"""The files of a checkpoint's folder that are loaded, and a view of the folder that has these files alone.

transformers looks for many files in a folder: weights under several names, adapters, distributed checkpoints (which
are pickles), Python code. A model is loaded from the view, so nothing is read that the digest does not name, and no
setting in config.json chooses code.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mertool.errors import MertoolError
from mertool.untrusted import read_bytes

CONFIG = "config.json"
# These are copied to the view without IGNORED_SETTINGS; all other files are linked.
CLEANED = (CONFIG, "tokenizer_config.json")
CONFIGURATION = ("*.json", "*.txt", "*.model", "*.jinja", "*.spm", "*.codes", "*.tiktoken")
SAFE_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
# Checkpoints without safetensors, chinese-hubert among them: torch reads these with weights_only.
TORCH_WEIGHTS = ("pytorch_model.bin", "pytorch_model.bin.index.json")
ADAPTER = "adapter_config.json"
REMEDY = "get the model folder again"
# Settings that choose kernels or weights which transformers would fetch from a hub, and names of files, which may lie
# anywhere: transformers knows the names of the files beside config.json without them.
IGNORED_SETTINGS = (
    *(f"{prefix}{kind}_implementation" for prefix in ("", "_") for kind in ("attn", "experts")),
    *(f"_{kind}_implementation_{suffix}" for kind in ("attn", "experts") for suffix in ("internal", "autoset")),
    *("use_kernels", "kernel_config", "fusion_config", "use_pretrained_backbone"),
    *("vocab_file", "merges_file", "tokenizer_file", "added_tokens_file", "special_tokens_map_file"),
)


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object of a model folder; raises MertoolError for anything else.

    Less strict than `untrusted.read_json`, because configurations of models may hold infinite numbers.
    """
    content = read_bytes(file, REMEDY)
    try:
        value = json.loads(content)
    except (ValueError, MemoryError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise MertoolError(f"{file} cannot be read ({reason}): {REMEDY}") from error
    if not isinstance(value, dict):
        raise MertoolError(f"{file} cannot be read (it holds no JSON object): {REMEDY}")
    return value


def checkpoint_files(folder: Path) -> list[Path]:
    """Return all files of a checkpoint that are loaded: configuration, vocabulary and weights.

    Raises MertoolError where a file is missing, or where the folder has an adapter beside the model.
    """
    if (folder / ADAPTER).exists():
        raise MertoolError(
            f"{folder} holds an adapter ({ADAPTER}) beside the model: merge it into the model with PEFT's "
            "`merge_and_unload`, or give a folder without it"
        )
    configuration = [file for pattern in CONFIGURATION for file in folder.glob(pattern) if file.is_file()]
    return list(dict.fromkeys(configuration + weight_files(folder)))


def weight_files(folder: Path) -> list[Path]:
    """Return the file of weights that is loaded, or its shards, by the order in which transformers looks for them.

    Raises MertoolError if there is none, or if a shard is missing.
    """
    # A configuration may name another file of safetensors.
    named = read_json(folder / CONFIG).get("transformers_weights") if (folder / CONFIG).exists() else None
    names = SAFE_WEIGHTS + TORCH_WEIGHTS if named is None else (_plain_name(named, folder / CONFIG),)
    chosen = next((folder / name for name in names if (folder / name).is_file()), None)
    if chosen is None:
        raise MertoolError(f"{folder} has no weights: one of {', '.join(names)} is needed")
    if chosen.suffix != ".json":
        return [chosen]
    shards = read_json(chosen).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise MertoolError(f"{chosen} names no shards: get the checkpoint again")
    files = [folder / name for name in sorted({_plain_name(shard, chosen) for shard in shards.values()})]
    if missing := [file.name for file in files if not file.is_file()]:
        raise MertoolError(f"{folder} lacks the shard {missing[0]} that {chosen.name} names: get the checkpoint again")
    return files


def _plain_name(name: Any, source: Path) -> str:
    """Return the name of a file in the folder of `source`, which names it; raises MertoolError for another path."""
    if (
        not isinstance(name, str)
        or Path(name).name != name
        or Path(name).suffix not in (".safetensors", ".bin", ".json")
    ):
        raise MertoolError(f"{source} names the weights {str(name)[:80]!r}: names of files beside it are valid")
    return name


@contextmanager
def loadable_view(folder: Path) -> Iterator[Path]:
    """Make a temporary folder of links to the files that are loaded, with configurations that choose no kernels."""
    with TemporaryDirectory(prefix="mertool-") as temporary:
        view = Path(temporary)
        for file in checkpoint_files(folder):
            if file.name in CLEANED:
                cleaned = _without_ignored_settings(read_json(file))
                (view / file.name).write_text(json.dumps(cleaned), encoding="utf-8")
            else:
                (view / file.name).symlink_to(file.resolve())
        yield view


def _without_ignored_settings(value: Any) -> Any:
    """Copy a configuration without IGNORED_SETTINGS, those of its parts included."""
    if isinstance(value, list):
        return [_without_ignored_settings(item) for item in value]
    if isinstance(value, dict):
        settings = {name: item for name, item in value.items() if name not in IGNORED_SETTINGS}
        if isinstance(names := settings.get("fast_tokenizer_files"), list):
            settings["fast_tokenizer_files"] = [name for name in names if Path(str(name)).name == name]
        return {name: _without_ignored_settings(item) for name, item in settings.items()}
    return value
