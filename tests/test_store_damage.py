"""Stores that are damaged, forged or hostile: `store check`, `merge` and every reader refuse them in one line."""

import errno
import fcntl
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from fixtures.stores import FACES, LOST, POOLED, RECIPES, features, make_clips, write_finished

from mertool.errors import MertoolError
from mertool.store import (
    ClipFeatures,
    FeatureStore,
    StoreWriter,
    merge_stores,
    parts_folder,
    read_part_recipe,
    structure,
    validate_store,
)
from mertool.store.hdf5 import USER_BLOCK, seal


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.h5"


def reseal(path: Path) -> None:
    """Give a changed store a digest that fits, as somebody who forges one would."""
    with open(path, "r+b") as file:
        seal(file)


def flip_offset(file: h5py.File) -> None:
    file["offset"][1] = 3


def negative_length(file: h5py.File) -> None:
    file["length"][0], file["offset"][1], file["length"][1] = -1, -1, 6


def drop_offsets(file: h5py.File) -> None:
    offset, length, values = file["offset"][:-1], file["length"][:-1], file["values"][:5]
    for name, data in (("offset", offset), ("length", length), ("values", values)):
        del file[name]
        file[name] = data


def plant_nan(file: h5py.File) -> None:
    file["values"][(1,) * file["values"].ndim] = np.nan


def cut_values(file: h5py.File) -> None:
    values = file["values"][:-1]
    del file["values"]
    file["values"] = values


def lose_values(file: h5py.File) -> None:
    del file["values"]


def repeat_id(file: h5py.File) -> None:
    file["clips/id"][1] = "a"


def drop_id(file: h5py.File) -> None:
    names = file["clips/id"].asstr()[:-1].tolist()
    del file["clips/id"]
    file["clips"].create_dataset("id", data=names, dtype=h5py.string_dtype())


def forge_recipe(file: h5py.File) -> None:
    file.attrs["recipe"] = file.attrs["recipe"].replace("tiny", "huge")


def fail_a_clip_with_features(file: h5py.File) -> None:
    row = file["failures"][0]
    row["clip"] = "a"
    file["failures"][0] = row


DAMAGE = {
    "an offset flipped": ("frames", flip_offset, "offsets and lengths"),
    "a negative length": ("frames", negative_length, "length"),
    "a row of offsets lost": ("frames", drop_offsets, "different numbers of rows"),
    "NaN in pooled values": ("pooled", plant_nan, "NaN or infinity"),
    "NaN in layered frames": ("layered", plant_nan, "NaN or infinity"),
    "frames cut off": ("frames", cut_values, r"values have the shape \(8, 5\), not \(9, ...\)"),
    "pooled rows cut off": ("pooled", cut_values, r"values have the shape \(2, 3, 5\), not \(3, 3, ...\)"),
    "values lost": ("frames", lose_values, "values is missing"),
    "a clip id twice": ("pooled", repeat_id, "clip ids are repeated"),
    "a clip id lost": ("frames", drop_id, "different numbers of rows"),
    "a forged recipe": ("pooled", forge_recipe, "the fingerprint does not belong to the recipe"),
    "features and a failure": ("pooled", fail_a_clip_with_features, "features and a failure"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_forged_content_is_found(damage, path):
    kind, plant, words = DAMAGE[damage]
    write_finished(path, RECIPES[kind], [*make_clips(RECIPES[kind]), LOST])
    assert validate_store(path) == []
    with h5py.File(path, "r+") as file:
        plant(file)
    assert "do not match their digest" in " ".join(validate_store(path))
    reseal(path)
    assert re.search(words, " ".join(validate_store(path)))


# ---------------------------------------------------------------- flipped bytes


@pytest.mark.parametrize("kind", ["pooled", "frames", "layered"])
def test_a_flipped_byte_anywhere_is_found(kind, path):
    write_finished(path, RECIPES[kind], [*make_clips(RECIPES[kind]), LOST])
    content = path.read_bytes()
    with h5py.File(path) as file:
        first, size = file["values"].id.get_offset(), file["values"].nbytes
    positions = {*range(first, first + size, 3), *range(0, len(content), 97), len(content) - 1}
    for position in sorted(positions):
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        assert validate_store(path), f"byte {position} of {len(content)}"
    path.write_bytes(content)
    assert validate_store(path) == []


@pytest.mark.parametrize("length", [0, 100, USER_BLOCK, 4000])
def test_a_store_that_was_cut_is_found(length, path):
    write_finished(path, POOLED, make_clips(POOLED))
    path.write_bytes(path.read_bytes()[:length])
    (fault,) = validate_store(path)
    assert "\n" not in fault


def test_a_damaged_store_is_not_merged_into_a_valid_one(path, tmp_path):
    write_finished(path, POOLED, make_clips(POOLED))
    write_finished(tmp_path / "other.h5", POOLED, [features(POOLED, "z")])
    with h5py.File(path, "r+") as file:
        file["values"][0, 0, 0] = 7
    with pytest.raises(MertoolError, match=r"store\.h5 is damaged .*remove it, and extract it again"):
        merge_stores([tmp_path / "other.h5", path], tmp_path / "both.h5")
    assert not (tmp_path / "both.h5").exists()
    with pytest.raises(MertoolError, match=r"store\.h5 is damaged"):
        write_finished(path, POOLED, [features(POOLED, "z")])


# ---------------------------------------------------------------- hostile HDF5


def replace_values(file: h5py.File, **arguments: Any) -> None:
    values = file["values"][:]
    del file["values"]
    file.create_dataset("values", data=values, **arguments)


def link_externally(file: h5py.File) -> None:
    del file["values"]
    file["values"] = h5py.ExternalLink("elsewhere.h5", "/values")


def link_softly(file: h5py.File) -> None:
    file.move("values", "hidden")
    file["values"] = h5py.SoftLink("/hidden")


def link_a_column_softly(file: h5py.File) -> None:
    del file["clips/digest"]
    file["clips/digest"] = h5py.SoftLink("/clips/id")


def make_a_cycle(file: h5py.File) -> None:
    file["clips/loop"] = file["/"]


def replace_clips_by_a_cycle(file: h5py.File) -> None:
    del file["clips"]
    file["clips"] = file["/"]


def store_externally(file: h5py.File) -> None:
    shape, dtype = file["values"].shape, file["values"].dtype
    del file["values"]
    file.create_dataset("values", shape, dtype, external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)])


