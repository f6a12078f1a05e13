"""Encoders whose values exceed float16, or are not finite, through the stages: no clip of theirs ends a run."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from mertool import encoders
from mertool.predictions import Predictions
from mertool.store import FeatureStore, writer

# "wow" is large in this encoder and "lost" is not a number.
NORMAL, NORMAL_TOO, LOUD, NOT_FINITE = "i am so sad", "what a day", "wow the dog", "we lost the dog"
LARGEST = 65_504
NOTE = "holds values beyond 65,504, the largest number of float16, so it is stored in float32"


@pytest.fixture(scope="module")
def reader(tiny_encoders, tmp_path_factory) -> Path:
    """A Llama whose residual stream carries the size of a word's embedding through all layers."""
    from transformers import AutoModel, AutoTokenizer

    folder = tmp_path_factory.mktemp("large") / "reader"
    model, tokenizer = (kind.from_pretrained(tiny_encoders["llama"]) for kind in (AutoModel, AutoTokenizer))
    with torch.no_grad():
        embedding = model.get_input_embeddings().weight
        embedding[tokenizer.convert_tokens_to_ids("wow")] *= 1e7
        embedding[tokenizer.convert_tokens_to_ids("lost")] = torch.inf
    for part in (model, tokenizer):
        part.save_pretrained(folder)
    return folder


def by_encoder(folder: Path, text: str) -> np.ndarray:
    """Frames (L, T, D) of every layer of one text, without a store."""
    source = encoders.resolve_encoder(str(folder), "text")
    encoder = encoders.load_encoder(source, "text", device=torch.device("cpu"), dtype=torch.float32)
    return encoder.encode([text], tuple(range(encoders.count_layers(source) + 1)))[0].numpy()


def manifest_of(write_manifest, path: Path, texts: dict[str, str], **columns: str) -> Path:
    return write_manifest(path, [{"clip": clip, "path": "", "text": text, **columns} for clip, text in texts.items()])


def check_texts(store_path: Path, folder: Path, texts: dict[str, str], *, pooled: bool = True) -> None:
    """Values are those of the encoder: exact for clips beyond float16, rounded to it for the others."""
    with FeatureStore(store_path) as store:
        assert store.ids == [clip for clip, text in texts.items() if text != NOT_FINITE]
        for clip in store.ids:
            frames = by_encoder(folder, texts[clip])
            expected = frames.mean(1) if pooled else frames
            found = store.read([clip])[0] if pooled else store.frames(clip)
            if np.abs(expected).max() > LARGEST:
                np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
                assert np.abs(found).max() > LARGEST
            else:
                np.testing.assert_allclose(found, expected, rtol=6e-4, atol=1e-6)
                np.testing.assert_array_equal(found, found.astype(np.float16))
        assert {failure.clip: failure.reason for failure in store.failures()} == {
            clip: "not_finite" for clip, text in texts.items() if text == NOT_FINITE
        }


ORDERS = {
    "first": [LOUD, NORMAL, NOT_FINITE, NORMAL_TOO],
    "between": [NORMAL, LOUD, NORMAL_TOO, NOT_FINITE],
    "last": [NORMAL, NOT_FINITE, NORMAL_TOO, LOUD],
}


@pytest.mark.parametrize("pool", ["mean", "none"])
@pytest.mark.parametrize("order", ORDERS)
def test_extract_keeps_large_values_and_records_those_that_are_not_finite(
    order, pool, reader, invoke, write_manifest, tmp_path
):
    texts = {f"c{number}": text for number, text in enumerate(ORDERS[order])}
    manifest, store = manifest_of(write_manifest, tmp_path / "clips.csv", texts), tmp_path / "text.h5"
    command = ["extract", "text", manifest, "-o", store, "--encoder", reader, "--layers", "all", "--pool", pool]
    result = invoke(*command, "--max-failed", 0.5)
    assert result.exit_code == 0, (result.exception, result.stderr)
    assert result.stderr.count(f"note: {store} {NOTE}") == 1
    check_texts(store, reader, texts, pooled=pool == "mean")
    assert invoke("store", "check", store).exit_code == 0
    content = json.loads(invoke("store", "ls", store, "--json").stdout)["stores"][0]
    assert content["storage"] == "float32"
    again = invoke(*command, "--max-failed", 0.5, "--json")
    assert (again.exit_code, json.loads(again.stdout)["cached"]) == (0, 3)
    assert NOTE not in again.stderr


def test_a_store_of_which_every_clip_is_not_finite_ends_well(reader, invoke, write_manifest, tmp_path):
    manifest = manifest_of(write_manifest, tmp_path / "clips.csv", {"a": NOT_FINITE, "b": NOT_FINITE})
    result = invoke("extract", "text", manifest, "-o", tmp_path / "text.h5", "--encoder", reader, "--json")
    assert result.exit_code == 3, (result.exception, result.stderr)
    assert json.loads(result.stdout)["failed"] == {"not_finite": 2}


