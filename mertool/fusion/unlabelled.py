"""The unlabelled clips of self-training and prior correction: features by the same recipes, and no labelled clip."""

from collections.abc import Collection, Sequence

from mertool.errors import MertoolError
from mertool.store import FeatureStore


def match_stores(stores: Sequence[FeatureStore], unlabelled: Sequence[FeatureStore]) -> list[FeatureStore]:
    """`unlabelled` in the order of `stores`, each of the same recipe; every store without a partner is named."""
    matched, faults = [], []
    for store in stores:
        same = [other for other in unlabelled if other.fingerprint == store.fingerprint]
        if same:
            matched.append(next((other for other in same if other.path.stem == store.path.stem), same[0]))
            continue
        of_modality = [other for other in unlabelled if other.recipe.modality == store.recipe.modality]
        near = min(of_modality, key=lambda other: len(store.recipe.differences(other.recipe)), default=None)
        why = f" ({near.path}: {store.recipe.differences(near.recipe)})" if near else ""
        faults.append(f"{store.path}{why}")
    if faults:
        raise MertoolError(
            f"no unlabelled store has the recipe of {'; '.join(faults)}: extract the unlabelled clips with the same "
            "options"
        )
    return matched


def unlabelled_clips(
    stores: Sequence[FeatureStore], unlabelled: Sequence[FeatureStore], labelled: Collection[str]
) -> tuple[list[str], int]:
    """Clips of the `unlabelled` stores that are no labelled ones, and how many were dropped because they are.

    A clip is labelled if its id is, or if its media are those of a labelled clip: under another name it would come back
    as a training clip of the fold that holds it out. Equal transcripts do not make equal clips.
    """
    known = set(labelled)
    media: set[str] = set()
    for store in stores:
        if store.recipe.modality != "text":
            media |= {digest for clip, digest in store.digests().items() if clip in known}
    found: dict[str, bool] = {}
    for store in unlabelled:
        text = store.recipe.modality == "text"
        for clip, digest in store.digests().items():
            found[clip] = found.get(clip, clip in known) or (not text and digest in media)
    kept = [clip for clip, is_labelled in found.items() if not is_labelled]
    if not kept:
        names = ", ".join(str(store.path) for store in unlabelled)
        raise MertoolError(f"{names}: all {len(found)} clips are labelled ones: give stores of other clips")
    return kept, len(found) - len(kept)