def make_virtual(file: h5py.File) -> None:
    shape, dtype = file["values"].shape, file["values"].dtype
    del file["values"]
    layout = h5py.VirtualLayout(shape, dtype)
    layout[:] = h5py.VirtualSource("elsewhere.h5", "values", shape)
    file.create_virtual_dataset("values", layout)


def add_unknown_filter(file: h5py.File) -> None:
    space, kind = file["values"].id.get_space(), file["values"].id.get_type()
    del file["values"]
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_chunk((1, 1, 1))
    properties.set_filter(32001, h5py.h5z.FLAG_OPTIONAL)  # blosc, which is a library of its own
    h5py.h5d.create(file.id, b"values", kind, space, properties)


def declare_terabytes(file: h5py.File) -> None:
    del file["values"]
    file.create_dataset("values", (3, 3, 10**12), np.float16)


def declare_a_million_clips(file: h5py.File) -> None:
    del file["clips/id"]
    file["clips"].create_dataset("id", (10**12,), h5py.string_dtype())


def number_the_clips(file: h5py.File) -> None:
    del file["clips/id"]
    file["clips/id"] = np.arange(3)


def flatten_failures(file: h5py.File) -> None:
    del file["failures"]
    file["failures"] = np.zeros(3)


def empty_values(file: h5py.File) -> None:
    del file["values"]
    file["values"] = h5py.Empty(np.float16)


def refer_to_values(file: h5py.File) -> None:
    reference = file["values"].ref
    del file["clips/seconds"]
    file["clips"].create_dataset("seconds", data=[reference] * 3, dtype=h5py.ref_dtype)


def group_the_values(file: h5py.File) -> None:
    del file["values"]
    file.create_group("values")


def nest_the_recipe(file: h5py.File) -> None:
    file.attrs["recipe"] = "[" * 5000 + "]" * 5000


def set_attribute(name: str, value: object) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        file.attrs[name] = value

    return change


def json_with(**changes: Any) -> str:
    return json.dumps({**POOLED.to_json(), **changes})


