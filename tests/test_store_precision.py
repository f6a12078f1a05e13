"""Values beyond float16: such a clip keeps float32, whatever the order of writing, of resuming and of merging."""

import os
import warnings
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import h5py
import numpy as np
import pytest
from fixtures.stores import FRAMES, LAYERED, POOLED, features, make_clips, read_clip, write_finished

from mertool.errors import MertoolError, MertoolWarning
from mertool.features import Recipe
from mertool.store import ClipFeatures, FeatureStore, PartWriter, StoreWriter, merge_stores, parts_folder, write_store

HALF_RECIPES = {"pooled": POOLED, "frames": FRAMES, "layered": replace(LAYERED, storage_dtype="float16")}
NOTE = r"holds values beyond 65,504, the largest number of float16, so it is stored in float32"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.h5"


def loud(recipe: Recipe, clip: str, value: float = 70_001.0) -> ClipFeatures:
    """Features with one value beyond float16."""
    row = features(recipe, clip)
    row.values.flat[-1] = value
    return row


def check_values(path: Path, recipe: Recipe, rows: list[ClipFeatures]) -> None:
    """Clips within float16 are rounded to it, the others are exact; the file is valid and of the same recipe."""
    with FeatureStore(path) as store:
        assert store.ids == [row.clip for row in rows]
        assert (store.fingerprint, store.validate()) == (recipe.fingerprint, [])
        for row in rows:
            fits = np.abs(row.values).max() <= 65_504
            expected = row.values.astype(np.float16) if fits else row.values
            np.testing.assert_array_equal(read_clip(store, row.clip), expected.astype(np.float32))


@pytest.mark.parametrize("position", [0, 1, 3])
@pytest.mark.parametrize("kind", HALF_RECIPES)
def test_a_clip_beyond_float16_is_kept_exactly_and_the_others_are_rounded(kind, position, path):
    recipe = HALF_RECIPES[kind]
    rows = make_clips(recipe)
    rows.insert(position, loud(recipe, "loud"))
    with pytest.warns(MertoolWarning, match=rf"^{path} {NOTE}") as told:
        write_finished(path, recipe, rows)
    assert len(told) == 1
    with h5py.File(path) as file:
        assert file["values"].dtype == np.float32
    check_values(path, recipe, rows)


