"""The feature store: layout, resuming, refusal of other recipes, merging and reading."""

import json
import subprocess
import sys
import tracemalloc
from dataclasses import fields, replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from fixtures.stores import (
    CHANNELS,
    FACES,
    FRAMES,
    LAYERED,
    LOST,
    POOLED,
    RECIPES,
    features,
    make_clips,
    read_clip,
    write_finished,
)

from mertool.errors import MertoolError
from mertool.features import Recipe
from mertool.media_stats import MediaStats
from mertool.store import (
    ClipFeatures,
    FeatureStore,
    StoreWriter,
    merge_stores,
    parts_folder,
    write_store,
    writer,
)


def open_writer(path: Path, recipe: Recipe) -> None:
    with StoreWriter(path, recipe, {}):
        pass


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.h5"


# ---------------------------------------------------------------- layout


@pytest.mark.parametrize("kind", RECIPES)
def test_values_are_read_as_written(kind, path):
    recipe = RECIPES[kind]
    rows = make_clips(recipe)
    write_finished(path, recipe, rows)
    with FeatureStore(path) as store:
        assert store.ids == ["a", "b", "c"]
        assert store.pooled == (kind == "pooled")
        for row in rows:
            expected = row.values.astype(recipe.storage_dtype)
            np.testing.assert_array_equal(read_clip(store, row.clip), expected)
        assert store.validate() == []


def test_pooled_layout_is_the_documented_one(path):
    rows = make_clips(POOLED)
    write_finished(path, POOLED, [*rows, LOST])
    with h5py.File(path) as file:
        assert set(file) == {"values", "clips", "failures"}
        assert set(file["clips"]) == {"id", "digest"} | {field.name for field in fields(MediaStats)}
        assert set(file.attrs) == {"schema", "recipe", "fingerprint", "origin"}
        assert file["values"].shape == (3, 3, CHANNELS)
        assert file["values"].dtype == np.float16
        assert file["clips/id"].asstr()[:].tolist() == ["a", "b", "c"]
        assert file["failures"].dtype.names == ("clip", "digest", "stage", "reason", "message")
        assert [cell.decode() for cell in file["failures"][0]] == list(vars(LOST).values())
        assert file.attrs["schema"] == 2
        assert file.attrs["fingerprint"] == POOLED.fingerprint
        assert Recipe.from_json(json.loads(file.attrs["recipe"])) == POOLED


@pytest.mark.parametrize(("kind", "shape"), [("frames", (9, CHANNELS)), ("layered", (2, 9, CHANNELS))])
def test_frame_layout_is_the_documented_one(kind, shape, path):
    write_finished(path, RECIPES[kind], make_clips(RECIPES[kind]))
    with h5py.File(path) as file:
        assert set(file) == {"values", "offset", "length", "clips", "failures"}
        assert file["values"].shape == shape
        assert file["length"][:].tolist() == [2, 3, 4]
        assert file["offset"][:].tolist() == [0, 2, 5]


def test_face_crops_are_stored_as_uint8(path):
    write_finished(path, FACES, make_clips(FACES, "ab"))
    with h5py.File(path) as file:
        assert file["values"].shape == (5, 224, 224, 3)
        assert file["values"].dtype == np.uint8


def test_media_stats_digests_and_provenance(path):
    write_finished(path, FRAMES, make_clips(FRAMES, "ab"))
    with FeatureStore(path) as store:
        stats = store.media_stats()
        assert stats["seconds"].tolist() == [1.5, 1.5]
        assert stats["frames_seen"].tolist() == [2, 3]
        assert stats["face_share"].tolist() == [0.5, 0.5]
        assert store.digests() == {"a": "d-a", "b": "d-b"}
        assert store.provenance == {"encoder": "here"}