HOSTILE = {
    "an external link": (link_externally, "values is a link to another place"),
    "a soft link": (link_softly, "which no store has"),
    "a soft link to a column": (link_a_column_softly, "digest is a link to another place"),
    "a cycle": (make_a_cycle, "'loop', which no store has"),
    "a cycle in place of the clips": (replace_clips_by_a_cycle, "is missing"),
    "values in another file": (store_externally, "values is stored in another file"),
    "a virtual dataset": (make_virtual, "values is not stored contiguously"),
    "chunks": (lambda file: replace_values(file, chunks=(1, 1, 1)), "values is not stored contiguously"),
    "compression": (lambda file: replace_values(file, compression="gzip"), "values is not stored contiguously"),
    "a filter that is not built in": (add_unknown_filter, "values is not stored contiguously"),
    "18 TB of values": (declare_terabytes, "the file does not hold that many values"),
    "a million million clips": (declare_a_million_clips, "the file does not hold that many values"),
    "values of another type": (lambda file: replace_values(file, dtype=np.float64), "type float64, not float16"),
    "numbers for clip ids": (number_the_clips, "clips/id has the type int64"),
    "failures that are no table": (flatten_failures, "failures has the type float64"),
    "no values at all": (empty_values, "values"),
    "references": (refer_to_values, "clips/seconds has the type object"),
    "a group for a dataset": (group_the_values, "values"),
    "an unknown dataset": (lambda file: file.create_dataset("more", data=[1]), "'more', which no store has"),
    "a recipe that is nested": (nest_the_recipe, "nested"),
    "a recipe that is a number": (set_attribute("recipe", 7), "not a feature store"),
    "a recipe that is a list": (set_attribute("recipe", "[1]"), "the recipe is not valid"),
    "layers that are words": (set_attribute("recipe", json_with(layers=["a"])), "the recipe is not valid: layers"),
    "layers below 0": (set_attribute("recipe", json_with(layers=[-1])), "the recipe is not valid: layers"),
    "a modality of no kind": (set_attribute("recipe", json_with(modality="smell")), "not valid: modality"),
    "media settings that are no object": (set_attribute("recipe", json_with(media=[])), "not valid: media"),
    "an unknown pooling": (set_attribute("recipe", json_with(pool="max")), "unknown pooling 'max'"),
    "an unknown setting": (set_attribute("recipe", json_with(code="x")), "the recipe is not valid"),
    "an origin that is a list": (set_attribute("origin", "[]"), "its origin is no JSON object"),
    "a schema that is an array": (set_attribute("schema", [2, 2]), "not a feature store"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_stores_are_refused_by_every_reader(kind, path, tmp_path):
    change, words = HOSTILE[kind]
    write_finished(path, POOLED, [*make_clips(POOLED), LOST])
    shutil.copy(path, tmp_path / "elsewhere.h5")
    with h5py.File(path, "r+") as file:
        change(file)
    reseal(path)
    assert re.search(words, " ".join(validate_store(path)))
    for read in (FeatureStore, lambda path: merge_stores([path], tmp_path / "merged.h5")):
        with pytest.raises(MertoolError, match=words) as caught:
            read(path)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "merged.h5").exists()


def test_face_crops_that_are_no_square_are_refused(path):
    write_finished(path, FACES, [ClipFeatures("a", "d", np.zeros((2, 3, 4, 3), np.uint8))])
    with pytest.raises(MertoolError, match=r"face crops have the shape \(3, 4, 3\), not a square"):
        FeatureStore(path)


def test_too_many_channels_are_refused(path, monkeypatch):
    monkeypatch.setattr(structure, "MAX_CHANNELS", 4)
    write_finished(path, POOLED, make_clips(POOLED))
    with pytest.raises(MertoolError, match="values have 5 channels, 1 to 4 are valid"):
        FeatureStore(path)


def test_clip_ids_need_not_be_read_into_all_memory(path, monkeypatch):
    write_finished(path, POOLED, make_clips(POOLED))
    # As if all rows pointed at one string that is longer than half of the file.
    long = b"x" * (path.stat().st_size * 2 // 3)
    monkeypatch.setattr(h5py.Dataset, "__getitem__", lambda dataset, rows: [long] * len(range(3)[rows]))
    with pytest.raises(MertoolError, match="clips/id holds more text than the file has bytes"):
        FeatureStore(path)


def test_a_pipe_is_no_store_and_does_not_block(path, tmp_path):
    os.mkfifo(path)
    assert "not a regular file" in validate_store(path)[0]
    with pytest.raises(MertoolError, match="not a regular file"):
        FeatureStore(path)
    with pytest.raises(MertoolError, match="not a regular file"):
        merge_stores([path], tmp_path / "merged.h5")


def test_another_hdf5_file_has_no_digest(path):
    write_finished(path, POOLED, make_clips(POOLED))
    content = bytearray(path.read_bytes())
    content[:USER_BLOCK] = bytes(USER_BLOCK)
    path.write_bytes(content)
    assert validate_store(path) == ["the file has no digest of its bytes: mertool did not write it"]


# ---------------------------------------------------------------- locks


def test_a_finished_store_is_read_without_a_lock(path, monkeypatch):
    write_finished(path, POOLED, make_clips(POOLED))
    monkeypatch.setenv("HDF5_USE_FILE_LOCKING", "TRUE")
    with open(path, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # as a file system does that gives no lock
        with FeatureStore(path) as store:
            assert store.ids == ["a", "b", "c"]


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_told_for_writing(number, path, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(MertoolError, match=r"cannot lock .*no file locks\. Give an -o on a local disk"):
        write_finished(path, POOLED, make_clips(POOLED))


# ---------------------------------------------------------------- junk among the parts


def leave_parts(path: Path) -> Path:
    """Leave the parts of a killed run, with clips a and b."""
    with pytest.raises(KeyError), StoreWriter(path, POOLED, {}) as out:
        out.add(features(POOLED, "a"))
        out.flush()
        out.add(features(POOLED, "b"))
        raise KeyError
    return parts_folder(path)


def test_junk_among_the_parts_is_set_aside_and_told(path, caplog):
    parts = leave_parts(path)
    (parts / "notes.txt").write_text("mine")
    (parts / "part-1-folder.h5").mkdir()
    (parts / "part-2-text.h5").write_text("no HDF5")
    os.mkfifo(parts / "part-3-pipe.h5")
    (parts / "part-4-link.h5").symlink_to(path)
    (parts / "photos").mkdir()
    with h5py.File(parts / "part-5-other.h5", "w") as file:
        file["x"] = [1]
    write_finished(path, POOLED, [features(POOLED, "c")], ["a", "b", "c"])
    with FeatureStore(path) as store:
        assert store.ids == ["a", "b", "c"]
    assert validate_store(path) == []
    assert not parts.exists()
    aside = path.with_name("store.h5.set-aside")
    assert sorted(entry.name for entry in aside.iterdir()) == [
        *("notes.txt", "part-1-folder.h5", "part-2-text.h5", "part-3-pipe.h5", "part-4-link.h5", "part-5-other.h5"),
        "photos",
    ]
    assert (aside / "notes.txt").read_text() == "mine"
    (record,) = caplog.records
    assert record.getMessage() == (
        f"7 files that are no parts of {path} set aside in {aside} (notes.txt: not a part file)"
    )


def test_damaged_parts_are_set_aside_and_their_clips_extracted_again(path, caplog):
    parts = leave_parts(path)
    first, second = sorted(parts.glob("part-*.h5"))
    first.write_bytes(first.read_bytes()[:-50])
    content = bytearray(second.read_bytes())
    content[-50] ^= 1
    second.write_bytes(content)
    with StoreWriter(path, POOLED, {}) as out:
        assert (out.done, out.failed) == ({}, {})
        out.add(features(POOLED, "a"))
        out.finish("a")
    assert "2 files that are no parts" in caplog.text
    assert "do not match their digest" in caplog.text
    assert len(list(path.with_name("store.h5.set-aside").iterdir())) == 2


def test_the_recipe_of_parts_is_read_and_junk_is_passed_over(path):
    assert read_part_recipe(path) is None
    with pytest.raises(KeyError), StoreWriter(path, RECIPES["frames"], {}) as out:
        out.add(features(RECIPES["frames"], "a"))
        raise KeyError
    (parts_folder(path) / "part-0.h5").write_text("junk")
    assert read_part_recipe(path) == RECIPES["frames"]


def test_what_is_set_aside_replaces_nothing(path):
    aside = path.with_name("store.h5.set-aside")
    aside.mkdir()
    (aside / "notes.txt").write_text("old")
    parts = leave_parts(path)
    (parts / "notes.txt").write_text("new")
    with StoreWriter(path, POOLED, {}):
        pass
    assert [(aside / name).read_text() for name in ("notes.txt", "notes.txt.2")] == ["old", "new"]


def test_a_file_put_among_the_parts_during_a_run_stays(path):
    with StoreWriter(path, POOLED, {}) as out:
        out.add(features(POOLED, "a"))
        (parts_folder(path) / "notes.txt").write_text("mine")
        out.finish("a")
    assert (parts_folder(path) / "notes.txt").read_text() == "mine"
