"""`--shard i/n`: each job of an array extracts some of the clips, and `store merge` merges their stores."""

import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from mertool.errors import MertoolError
from mertool.options.extract import parse_shard
from mertool.store import FeatureStore

CLIPS = [f"c{number:02}" for number in range(13)]
WITHOUT_TEXT = ["c02", "c09"]


@pytest.fixture
def manifest(tmp_path, write_manifest):
    """Clips with only a transcript, which is empty for some."""
    texts = {clip: "" if clip in WITHOUT_TEXT else f"so sad {clip} day" for clip in CLIPS}
    rows = [{"clip": clip, "path": f"{clip}.mp4", "text": text} for clip, text in texts.items()]
    return write_manifest(tmp_path / "clips.csv", rows)


@pytest.fixture
def text(invoke, manifest, tiny_encoders, tmp_path):
    """A function (*options) that extracts text; the command's result."""

    def run(*options, store=tmp_path / "text.h5"):
        arguments = ["-o", store, "--encoder", tiny_encoders["bert"], "--storage", "float32"]
        return invoke("extract", "text", manifest, *arguments, *options)

    return run


@pytest.fixture
def shards(text, tmp_path):
    """A function (count) that extracts all shards; their stores in order."""

    def run(count):
        for number in range(1, count + 1):
            result = text("--shard", f"{number}/{count}", "-q")
            assert result.exit_code in (0, 3), (
                result.exception,
                result.stderr,
            )  # 3: a shard whose only clip has no text
        return [shard_of(tmp_path, number, count) for number in range(1, count + 1)]

    return run


def shard_of(folder, number, count):
    """Numbers are padded, so that a shell lists the files in the order of the clips."""
    return folder / f"text.{str(number).zfill(len(str(count)))}-of-{count}.h5"


def contents(path):
    """Return clips and failures in their order, and the values."""
    with FeatureStore(path) as store:
        assert store.validate() == []
        return store.ids, [(failure.clip, failure.reason) for failure in store.failures()], store.read()


@pytest.mark.parametrize("count", [4, 13])
def test_shards_are_disjoint_and_contiguous_and_cover_all_clips(count, shards):
    shard_clips = []
    for path in shards(count):
        ids, failures, _ = contents(path)
        shard_clips.append(sorted([*ids, *(clip for clip, _ in failures)]))
    assert [clip for clips in shard_clips for clip in clips] == CLIPS
    assert max(map(len, shard_clips)) - min(map(len, shard_clips)) <= 1


@pytest.mark.parametrize("count", [3, 12])
def test_merged_shards_equal_the_store_made_at_once(count, shards, text, call, tmp_path):
    call("store", "merge", *shards(count), "-o", tmp_path / "merged.h5", "-q")
    assert text("-q", store=tmp_path / "single.h5").exit_code == 0
    merged, single = contents(tmp_path / "merged.h5"), contents(tmp_path / "single.h5")
    assert merged[:2] == single[:2]
    np.testing.assert_allclose(merged[2], single[2], atol=1e-5)
    assert [clip for clip, _ in merged[1]] == WITHOUT_TEXT