@pytest.mark.parametrize("written", [1, 2, 3])
def test_a_killed_run_resumes_before_and_after_the_large_clip(
    written, reader, invoke, write_manifest, tmp_path, monkeypatch
):
    """Every clip has a part of its own; a run without parts gives the same file."""
    texts = {"a": NORMAL, "b": LOUD, "c": NORMAL_TOO, "d": NORMAL}
    manifest = manifest_of(write_manifest, tmp_path / "clips.csv", texts)
    command = ["extract", "text", manifest, "--encoder", reader, "--layers", "all", "--quiet", "-o"]
    assert invoke(*command, tmp_path / "whole.h5").exit_code == 0
    monkeypatch.setattr(writer, "PART_CLIPS", 1)
    add, store = writer.PartWriter.add, tmp_path / "killed.h5"

    def dying(self, features):
        if len(self.done) == written:
            raise KeyboardInterrupt
        add(self, features)

    with monkeypatch.context() as patch:
        patch.setattr(writer.PartWriter, "add", dying)
        assert invoke(*command, store).exit_code != 0
    assert len(list(tmp_path.glob("killed.h5.parts/part-*.h5"))) == written
    assert not store.exists()
    result = invoke(*command, store)
    assert result.exit_code == 0, (result.exception, result.stderr)
    check_texts(store, reader, texts)
    assert store.read_bytes() == (tmp_path / "whole.h5").read_bytes()


def test_clips_added_to_a_store_make_it_float32(reader, invoke, write_manifest, tmp_path):
    store, manifest = tmp_path / "text.h5", tmp_path / "clips.csv"
    command = ["extract", "text", manifest, "-o", store, "--encoder", reader, "--layers", "all"]
    for count, texts in enumerate([{"a": NORMAL}, {"a": NORMAL, "b": LOUD}, {"a": NORMAL, "b": LOUD, "c": NORMAL_TOO}]):
        manifest_of(write_manifest, manifest, texts)
        result = invoke(*command)
        assert result.exit_code == 0, (result.exception, result.stderr)
        assert (NOTE in result.stderr) == (count > 0)
        check_texts(store, reader, texts)


def test_shards_of_both_kinds_merge(reader, invoke, write_manifest, tmp_path):
    texts = {"a": NORMAL, "b": NORMAL_TOO, "c": LOUD, "d": NORMAL}
    manifest = manifest_of(write_manifest, tmp_path / "clips.csv", texts)
    command = ["extract", "text", manifest, "--encoder", reader, "--layers", "all", "-o"]
    for shard in ("1/2", "2/2"):
        assert invoke(*command, tmp_path / "text.h5", "--shard", shard).exit_code == 0
    shards = sorted(tmp_path.glob("text.*-of-2.h5"))
    with FeatureStore(shards[0]) as narrow, FeatureStore(shards[1]) as wide:
        assert (narrow.dtype, wide.dtype) == ("float16", "float32")
        assert narrow.fingerprint == wide.fingerprint
    result = invoke("store", "merge", *shards, "-o", tmp_path / "merged.h5")
    assert result.exit_code == 0, (result.exception, result.stderr)
    assert NOTE in result.stderr
    check_texts(tmp_path / "merged.h5", reader, texts)


def test_frames_may_be_beyond_float16_where_their_mean_is_not(reader, invoke, write_manifest, tmp_path):
    """Two stores of one pass have each the number format that their own values need."""
    texts = {"a": NORMAL, "b": " ".join(["wow", *["sad"] * 60])}
    manifest = manifest_of(write_manifest, tmp_path / "clips.csv", texts)
    stores = {"-o": tmp_path / "mean.h5", "--frames": tmp_path / "frames.h5"}
    options = [word for pair in stores.items() for word in pair]
    result = invoke("extract", "text", manifest, *options, "--encoder", reader, "--layers", "all")
    assert result.exit_code == 0, (result.exception, result.stderr)
    with FeatureStore(stores["-o"]) as mean, FeatureStore(stores["--frames"]) as frames:
        assert (mean.dtype, frames.dtype) == ("float16", "float32")
    check_texts(stores["-o"], reader, texts)
    check_texts(stores["--frames"], reader, texts, pooled=False)


def test_an_estimate_counts_the_room_of_float32(reader, invoke, write_manifest, tmp_path):
    sizes = []
    for name, text in (("normal", NORMAL), ("loud", LOUD)):
        manifest = manifest_of(write_manifest, tmp_path / f"{name}.csv", {f"c{n}": text for n in range(3)})
        command = [
            "extract",
            "text",
            manifest,
            "-o",
            tmp_path / f"{name}.h5",
            "--encoder",
            reader,
            "--dry-run",
            "--json",
        ]
        result = invoke(*command)
        assert result.exit_code == 0, (result.exception, result.stderr)
        sizes.append(json.loads(result.stdout)["disk"])
    assert sizes[1] == 2 * sizes[0] > 0


