"""Writing a bundle: trained parts and small encoders are copied into it, the others named by digest."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mertool.adapters import methods as peft_methods
from mertool.bundle.layout import (
    COPY_BYTES,
    encoder_files,
    encoder_folder,
    file_digest,
    manifest_digest,
    part_folder,
)
from mertool.encoders import CheckpointRef
from mertool.errors import MertoolError, combine_errors
from mertool.files import explain_write_errors
from mertool.fusion.calibration import Correction
from mertool.fusion.cross_validation import Members
from mertool.learning.cached_features import shape_of, spans_of
from mertool.runs import Run, RunDraft
from mertool.store import FeatureStore


def make_part(store: FeatureStore) -> dict[str, Any]:
    """What a bundle says of one store, see the top of the package."""
    return {
        "name": store.path.stem,
        "modality": store.recipe.modality,
        "recipe": store.recipe.to_json(),
        "origin": store.origin,
        "shape": list(shape_of(store)),
        "spans": spans_of(store),
    }


def check_parts(parts: list[dict[str, Any]]) -> None:
    """Raise now, before the long work, one error for all trained parts that are gone or are others by now."""
    faults = [fault for part in parts for fault in _faults(part)]
    if faults:
        raise combine_errors("the features cannot be made again from clips", faults)


def write(draft: RunDraft, parts: list[dict[str, Any]], groups: list[Members], correction: Correction) -> None:
    """Make the draft of a run a bundle; `classes` must be among its facts."""
    check_parts(parts)
    members = []
    for number, group in enumerate(groups):
        draft.save_tensors(f"members-{number}", group.state)
        facts = {"head": group.head, "width": group.width, "dropout": group.dropout}
        file = f"members-{number}.safetensors"
        members.append({"file": file, **facts, "fold": list(group.fold), "seed": list(group.seed)})
    for number, part in enumerate(parts):
        _copy(part, draft.folder, number)
    draft.info.update(parts=parts, members=members, correction=correction.to_json())
    draft.info["files"] = {
        file.relative_to(draft.folder).as_posix(): file_digest(file)
        for pattern in ("members-*.safetensors", "encoders/**/*", "part*/**/*")
        for file in sorted(draft.folder.glob(pattern))
        if file.is_file()
    }
    draft.info["seal"] = manifest_digest(draft.info)


def _faults(part: dict[str, Any]) -> Iterator[str]:
    for what, stage in (("adapter", "finetune"), ("aligner", "align")):
        if not part["recipe"][what]:
            continue
        folder = part["origin"].get(what)
        try:
            same = bool(folder) and Run.read(Path(folder), stage).digest() == part["recipe"][what]
        except MertoolError as error:
            yield f"store '{part['name']}': {error}"
            continue
        if not same:
            yield f"store '{part['name']}' was made with an {what} that is no longer in {folder}: extract it again"
    for what, folder, digest in _small_encoders(part):
        if CheckpointRef(what, folder, str(folder)).digest() != digest:
            yield f"store '{part['name']}': the {what} in {folder} is not the one it was made with: extract it again"


def _small_encoders(part: dict[str, Any]) -> Iterator[tuple[str, Path, str]]:
    """Kind, folder and digest of the local encoders of a part that are copied."""
    recipe = part["recipe"]
    for what, digest in (("encoder", recipe["weights"]), ("asr", recipe["media"].get("asr"))):
        named = part["origin"].get(what)
        folder = Path(named["checkpoint"]) if named else Path()
        if folder.is_absolute() and folder.is_dir() and _is_small(folder):
            yield what, folder, digest


def _is_small(folder: Path) -> bool:
    files = encoder_files(folder)
    return bool(files) and sum(file.stat().st_size for file in files) <= COPY_BYTES


def _copy(part: dict[str, Any], bundle: Path, number: int) -> None:
    origin, own = part["origin"], bundle / part_folder(number)
    with explain_write_errors(own):
        if part["recipe"]["adapter"]:
            final = Path(origin["adapter"]) / "adapters" / peft_methods.FINAL
            _copy_files([final / "adapter_config.json", *final.glob("*.safetensors")], own / "adapters" / final.name)
        if part["recipe"]["aligner"]:
            run = Path(origin["aligner"])
            _copy_files([run / "run.json", *run.glob("*.safetensors")], own / "aligner")
        for _, folder, digest in _small_encoders(part):
            target = bundle / encoder_folder(digest)
            if not target.exists():  # parts may share it
                _copy_files(encoder_files(folder), target)


def _copy_files(files: list[Path], folder: Path) -> None:
    folder.mkdir(parents=True)
    for file in files:
        shutil.copyfile(file, folder / file.name)