@pytest.mark.parametrize(("value", "dtype"), [(65_504, "float16"), (65_519, "float16"), (-65_520, "float32")])
def test_the_largest_float16_fits(value, dtype, path):
    """65,520 is the smallest number that float16 rounds to infinity."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        write_finished(path, POOLED, [loud(POOLED, "a", value)])
    assert len(told) == (dtype == "float32")
    with FeatureStore(path) as store:
        assert store.dtype == dtype


def test_float32_storage_rounds_nothing_and_tells_nothing(path, recwarn):
    recipe = replace(POOLED, storage_dtype="float32")
    rows = [*make_clips(recipe), loud(recipe, "loud")]
    write_finished(path, recipe, rows)
    with FeatureStore(path) as store:
        for row in rows:
            np.testing.assert_array_equal(store.read([row.clip])[0], row.values)
    assert not recwarn.list


@pytest.mark.parametrize("kind", HALF_RECIPES)
@pytest.mark.filterwarnings("ignore::mertool.errors.MertoolWarning")
def test_runs_that_resume_end_as_one_run(kind, path, tmp_path):
    recipe = HALF_RECIPES[kind]
    rows = [features(recipe, "a"), loud(recipe, "b"), features(recipe, "c"), loud(recipe, "d")]
    for count in range(1, 5):  # narrow, wide, narrow added to wide, wide added to wide
        with StoreWriter(path, recipe, {"encoder": "here"}) as writer:
            assert list(writer.done) == [row.clip for row in rows[: count - 1]]
            writer.add(rows[count - 1])
            writer.finish(row.clip for row in rows)
        check_values(path, recipe, rows[:count])
    write_finished(tmp_path / "whole.h5", recipe, rows)
    assert path.read_bytes() == (tmp_path / "whole.h5").read_bytes()


@pytest.mark.parametrize("kind", HALF_RECIPES)
@pytest.mark.filterwarnings("ignore::mertool.errors.MertoolWarning")
def test_parts_of_both_kinds_by_several_processes_are_joined(kind, path):
    """As after a kill: the parts of one process are narrow, those of another wide, and nothing is merged yet."""
    recipe = HALF_RECIPES[kind]
    rows = [features(recipe, "a"), loud(recipe, "b"), features(recipe, "c")]
    first, second = (PartWriter(path, recipe, {"encoder": "here"}) for _ in range(2))
    parts_folder(path).mkdir()
    for writer, row in zip((first, second, first), rows, strict=True):
        writer.add(row)
        writer.flush()
    with StoreWriter(path, recipe, {"encoder": "here"}) as writer:
        assert set(writer.done) == {"a", "b", "c"}
        writer.finish("abc")
    check_values(path, recipe, rows)


@pytest.mark.parametrize("kind", HALF_RECIPES)
@pytest.mark.filterwarnings("ignore::mertool.errors.MertoolWarning")
def test_merged_stores_hold_the_same_in_any_order(kind, tmp_path):
    recipe = HALF_RECIPES[kind]
    rows = [features(recipe, "a"), loud(recipe, "b"), features(recipe, "c")]
    for row in rows:
        write_finished(tmp_path / f"{row.clip}.h5", recipe, [row])
    for number, order in enumerate(permutations(rows)):
        target = tmp_path / f"merged{number}.h5"
        with pytest.warns(MertoolWarning, match=rf"^{target} {NOTE}"):
            assert merge_stores([tmp_path / f"{row.clip}.h5" for row in order], target) == 3
        check_values(target, recipe, list(order))


def test_a_store_with_storage_float32_is_another_recipe(tmp_path):
    wide = replace(POOLED, storage_dtype="float32")
    write_finished(tmp_path / "1.h5", POOLED, [features(POOLED, "a")])
    write_finished(tmp_path / "2.h5", wide, [features(wide, "b")])
    with pytest.raises(MertoolError, match="their recipes differ: storage dtype: float32 there, float16 here"):
        merge_stores([tmp_path / "1.h5", tmp_path / "2.h5"], tmp_path / "both.h5")


@pytest.mark.filterwarnings("ignore::mertool.errors.MertoolWarning")
def test_write_store_keeps_large_values(path):
    rows = [features(POOLED, "a"), loud(POOLED, "b")]
    write_store(path, POOLED, {}, features=rows)
    check_values(path, POOLED, rows)


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="the file system is not asked for room")
@pytest.mark.filterwarnings("ignore::mertool.errors.MertoolWarning")
def test_room_for_the_wider_values_is_reserved(path, monkeypatch):
    """A full disk must be noticed before HDF5 writes, which would end the process."""
    write_finished(path, FRAMES, [features(FRAMES, f"c{number}", 4000) for number in range(5)])
    narrow, reserved, fallocate = path.stat().st_size, [], os.posix_fallocate
    monkeypatch.setattr(
        os, "posix_fallocate", lambda file, start, size: reserved.append(size) or fallocate(file, start, size)
    )
    write_finished(path, FRAMES, [loud(FRAMES, "loud")])
    assert path.stat().st_size > 1.5 * narrow
    assert reserved[-1] >= path.stat().st_size


def test_values_of_another_type_are_refused(path):
    write_finished(path, POOLED, make_clips(POOLED))
    with h5py.File(path, "r+") as file:
        del file["values"]
        file["values"] = np.zeros((3, 3, 5), np.float64)
    with pytest.raises(MertoolError, match="type float64, not float16"):
        FeatureStore(path)