def test_facts_of_the_media_survive_parts_and_merging(path, tmp_path):
    stats = MediaStats(seconds=2.5, sample_rate=48_000, channels=6, audio_tracks=3, audio_track=2, note="丢失 lost")
    rows = [ClipFeatures(clip, f"d-{clip}", np.zeros((3, CHANNELS)), **stats.to_dict()) for clip in "ab"]
    write_finished(path, POOLED, rows[:1])
    write_finished(tmp_path / "other.h5", POOLED, rows[1:])
    merge_stores([path, tmp_path / "other.h5"], tmp_path / "both.h5")
    with FeatureStore(tmp_path / "both.h5") as store:
        assert [row.to_dict() | {"face_share": 0} for row in store.media_stats_of_clips()] == [
            stats.to_dict() | {"face_share": 0}
        ] * 2


def test_ids_may_hold_chinese_and_spaces(path):
    write_finished(path, POOLED, [features(POOLED, "spk08_测试 clip")])
    with FeatureStore(path) as store:
        assert store.ids == ["spk08_测试 clip"]


def test_a_store_of_only_failures_is_valid(path):
    write_finished(path, POOLED, [LOST])
    with FeatureStore(path) as store:
        assert (len(store), store.failures(), store.validate()) == (0, [LOST], [])
        assert store.read().shape[0] == 0


# ---------------------------------------------------------------- writing and resuming


def test_order_is_that_of_the_manifest_not_of_writing(path):
    write_finished(path, FRAMES, make_clips(FRAMES), order=["c", "a", "b"])
    with FeatureStore(path) as store:
        assert store.ids == ["c", "a", "b"]
        np.testing.assert_array_equal(store.frames("b"), make_clips(FRAMES)[1].values.astype(np.float16))


@pytest.mark.parametrize("kind", RECIPES)
def test_several_part_files_give_the_same_values_as_one(kind, tmp_path, monkeypatch):
    recipe = RECIPES[kind]
    names = "abcdefg" if kind != "faces" else "abc"
    write_finished(tmp_path / "single.h5", recipe, [*make_clips(recipe, names), LOST])
    monkeypatch.setattr(writer, "PART_CLIPS", 2)
    write_finished(tmp_path / "parts.h5", recipe, [*make_clips(recipe, names), LOST])
    with FeatureStore(tmp_path / "single.h5") as single, FeatureStore(tmp_path / "parts.h5") as parts:
        assert single.ids == parts.ids
        assert single.failures() == parts.failures()
        for name in names:
            np.testing.assert_array_equal(read_clip(single, name), read_clip(parts, name))
        assert parts.validate() == []


def test_part_files_are_valid_and_removed_after_merging(path, monkeypatch):
    monkeypatch.setattr(writer, "PART_CLIPS", 2)
    with StoreWriter(path, FRAMES, {}) as out:
        for row in make_clips(FRAMES, "abcde"):
            out.add(row)
        parts = sorted(parts_folder(path).glob("part-*.h5"))
        assert len(parts) == 2
        assert not path.exists()
        for part in parts:
            with h5py.File(part) as file:
                assert file.attrs["fingerprint"] == FRAMES.fingerprint
        out.finish("abcde")
    assert not parts_folder(path).exists()
    assert [p.name for p in path.parent.iterdir()] == ["store.h5"]


def test_resume_after_an_error_loses_no_clip(path):
    with pytest.raises(KeyError), StoreWriter(path, POOLED, {}) as out:
        out.add(features(POOLED, "a"))
        out.fail(LOST)
        raise KeyError("stop")
    assert not path.exists()
    with StoreWriter(path, POOLED, {}) as out:
        assert out.done == {"a": "d-a"}
        assert out.failed == {"lost": LOST}
        out.add(features(POOLED, "b"))
        out.finish("ab")
    with FeatureStore(path) as store:
        assert store.ids == ["a", "b"]
        np.testing.assert_array_equal(store.read(["a"])[0], features(POOLED, "a").values.astype(np.float16))


