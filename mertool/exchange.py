"""Stores made of features that other toolkits extracted, and feature folders for them made of stores."""

import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mertool.errors import REASONS, ClipError, MertoolError, check_choice
from mertool.features import IMPORTED, MODALITIES, Recipe, faces_recipe
from mertool.files import make_folder
from mertool.interop.features import REASONS_OF_ZEROS, FeatureSource
from mertool.interop.formats import find_format, mertools_faces, mertools_features, titles_with
from mertool.store import ClipFeatures, Failure, FeatureStore, StoreWriter
from mertool.untrusted import is_plain_name

IMPORTED_MODALITIES = (*MODALITIES, "faces")
CLIPS_PER_BLOCK = 256


@dataclass(frozen=True, kw_only=True)
class ImportSummary:
    """The clips of an import.

    recipe: of the store.
    features: number of clips with features.
    failed: number of clips without any by reason.
    """

    recipe: Recipe
    features: int
    failed: dict[str, int]


def import_store(
    source: Path, output: Path, *, modality: str, mean: bool = False, overwrite: bool = False
) -> ImportSummary:
    """Write the features of another toolkit into a store, float32; with `mean`, frames are averaged over time.

    A clip of zeros, or without frames, counts as one that lacks the modality. Raises MertoolError for a source of no
    known format, or one without features of any clip.
    """
    features = _find_source(source, modality)
    if mean and features.modality == "faces":
        raise MertoolError("--pool mean: face crops cannot be averaged: leave it out")
    recipe = imported_recipe(features, mean=mean)
    failed: Counter[str] = Counter()
    count, order = 0, []
    with StoreWriter(
        output, recipe, {"encoder": None, "source": str(source.absolute())}, overwrite=overwrite
    ) as writer:
        for clip, content in features.clips():
            order.append(clip)
            values = _checked(content, features.modality)
            if isinstance(values, ClipError):
                writer.fail(Failure.of(clip, "", values))
                failed[values.reason] += 1
                continue
            digest = hashlib.blake2b(values.tobytes(), digest_size=16).hexdigest()
            writer.add(ClipFeatures(clip, digest, _as_stored(values, recipe)))
            count += 1
        writer.finish(order)
    if not count:
        reasons = ", ".join(f"{number} {reason}" for reason, number in failed.items())
        raise MertoolError(
            f"{source} has features of none of its {len(order)} clips ({reasons}): see `mertool store ls {output} "
            "--failures`"
        )
    return ImportSummary(recipe=recipe, features=count, failed=dict(failed))


def imported_recipe(source: FeatureSource, *, mean: bool = False) -> Recipe:
    """Return the recipe of imported features: it names them, because it cannot say how they were made.

    They have one layer, which is counted 0.
    """
    media = {IMPORTED: source.toolkit}
    if source.modality == "faces":
        return faces_recipe(media)
    return Recipe(
        modality=source.modality,
        encoder=source.name,
        weights=IMPORTED,  # in the place of their digest, which is not known
        layers=(0,),
        pool="mean" if source.pooled or mean else "none",
        storage_dtype="float32",
        media=media,
        preprocessing=0,
    )


def export_store(store: Path, folder: Path) -> dict[str, int]:
    """Write the features of a store as folders of MERTools below `folder`; return the number of clips by folder.

    Each layer of a store of several gets a folder of its own. A clip that lacks the modality is zeros, since MERTools
    wants a file for each. Raises MertoolError for a folder that exists.
    """
    with FeatureStore(store) as opened:
        missing = [failure.clip for failure in opened.failures()]
        for clip in [*opened.ids, *missing]:
            if not is_plain_name(clip):
                raise MertoolError(f"{store}: the clip id '{clip}' cannot be the name of a file: rename the clip")
        names = _folder_names(opened)
        for name in names:
            if (folder / name).exists():
                raise MertoolError(f"{folder / name} exists: give another -o, or remove it")
            make_folder(folder / name)
        folders = [folder / name for name in names]
        _write_clips(opened, folders)
        for clip in missing:
            _write_missing(opened, folders, clip)
        return dict.fromkeys(names, len(opened) + len(missing))


def _find_source(path: Path, modality: str) -> FeatureSource:
    check_choice("modality", modality, IMPORTED_MODALITIES)
    if not path.exists():
        raise MertoolError(f"{path} does not exist: give {titles_with('read_features')}")
    source_format = find_format(path, "recognises_features")
    if source_format is None:
        raise MertoolError(f"{path} holds no features that mertool reads: give {titles_with('read_features')}")
    source: FeatureSource = source_format.read_features(path, modality)
    if (modality == "faces") != (source_format is mertools_faces):
        raise MertoolError(f"{path} holds no face crops: give {mertools_faces.TITLE}, or another --modality")
    return source


def _checked(content: np.ndarray | ClipError, modality: str) -> np.ndarray | ClipError:
    """Return the values of a clip, or why it has none."""
    if isinstance(content, ClipError):
        return content
    if content.size == 0 or (modality != "faces" and not content.any()):
        reason = REASONS_OF_ZEROS[modality]
        return ClipError(reason, f"{REASONS[reason].message}: the features are zeros")
    return content if np.isfinite(content).all() else ClipError("not_finite", "the features hold NaN or infinity")


def _as_stored(values: np.ndarray, recipe: Recipe) -> np.ndarray:
    """Return (1, D) for a pooled store, else frames (T, ...)."""
    if recipe.pool == "none":
        return values
    pooled = values if values.ndim == 1 else values.astype(np.float64).mean(0)
    return pooled.astype(np.float32)[None]


def _folder_names(store: FeatureStore) -> list[str]:
    if store.recipe.modality == "faces":
        return [mertools_faces.FOLDER]
    names = (
        [store.path.stem] if len(store.layers) == 1 else [f"{store.path.stem}-layer{layer}" for layer in store.layers]
    )
    return [mertools_features.folder_name(name, pooled=store.pooled) for name in names]


def _write_clips(store: FeatureStore, folders: list[Path]) -> None:
    if store.recipe.modality == "faces":
        for clip in store.ids:
            mertools_faces.write_clip(folders[0], clip, store.frames(clip))
        return
    for start in range(0, len(store), CLIPS_PER_BLOCK):
        ids = store.ids[start : start + CLIPS_PER_BLOCK]
        block = store.read_block(start, start + len(ids)) if store.pooled else [store.frames(clip) for clip in ids]
        for clip, values in zip(ids, block, strict=True):
            layers = values if store.pooled or len(folders) > 1 else values[None]
            for folder, layer in zip(folders, layers, strict=True):
                mertools_features.write_clip(folder, clip, layer)


def _write_missing(store: FeatureStore, folders: list[Path], clip: str) -> None:
    if store.recipe.modality == "faces":
        side = mertools_faces.SIDE
        mertools_faces.write_clip(folders[0], clip, np.zeros((0, side, side, 3), np.uint8))
        return
    zeros = np.zeros(store.channels if store.pooled else (1, store.channels))
    for folder in folders:
        mertools_features.write_clip(folder, clip, zeros)