def test_predict_gives_large_clips_the_values_of_training(reader, invoke, write_manifest, make_bundle, tmp_path):
    texts = {"a": NORMAL, "b": LOUD, "c": NOT_FINITE, "d": NORMAL_TOO}
    manifest = manifest_of(write_manifest, tmp_path / "clips.csv", texts)
    store = tmp_path / "text.h5"
    result = invoke("extract", "text", manifest, "-o", store, "--encoder", reader, "--max-failed", 0.5)
    assert result.exit_code == 0, (result.exception, result.stderr)
    bundle = make_bundle(tmp_path / "bundle", [store])
    result = invoke("predict", bundle, manifest, "-o", tmp_path / "p.csv", "--max-failed", 0.5)
    assert result.exit_code == 0, (result.exception, result.stderr)
    assert NOTE in result.stderr
    found = Predictions.read(tmp_path / "p.csv")
    assert list(found.clips) == ["a", "b", "d"]
    assert np.isfinite(found.probabilities).all()
    with FeatureStore(store) as trained, FeatureStore(tmp_path / "p.csv.features" / "text.h5") as predicted:
        assert predicted.dtype == "float32"
        np.testing.assert_array_equal(trained.read(), predicted.read())


# ---------------------------------------------------------------- the frozen layers of finetune

CACHED = (1, 6)
CLIPS = ("spk01_001", "spk01_005", "spk02_003", "spk02_004", "spk03_002", "spk03_003", "spk04_002", "spk04_005")


def scale_residual_stream(source: Path, target: Path, factor: float) -> None:
    """Copy a HuBERT of the large form; its front end gives the blocks, which add little, `factor` times as much."""
    from transformers import HubertModel

    shutil.copytree(source, target)
    model = HubertModel.from_pretrained(source)
    with torch.no_grad():
        for values in model.feature_projection.projection.parameters():
            values.mul_(factor)
    model.save_pretrained(target)


def frames_by_encoder(folder: Path, rows: dict) -> dict[str, np.ndarray]:
    """Frames (L, T, D) by clip of the layers in the cache: below the blocks, and the one that masks hide."""
    from mertool.media import read_audio

    source = encoders.resolve_encoder(str(folder), "audio")
    encoder = encoders.load_encoder(source, "audio", device=torch.device("cpu"), dtype=torch.float32)
    waves = {clip: read_audio(Path(row["path"]), end=float(row["end"])) for clip, row in rows.items()}
    return {clip: encoder.encode([wave], CACHED)[0].numpy() for clip, wave in waves.items()}


def test_finetune_caches_large_frozen_layers(invoke, tiny_encoders, demo_rows, write_manifest, tmp_path, monkeypatch):
    rows = {
        clip: {**demo_rows[clip], "label": ("sad", "happy")[number % 2], "end": "0.8"}
        for number, clip in enumerate(CLIPS)
    }
    # The factor lies between what the loudest two clips need, so that one clip alone exceeds float16.
    scale_residual_stream(tiny_encoders["hubert"], tmp_path / "unit", 1e4)
    largest = {clip: np.abs(frames).max() for clip, frames in frames_by_encoder(tmp_path / "unit", rows).items()}
    second, first = sorted(largest.values())[-2:]
    scale_residual_stream(tiny_encoders["hubert"], tmp_path / "encoder", 1e4 * 2 * LARGEST / (first + second))
    frames = frames_by_encoder(tmp_path / "encoder", rows)
    assert sum(np.abs(values).max() > LARGEST for values in frames.values()) == 1
    manifest = write_manifest(tmp_path / "clips.csv", rows.values())
    command = ["finetune", manifest, "-o", tmp_path / "run", "--encoder", tmp_path / "encoder", "--layers", "2-3"]
    result = invoke(*command, "--size", 4, "--folds", 2, "--epochs", 1, "--mask-weight", 0.1)
    assert result.exit_code == 0, (result.exception, result.stderr)
    assert result.stderr.count(NOTE) == 1
    (cache,) = (tmp_path / "frozen-layers").glob("*.h5")
    with FeatureStore(cache) as store:
        assert (store.layers, store.dtype, store.validate()) == (CACHED, "float32", [])
        assert sorted(store.ids) == sorted(CLIPS)
        for clip, expected in frames.items():
            found = store.frames(clip)
            is_large = np.abs(expected).max() > LARGEST
            np.testing.assert_allclose(found, expected, rtol=1e-4 if is_large else 6e-4, atol=1e-4 * LARGEST / 100)
            assert (np.abs(found).max() > LARGEST) == is_large
    history = json.loads((tmp_path / "run" / "metrics.json").read_text())["history"]
    losses = [adapter[kind] for adapter in history.values() for kind in ("label_loss", "mask_loss")]
    assert np.isfinite(losses).all()