def test_resume_of_a_finished_store_writes_nothing(path):
    write_finished(path, POOLED, make_clips(POOLED))
    before = path.stat()
    with StoreWriter(path, POOLED, {}) as out:
        assert set(out.done) == {"a", "b", "c"}
        out.finish("abc")
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (before.st_mtime_ns, before.st_ino)


def test_resume_adds_clips_to_a_finished_store(path):
    write_finished(path, LAYERED, make_clips(LAYERED, "ab"))
    with StoreWriter(path, LAYERED, {}) as out:
        out.add(features(LAYERED, "c", 6))
        out.finish("acb")
    with FeatureStore(path) as store:
        assert store.ids == ["a", "c", "b"]
        for row in [*make_clips(LAYERED, "ab"), features(LAYERED, "c", 6)]:
            np.testing.assert_array_equal(store.frames(row.clip), row.values)
        assert store.validate() == []


def test_clips_outside_the_order_stay(path):
    write_finished(path, POOLED, make_clips(POOLED))
    with StoreWriter(path, POOLED, {}) as out:
        out.add(features(POOLED, "d"))
        out.finish(["d"])
    with FeatureStore(path) as store:
        assert store.ids == ["d", "a", "b", "c"]


def test_a_changed_clip_is_replaced(path):
    write_finished(path, FRAMES, make_clips(FRAMES))
    changed = features(FRAMES, "b", 7, "d-new")
    with StoreWriter(path, FRAMES, {}) as out:
        out.add(changed)
        out.finish("abc")
    with FeatureStore(path) as store:
        assert store.ids == ["a", "b", "c"]
        assert store.digests()["b"] == "d-new"
        np.testing.assert_array_equal(store.frames("b"), changed.values.astype(np.float16))
        np.testing.assert_array_equal(store.frames("c"), make_clips(FRAMES)[2].values.astype(np.float16))
        assert store.validate() == []


def test_a_failed_clip_with_features_is_no_failure_any_more(path):
    write_finished(path, POOLED, [features(POOLED, "a"), LOST])
    with StoreWriter(path, POOLED, {}) as out:
        out.add(features(POOLED, "lost"))
        assert out.failed == {}
        out.finish(["a", "lost"])
    with FeatureStore(path) as store:
        assert (store.ids, store.failures()) == (["a", "lost"], [])


def test_a_clip_that_fails_loses_its_features(path):
    write_finished(path, POOLED, [features(POOLED, "a"), features(POOLED, "lost")])
    write_finished(path, POOLED, [LOST], ["a", "lost"])
    with FeatureStore(path) as store:
        assert (store.ids, store.failures(), store.validate()) == (["a"], [LOST], [])


def test_the_last_features_of_a_clip_added_twice_win(path):
    newest = features(POOLED, "a", digest="d-new")
    write_finished(path, POOLED, [features(POOLED, "a"), newest], ["a"])
    with FeatureStore(path) as store:
        assert store.ids == ["a"]
        np.testing.assert_array_equal(store.read()[0], newest.values.astype(np.float16))


# ---------------------------------------------------------------- refusing


def test_another_recipe_is_refused_and_the_store_stays(path):
    write_finished(path, POOLED, make_clips(POOLED))
    before = path.read_bytes()
    with pytest.raises(MertoolError, match=r"another recipe \(weights: w0 there, w1 here\).*--overwrite"):
        open_writer(path, replace(POOLED, weights="w1"))
    assert path.read_bytes() == before


def test_overwrite_keeps_the_old_store_until_the_new_one_is_finished(path):
    write_finished(path, POOLED, make_clips(POOLED))
    other = replace(POOLED, weights="w1")
    with StoreWriter(path, other, {}, overwrite=True) as out:
        assert out.done == {}
        out.add(features(other, "z"))
        out.flush()
        with FeatureStore(path) as store:
            assert store.fingerprint == POOLED.fingerprint
        out.finish("z")
    with FeatureStore(path) as store:
        assert (store.ids, store.fingerprint) == (["z"], other.fingerprint)


