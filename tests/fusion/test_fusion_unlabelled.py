"""Which unlabelled clips may be used."""

from contextlib import ExitStack

import numpy as np
import pytest

from mertool.errors import MertoolError
from mertool.fusion.unlabelled import match_stores, unlabelled_clips
from mertool.store import ClipFeatures, FeatureStore, StoreWriter


@pytest.fixture
def opened(make_store):
    """A function that makes stores of (path, modality, layers, clips) and opens them."""
    with ExitStack() as stack:

        def make(path, modality, layers, clips):
            values = {clip: np.zeros((layers, 4), np.float32) for clip in clips}
            return stack.enter_context(FeatureStore(make_store(path, modality, values)))

        yield make


def test_stores_are_matched_by_recipe_whatever_their_order(opened, tmp_path):
    stores = [opened(tmp_path / "audio.h5", "audio", 2, "ab"), opened(tmp_path / "text.h5", "text", 1, "ab")]
    others = [opened(tmp_path / "t.h5", "text", 1, "xy"), opened(tmp_path / "a.h5", "audio", 2, "xy")]
    assert match_stores(stores, others) == others[::-1]


def test_every_store_without_a_partner_is_named_with_what_differs(opened, tmp_path):
    stores = [opened(tmp_path / "audio.h5", "audio", 2, "ab"), opened(tmp_path / "text.h5", "text", 1, "ab")]
    with pytest.raises(MertoolError) as caught:
        match_stores(stores, [opened(tmp_path / "a.h5", "audio", 3, "xy")])
    message = str(caught.value)
    assert "audio.h5" in message
    assert "a.h5: layers: [6, 7, 8] there, [7, 8] here" in message
    assert "text.h5: extract the unlabelled clips with the same options" in message


def test_labelled_clips_are_dropped_and_counted(opened, tmp_path):
    stores = [opened(tmp_path / "audio.h5", "audio", 2, "abc")]
    others = [opened(tmp_path / "a.h5", "audio", 2, "xbcy")]
    assert unlabelled_clips(stores, others, ["a", "b", "c"]) == (["x", "y"], 2)


def test_one_store_may_hold_both(opened, tmp_path):
    stores = [opened(tmp_path / "audio.h5", "audio", 2, "abcd")]
    assert unlabelled_clips(stores, stores, ["a", "b"]) == (["c", "d"], 2)


def test_clips_of_any_store_are_used_once(opened, tmp_path):
    stores = [opened(tmp_path / f"{name}.h5", name, 2, "a") for name in ("audio", "text")]
    others = [opened(tmp_path / "u-audio.h5", "audio", 2, "xy"), opened(tmp_path / "u-text.h5", "text", 2, "yz")]
    assert unlabelled_clips(stores, others, ["a"]) == (["x", "y", "z"], 0)


@pytest.mark.parametrize("modality, kept", [("audio", ["z"]), ("text", ["x", "z"])])
def test_a_labelled_clip_under_another_name_is_known_by_its_media_not_by_its_words(
    modality, kept, opened, make_store, tmp_path
):
    store = opened(tmp_path / "store.h5", modality, 1, "ab")
    with StoreWriter(tmp_path / "others.h5", store.recipe, {}) as writer:
        for clip, digest in (("x", "digest-a"), ("z", "digest-z")):
            writer.add(ClipFeatures(clip, digest, np.zeros((1, 4), np.float32)))
        writer.finish(["x", "z"])
    with FeatureStore(tmp_path / "others.h5") as others:
        assert unlabelled_clips([store], [others], ["a", "b"]) == (kept, 2 - len(kept))


def test_nothing_but_labelled_clips_is_an_error(opened, tmp_path):
    store = opened(tmp_path / "audio.h5", "audio", 2, "ab")
    with pytest.raises(MertoolError, match=r"audio\.h5: all 2 clips are labelled ones"):
        unlabelled_clips([store], [store], ["a", "b"])