@pytest.mark.parametrize(("count", "folder"), [(2, "features"), (2, "my features"), (12, "features")])
def test_the_printed_command_joins_the_shards(count, folder, text, invoke, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in range(1, count + 1):
        out = text("--shard", f"{number}/{count}", store=f"{folder}/text.h5").stdout
        assert f"store: {shard_of(Path(folder), number, count)}" in out
        assert "next: " not in out  # that is for the whole store
    (line,) = re.findall(r"^when all shards are done: mertool (store merge .*)$", out, re.MULTILINE)
    # As a shell splits it and finds the files.
    words = subprocess.run(f"printf '%s\\n' {line}", shell=True, capture_output=True, text=True, timeout=20).stdout
    result = invoke(*words.splitlines())
    assert result.exit_code == 0, result.exception
    ids, failures, _ = contents(tmp_path / folder / "text.h5")
    assert ids == [clip for clip in CLIPS if clip not in WITHOUT_TEXT]
    assert [clip for clip, _ in failures] == WITHOUT_TEXT


def test_the_merged_store_is_up_to_date(shards, text, call, tmp_path):
    call("store", "merge", *shards(3), "-o", tmp_path / "text.h5", "-q")
    before = (tmp_path / "text.h5").read_bytes()
    assert "text.h5 is up to date: 11 of 13 clips cached, nothing to do" in text().stdout
    assert (tmp_path / "text.h5").read_bytes() == before


def test_a_shard_that_is_run_again_is_cached(text):
    text("--shard", "2/3", "-q")
    result = json.loads(text("--shard", "2/3", "--json").stdout)
    assert (result["clips"], result["extracted"], result["cached"], result["missing"]) == (4, 0, 4, {})


def test_the_counts_are_those_of_the_shard(text, tmp_path):
    result = json.loads(text("--shard", "1/3", "--json").stdout)
    assert result["store"] == str(tmp_path / "text.1-of-3.h5")
    assert (result["clips"], result["features"], result["missing"]) == (4, 3, {"no_text": 1})


def test_a_shard_whose_only_clip_has_no_text(text, tmp_path):
    """It has no features, as its exit code says, and can still be merged."""
    result = text("--shard", "3/13", "-q")
    assert result.exit_code == 3
    assert contents(shard_of(tmp_path, 3, 13))[:2] == ([], [("c02", "no_text")])


@pytest.mark.slow
def test_audio_of_shards(invoke, demo_rows, write_manifest, tiny_encoders, clip_names, call, tmp_path):
    """With real media, one of which no decoder can read."""
    rows = [demo_rows[clip] for clip in ("spk01_001", clip_names.broken, "spk02_004")]
    manifest = write_manifest(tmp_path / "clips.csv", rows)
    arguments = ["extract", "audio", manifest, "--encoder", tiny_encoders["hubert_group"], "--storage", "float32"]
    arguments += ["--workers", 1, "--max-failed", 1, "-q"]
    for options in (["--shard", "1/2"], ["--shard", "2/2"]):
        invoke(*arguments, *options, "-o", tmp_path / "audio.h5")
    stores = [tmp_path / f"audio.{number}-of-2.h5" for number in (1, 2)]
    call("store", "merge", *stores, "-o", tmp_path / "audio.h5", "-q")
    call(*arguments, "-o", tmp_path / "single.h5")
    merged, single = contents(tmp_path / "audio.h5"), contents(tmp_path / "single.h5")
    assert merged[:2] == single[:2] == (["spk01_001", "spk02_004"], [(clip_names.broken, "unreadable")])
    np.testing.assert_allclose(merged[2], single[2], atol=1e-5)


# ---------------------------------------------------------------- invalid shards


@pytest.mark.parametrize("shard", ["0/3", "4/3", "x", "3", "1/", "/3", "-1/3", "1/0", "1/2/3", "1.5/3", "a/b", " "])
def test_a_shard_that_cannot_be_read(shard, text, tmp_path):
    result = text(f"--shard={shard}")
    assert isinstance(result.exception, MertoolError)
    assert str(result.exception) == f"shard '{shard}' cannot be read: give i/n with i from 1 to n, as 3/8"
    assert [path.name for path in tmp_path.iterdir()] == ["clips.csv"]


def test_more_shards_than_clips(text, manifest, tmp_path):
    result = text("--shard", "1/14")
    assert isinstance(result.exception, MertoolError)
    assert str(result.exception) == f"{manifest} has 13 clips, too few for 14 shards"
    assert [path.name for path in tmp_path.iterdir()] == ["clips.csv"]


def test_a_shard_is_counted_from_one():
    assert [parse_shard(text) for text in ("1/1", "3/8", "08/10")] == [(1, 1), (3, 8), (8, 10)]
