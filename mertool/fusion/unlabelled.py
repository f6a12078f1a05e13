"""Unlabelled clips for self-training and prior correction: features of the same recipes, of clips without a label."""

from collections.abc import Collection, Sequence

from mertool.errors import MertoolError
from mertool.store import FeatureStore


def match_stores(stores: Sequence[FeatureStore], unlabelled: Sequence[FeatureStore]) -> list[FeatureStore]:
    """Return the `unlabelled` stores in the order of `stores`, each of the same recipe.

    Raises MertoolError that names every store without a partner. Of several partners the one of the same name is taken.
    """
    matched, faults = [], []
    for store in stores:
        partners = [candidate for candidate in unlabelled if candidate.fingerprint == store.fingerprint]
        if partners:
            same_name = [partner for partner in partners if partner.path.stem == store.path.stem]
            matched.append((same_name or partners)[0])
            continue
        of_modality = [candidate for candidate in unlabelled if candidate.recipe.modality == store.recipe.modality]
        nearest = min(of_modality, key=lambda one: len(store.recipe.differences(one.recipe)), default=None)
        difference = f" ({nearest.path}: {store.recipe.differences(nearest.recipe)})" if nearest else ""
        faults.append(f"{store.path}{difference}")
    if faults:
        raise MertoolError(
            f"no unlabelled store has the recipe of {'; '.join(faults)}: extract the unlabelled clips with the same "
            "options"
        )
    return matched


def unlabelled_clips(
    stores: Sequence[FeatureStore], unlabelled: Sequence[FeatureStore], labelled: Collection[str]
) -> tuple[list[str], int]:
    """Return the clips of the `unlabelled` stores that are not labelled, and how many clips were dropped as labelled.

    A clip is labelled if its id is, or if its media are those of a labelled clip: under another id it would otherwise
    be a training clip of the fold that holds it out. Equal transcripts do not make equal clips.
    """
    labelled_ids = set(labelled)
    labelled_media: set[str] = set()
    for store in stores:
        if store.recipe.modality != "text":
            labelled_media |= {digest for clip, digest in store.digests().items() if clip in labelled_ids}
    is_labelled: dict[str, bool] = {}
    for store in unlabelled:
        is_media = store.recipe.modality != "text"
        for clip, digest in store.digests().items():
            same_media = is_media and digest in labelled_media
            is_labelled[clip] = is_labelled.get(clip, clip in labelled_ids) or same_media
    # Sorted, so that the batches do not depend on the order of the stores.
    clips = sorted(clip for clip, drop in is_labelled.items() if not drop)
    if not clips:
        names = ", ".join(str(store.path) for store in unlabelled)
        raise MertoolError(f"{names}: all {len(is_labelled)} clips are labelled ones: give stores of other clips")
    return clips, len(is_labelled) - len(clips)