def test_part_files_of_another_recipe_are_refused_or_overwritten(path):
    with pytest.raises(KeyError), StoreWriter(path, POOLED, {}) as out:
        out.add(features(POOLED, "a"))
        raise KeyError
    other = replace(POOLED, encoder="huge")
    with pytest.raises(MertoolError, match=r"unfinished extraction .*encoder: tiny there, huge here"):
        open_writer(path, other)
    with StoreWriter(path, other, {}, overwrite=True) as out:
        assert out.done == {}
        out.add(features(other, "b"))
        out.finish("b")
    with FeatureStore(path) as store:
        assert (store.ids, store.fingerprint) == (["b"], other.fingerprint)


def test_a_refused_writer_releases_the_lock(path):
    with pytest.raises(KeyError), StoreWriter(path, POOLED, {}) as out:
        out.add(features(POOLED, "a"))
        raise KeyError
    with pytest.raises(MertoolError) as refused:
        open_writer(path, replace(POOLED, encoder="huge"))
    assert refused.value.__traceback__  # holds the refused writer's frame alive, as a REPL or a debugger does
    with StoreWriter(path, POOLED, {}) as out:
        assert out.done == {"a": "d-a"}


def test_a_second_writer_is_refused(path):
    code = (
        "import sys; from pathlib import Path; from mertool.features import Recipe\n"
        "from mertool.errors import MertoolError; from mertool.store import StoreWriter\n"
        "recipe = Recipe(modality='audio', encoder='tiny', weights='w0', layers=(0, 1, 2), pool='mean')\n"
        "try: StoreWriter(Path(sys.argv[1]), recipe, {}).__enter__()\n"
        "except MertoolError as error: print(error)"
    )
    with StoreWriter(path, POOLED, {}) as out:
        out.add(features(POOLED, "a"))
        done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, timeout=60)
        assert "another extraction is writing" in done.stdout
        assert str(path) in done.stdout
        out.finish("a")


def test_a_folder_at_the_path_is_an_error(path):
    path.mkdir()
    with pytest.raises(MertoolError, match="it is a folder"):
        open_writer(path, POOLED)


# ---------------------------------------------------------------- merging


@pytest.mark.parametrize("kind", RECIPES)
def test_merged_stores_equal_one_store(kind, tmp_path):
    recipe = RECIPES[kind]
    rows = make_clips(recipe, "abcd")
    write_finished(tmp_path / "1.h5", recipe, rows[:2])
    write_finished(tmp_path / "2.h5", recipe, [*rows[2:], LOST])
    assert merge_stores([tmp_path / "1.h5", tmp_path / "2.h5"], tmp_path / "both.h5") == 4
    write_finished(tmp_path / "one.h5", recipe, [*rows, LOST])
    with h5py.File(tmp_path / "both.h5") as both, h5py.File(tmp_path / "one.h5") as one:
        assert set(both) == set(one)
        for name in ("values", "clips/id", "clips/digest", "failures", "offset", "length"):
            if name in one:
                np.testing.assert_array_equal(both[name][:], one[name][:])
        assert dict(both.attrs) == dict(one.attrs)


def test_stores_of_two_recipes_are_not_merged(tmp_path):
    other = replace(POOLED, layers=(0, 1, 3))
    write_finished(tmp_path / "1.h5", POOLED, make_clips(POOLED))
    write_finished(tmp_path / "2.h5", other, make_clips(other))
    with pytest.raises(MertoolError, match=r"cannot be merged, their recipes differ: layers: "):
        merge_stores([tmp_path / "1.h5", tmp_path / "2.h5"], tmp_path / "both.h5")
    assert not (tmp_path / "both.h5").exists()


def test_merging_needs_little_memory(tmp_path):
    wide = Recipe(modality="audio", encoder="tiny", weights="w0", layers=(0,), pool="mean", storage_dtype="float32")
    for number in range(2):
        rows = [ClipFeatures(f"{number}-{i}", "d", np.full((1, 4096), i, np.float32)) for i in range(1000)]
        write_finished(tmp_path / f"{number}.h5", wide, rows)
    del rows
    tracemalloc.start()
    merge_stores([tmp_path / "0.h5", tmp_path / "1.h5"], tmp_path / "both.h5")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2000 * 4096 * 4 / 2, f"{peak / 1e6:.0f} MB held for a store of 33 MB"
    with FeatureStore(tmp_path / "both.h5") as store:
        assert store.read(["0-7", "1-999"])[:, 0, 0].tolist() == [7, 999]


def test_write_store(path):
    write_store(path, POOLED, {}, features=make_clips(POOLED), failures=[LOST])
    with FeatureStore(path) as store:
        assert (store.ids, store.failures(), store.validate()) == (["a", "b", "c"], [LOST], [])


# ---------------------------------------------------------------- reading


def test_read_follows_the_order_of_clips(path):
    write_finished(path, POOLED, make_clips(POOLED, "abcdefghijklmnop"))
    with FeatureStore(path) as store:
        for order in (["c", "a"], ["p", "a", "p"], list("ponmlkjihgfedcba")):
            expected = [features(POOLED, name).values.astype(np.float16) for name in order]
            np.testing.assert_array_equal(store.read(order), np.stack(expected).astype(np.float32))
        assert store.read(["a"]).dtype == np.float32
        assert store.read([]).shape == (0, 3, CHANNELS)


def test_missing_clips_are_counted_and_the_first_named(path):
    write_finished(path, POOLED, make_clips(POOLED))
    with FeatureStore(path) as store, pytest.raises(MertoolError, match=r"no features of 2 of 3 clips \(first: x\)"):
        store.read(["a", "x", "y"])


def test_lengths_of_frames(path):
    write_finished(path, FRAMES, make_clips(FRAMES))
    with FeatureStore(path) as store:
        assert store.lengths(["c", "a"]).tolist() == [4, 2]


def test_frames_of_a_pooled_store_and_the_reverse(path, tmp_path):
    write_finished(path, POOLED, make_clips(POOLED))
    write_finished(tmp_path / "frames.h5", FRAMES, make_clips(FRAMES))
    with FeatureStore(path) as store, pytest.raises(MertoolError, match="--pool none"):
        store.frames("a")
    with FeatureStore(tmp_path / "frames.h5") as store, pytest.raises(MertoolError, match="--pool mean"):
        store.read()


def test_a_missing_store_says_which_command_makes_one(path):
    with pytest.raises(MertoolError, match=r"does not exist\. `mertool extract` makes stores"):
        FeatureStore(path)


def test_an_unfinished_store_says_so(path):
    with pytest.raises(KeyError), StoreWriter(path, POOLED, {}) as out:
        out.add(features(POOLED, "a"))
        raise KeyError
    with pytest.raises(MertoolError, match="unfinished extraction: run it again"):
        FeatureStore(path)


@pytest.mark.parametrize("content", [b"", b"not HDF5 at all"])
def test_a_file_that_is_not_hdf5(content, path):
    path.write_bytes(content)
    with pytest.raises(MertoolError, match="is not a readable HDF5 file") as caught:
        FeatureStore(path)
    assert "\n" not in str(caught.value)


def test_a_truncated_store_is_not_readable(path):
    write_finished(path, POOLED, make_clips(POOLED))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(MertoolError, match="is not a readable HDF5 file"):
        FeatureStore(path)


def test_another_hdf5_file_is_refused(path):
    with h5py.File(path, "w") as file:
        file["x"] = [1, 2]
    with pytest.raises(MertoolError, match="is not a feature store of mertool"):
        FeatureStore(path)


def test_a_store_of_another_schema_is_refused(path):
    write_finished(path, POOLED, make_clips(POOLED))
    with h5py.File(path, "r+") as file:
        file.attrs["schema"] = 99
    with pytest.raises(MertoolError, match="store schema 99; this version reads 2: extract it again"):
        FeatureStore(path)
