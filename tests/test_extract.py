"""`mertool extract`: clips in, a store out."""

import json
import re
import shutil

import numpy as np
import pytest
import torch

from mertool.errors import MertoolError
from mertool.store import FeatureStore

FOUR = ("spk01_001", "spk02_004", "spk03_006", "spk06_009")


def read(path):
    """Ids and values, layers, failures by clip."""
    with FeatureStore(path) as store:
        values = {clip: store.read([clip])[0] if store.pooled else store.frames(clip) for clip in store.ids}
        return values, store.layers, {failure.clip: failure.reason for failure in store.failures()}


@pytest.fixture
def four(tmp_path, demo_rows, write_manifest):
    """A manifest of copies of four clips, which a test may change."""
    (tmp_path / "media").mkdir()
    rows = []
    for clip in FOUR:
        shutil.copy(demo_rows[clip]["path"], tmp_path / "media" / f"{clip}.mp4")
        rows.append({**demo_rows[clip], "path": f"media/{clip}.mp4"})
    return write_manifest(tmp_path / "clips.csv", rows)


@pytest.fixture
def audio(invoke, tiny_encoders, four, tmp_path):
    """A function (*options, source) that extracts audio with a small encoder; its JSON object."""

    def run(*options, source=four, encoder="hubert_group", store=tmp_path / "audio.h5", code=0):
        result = invoke(
            *("extract", "audio", source, "-o", store, "--encoder", tiny_encoders[encoder], "--json", *options)
        )
        assert result.exit_code == code, (result.exception, result.stderr)
        return json.loads(result.stdout)

    return run


# ---------------------------------------------------------------- the values


def test_audio_values_are_those_of_the_encoder(audio_store, demo_rows, load_tiny):
    from mertool.media import read_audio

    values, layers, _ = read(audio_store)
    assert layers == tuple(range(9))
    for clip in ("spk01_001", "spk06_009"):
        encoder = load_tiny("hubert", "audio")
        frames = encoder.encode([read_audio(_path(demo_rows, clip))], layers)[0]
        np.testing.assert_allclose(values[clip], frames.mean(1), atol=2e-3, rtol=2e-3)


def _path(rows, clip):
    from pathlib import Path

    return Path(rows[clip]["path"])


def test_text_values_are_those_of_the_encoder(text_store, demo_rows, load_tiny):
    values, layers, _ = read(text_store)
    assert layers == (3,)
    frames = load_tiny("bert", "text").encode([demo_rows["spk01_001"]["text"]], (3,))[0]
    np.testing.assert_allclose(values["spk01_001"], frames.mean(1), atol=2e-3, rtol=2e-3)


def test_pooled_video_is_the_mean_of_the_frames(video_store, frames_store):
    pooled, _, _ = read(video_store)
    frames, _, _ = read(frames_store)
    assert list(pooled) == list(frames)
    for clip, value in pooled.items():
        np.testing.assert_allclose(value[0], frames[clip].astype(np.float32).mean(0), atol=4e-3, rtol=4e-3)


def test_video_from_face_crops_equals_video(call, tiny_encoders, demo_rows, write_manifest, faces_store, tmp_path):
    manifest = write_manifest(tmp_path / "m.csv", [demo_rows[clip] for clip in ("spk01_001", "spk01_014")])
    given = ["extract", "video", manifest, "--encoder", tiny_encoders["clip"], "--fps", 1, "-q"]
    call(*given, "-o", tmp_path / "direct.h5")
    call(*given, "-o", tmp_path / "cropped.h5", "--faces", faces_store)
    (direct, _, absent), (cropped, _, absent_too) = read(tmp_path / "direct.h5"), read(tmp_path / "cropped.h5")
    assert direct.keys() == cropped.keys() == {"spk01_001"}
    np.testing.assert_array_equal(direct["spk01_001"], cropped["spk01_001"])
    assert absent == absent_too == {"spk01_014": "no_face"}


def test_the_part_from_start_to_end(audio, demo_rows, write_manifest, load_tiny, tmp_path):
    from mertool.media import read_audio

    row = demo_rows["spk01_001"]
    parts = [{**row, "clip": "a", "end": "1.0"}, {**row, "clip": "b", "start": "1.0", "end": "1.5"}]
    audio("--storage", "float32", source=write_manifest(tmp_path / "parts.csv", parts))
    values, layers, _ = read(tmp_path / "audio.h5")
    wave = read_audio(_path(demo_rows, "spk01_001"))
    expected = load_tiny("hubert_group", "audio").encode([wave[16_000:24_000]], layers)[0].mean(1)
    np.testing.assert_allclose(values["b"], expected, atol=1e-5)
    assert not np.allclose(values["a"], values["b"], atol=1e-3)


def test_the_audio_of_another_file_and_texts_alone(call, audio, demo_rows, tiny_encoders, tmp_path):
    first, second = (_path(demo_rows, clip) for clip in ("spk01_001", "spk02_004"))
    manifest = tmp_path / "m.csv"
    manifest.write_text(
        f"clip,path,text,audio\nboth,{first},One.,{second}\nplain,{second},Two.,\nsilent,,Three.,\nheard,,,{second}\n",
        encoding="utf-8",
    )
    audio("--storage", "float32", source=manifest)
    values, _, failures = read(tmp_path / "audio.h5")
    assert failures == {"silent": "no_audio"}
    for clip in ("both", "heard"):
        np.testing.assert_allclose(values[clip], values["plain"], atol=1e-5)
    call("extract", "text", manifest, "-o", tmp_path / "text.h5", "--encoder", tiny_encoders["bert"], "-q")
    values, _, failures = read(tmp_path / "text.h5")
    assert sorted(values) == ["both", "plain", "silent"]
    assert failures == {"heard": "no_text"}
    call("extract", "video", manifest, "-o", tmp_path / "video.h5", "--encoder", tiny_encoders["clip"], "-q")
    values, _, failures = read(tmp_path / "video.h5")
    assert failures == {"silent": "no_video", "heard": "no_video"}
    assert not np.allclose(values["both"], values["plain"], atol=1e-2)


def test_chosen_layers_and_frames(audio, tmp_path):
    assert audio("--layers", "0,2-3", "--pool", "none")["layers"] == 3
    values, layers, _ = read(tmp_path / "audio.h5")
    assert layers == (0, 2, 3)
    seconds = FeatureStore(tmp_path / "audio.h5").media_stats()["seconds"][0]
    assert values[FOUR[0]].shape[0] == 3
    assert abs(values[FOUR[0]].shape[1] - 50 * seconds) <= 2


# ---------------------------------------------------------------- frames from the same pass


def test_frames_from_the_same_pass_equal_those_of_a_run_of_their_own(audio, tmp_path):
    frames = tmp_path / "frames.h5"
    result = audio("--layers", "last", "--frames", frames)
    assert (result["extracted"], result["frames"]) == (4, str(frames))
    audio("--layers", "last", store=tmp_path / "alone.h5")
    audio("--layers", "last", "--pool", "none", store=tmp_path / "alone-frames.h5")
    for shared, alone in (("audio.h5", "alone.h5"), ("frames.h5", "alone-frames.h5")):
        with FeatureStore(tmp_path / shared) as ours, FeatureStore(tmp_path / alone) as theirs:
            assert ours.fingerprint == theirs.fingerprint
            assert ours.ids == theirs.ids == list(FOUR)
        for clip, value in read(tmp_path / shared)[0].items():
            np.testing.assert_array_equal(value, read(tmp_path / alone)[0][clip])


def test_frames_can_be_added_later_and_resume(audio, demo_rows, tmp_path):
    audio("--layers", "last")
    before = (tmp_path / "audio.h5").stat().st_mtime_ns
    options = ("--layers", "last", "--frames", tmp_path / "frames.h5")
    assert audio(*options)["extracted"] == 4
    assert (tmp_path / "audio.h5").stat().st_mtime_ns == before
    assert audio(*options)["worked"] is False
    shutil.copy(demo_rows["spk05_005"]["path"], tmp_path / "media" / f"{FOUR[1]}.mp4")
    again = audio(*options)
    assert (again["extracted"], again["cached"]) == (1, 3)
    assert list(read(tmp_path / "frames.h5")[0]) == list(FOUR)


def test_frames_beside_an_aligner_are_its_input(
    call, demo_rows, write_manifest, faces_store, tiny_encoders, align_run, tmp_path
):
    manifest = write_manifest(tmp_path / "m.csv", [demo_rows["spk01_001"]])
    options = ["--encoder", tiny_encoders["clip"], "--faces", faces_store, "--fps", 1, "-q"]
    stores = ["-o", tmp_path / "aligned.h5", "--frames", tmp_path / "frames.h5"]
    call("extract", "video", manifest, *stores, *options, "--aligner", align_run)
    call("extract", "video", manifest, "-o", tmp_path / "alone.h5", *options, "--pool", "none")
    with FeatureStore(tmp_path / "frames.h5") as ours, FeatureStore(tmp_path / "alone.h5") as theirs:
        assert ours.fingerprint == theirs.fingerprint
        assert ours.provenance == theirs.provenance
        np.testing.assert_array_equal(ours.frames("spk01_001"), theirs.frames("spk01_001"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--frames", "f.h5", "--pool", "none"], "--pool none keeps frames in the output already"),
        (["--frames", "OUTPUT"], "is the output, too: give the frames a file of their own"),
    ],
)
def test_frames_that_do_not_fit_the_other_options(options, words, invoke, four, tiny_encoders, tmp_path):
    output = tmp_path / "audio.h5"
    options = [output if option == "OUTPUT" else option for option in options]
    result = invoke("extract", "audio", four, "-o", output, "--encoder", tiny_encoders["hubert_group"], *options)
    assert isinstance(result.exception, MertoolError)
    assert words in str(result.exception)


# ---------------------------------------------------------------- the sum of the last four layers


@pytest.mark.parametrize(("modality", "encoder", "last"), [("audio", "hubert_group", 4), ("text", "bert", 3)])
@pytest.mark.parametrize("pool", ["mean", "none"])
def test_the_sum_of_the_last_four_layers(pool, modality, encoder, last, call, invoke, four, tiny_encoders, tmp_path):
    given = ["extract", modality, four, "--encoder", tiny_encoders[encoder], "--storage", "float32", "--pool", pool]
    for layers in ("all", "last-four-sum", "last"):
        call(*given, "-o", tmp_path / f"{layers}.h5", "--layers", layers, "-q")
    (all_layers, numbers, _), (summed, axis, _) = read(tmp_path / "all.h5"), read(tmp_path / "last-four-sum.h5")
    assert numbers == tuple(range(last + 1))
    assert len(axis) == 1
    assert summed.keys() == all_layers.keys()
    for clip, value in summed.items():
        expected = all_layers[clip][-4:].sum(0)
        np.testing.assert_allclose(value if pool == "none" else value[0], expected, rtol=1e-4, atol=1e-4)
    again = invoke(*given, "-o", tmp_path / "last.h5", "--layers", "last-four-sum")
    assert "was made by another recipe" in str(again.exception)


def test_a_sum_of_layers_is_shown_as_one(call, audio, tmp_path):
    """It must not look like a store of the last layer."""
    assert audio("--layers", "last-four-sum")["layers"] == 1
    audio("--layers", "last", store=tmp_path / "last.h5")
    found = json.loads(call("store", "ls", tmp_path / "audio.h5", tmp_path / "last.h5", "--json").stdout)
    summed, last = found["stores"]
    assert (summed["clips"], summed["channels"]) == (4, 32)
    assert last["layers"] == "4"
    assert "1-4" in summed["layers"]
    assert "sum" in summed["layers"]


def test_a_sum_of_layers_can_be_fused(call, workspace, text_store, tiny_encoders, tmp_path):
    given = ["--encoder", tiny_encoders["bert"], "--layers", "last-four-sum", "-q"]
    call("extract", "text", workspace.manifest, "-o", tmp_path / "sum.h5", *given)
    options = ["--folds", 3, "--seeds", 1, "--epochs", 1, "--width", 8, "-q"]
    call("fuse", tmp_path / "sum.h5", text_store, "-m", workspace.manifest, "-o", tmp_path / "run", *options)
    call("predict", tmp_path / "run", workspace.manifest, "-o", tmp_path / "p.csv", "-q", "--max-failed", 1)
    cached, _, _ = read(tmp_path / "p.csv.features" / "sum.h5")
    stored, _, _ = read(tmp_path / "sum.h5")
    assert cached.keys() == stored.keys()
    for clip, value in cached.items():
        np.testing.assert_allclose(value, stored[clip], rtol=1e-3, atol=1e-3)


# ---------------------------------------------------------------- batches


def largest_difference(one, other):
    """Of the values of two stores, relative to their norms."""
    (a, _, _), (b, _, _) = read(one), read(other)
    assert list(a) == list(b)
    assert a
    return max(float(np.linalg.norm(a[clip] - b[clip]) / np.linalg.norm(b[clip])) for clip in a)


@pytest.fixture
def batch_sizes(monkeypatch):
    """Numbers of clips per batch, as they are encoded."""
    from mertool.extraction.clip_encoder import ClipEncoder

    sizes, encode = [], ClipEncoder.encode

    def encode_and_count(self, clips):
        sizes.append(len(clips))
        return encode(self, clips)

    monkeypatch.setattr(ClipEncoder, "encode", encode_and_count)
    return sizes


@pytest.mark.parametrize("encoder", ["hubert_group", "wav2vec2", "whisper"])
def test_sound_in_batches_has_the_same_values(encoder, audio, batch_sizes, tmp_path):
    audio("--storage", "float32", encoder=encoder)
    assert batch_sizes == [1, 1, 1, 1]
    audio("--storage", "float32", "--batch-seconds", 120, encoder=encoder, store=tmp_path / "batched.h5")
    assert max(batch_sizes) > 1
    assert largest_difference(tmp_path / "batched.h5", tmp_path / "audio.h5") < 1e-4


def test_pictures_in_batches_have_the_same_values(
    call, workspace, faces_store, tiny_encoders, demo_rows, write_manifest, batch_sizes, tmp_path
):
    manifest = write_manifest(tmp_path / "m.csv", [demo_rows[clip] for clip in ("spk01_001", "spk02_004", "spk06_009")])
    given = ["--encoder", tiny_encoders["clip"], "--faces", faces_store, "--fps", 1, "--storage", "float32", "-q"]
    call("extract", "video", manifest, "-o", tmp_path / "alone.h5", *given, "--batch-seconds", 0)
    assert batch_sizes == [1, 1, 1]
    call("extract", "video", manifest, "-o", tmp_path / "batched.h5", *given, "--batch-seconds", 60)
    assert batch_sizes[3:] == [3]
    assert largest_difference(tmp_path / "batched.h5", tmp_path / "alone.h5") < 1e-4


@pytest.mark.parametrize("encoder", ["bert", "roberta", "llama"])
def test_texts_in_batches_have_the_same_values(
    encoder, call, demo_rows, write_manifest, tiny_encoders, batch_sizes, monkeypatch, tmp_path
):
    """Several texts share a batch also on a CPU."""
    from mertool.extraction import batching as batch

    texts = [row for row in demo_rows.values() if row["text"]][:12]
    manifest = write_manifest(tmp_path / "m.csv", [*texts, {**texts[0], "clip": "one", "text": "wow"}])
    given = ["extract", "text", manifest, "--encoder", tiny_encoders[encoder], "--storage", "float32", "-q"]
    call(*given, "-o", tmp_path / "batched.h5")
    assert max(batch_sizes) > 1
    batch_sizes.clear()
    monkeypatch.setitem(batch.CPU_BUDGET, "text", 0.0)
    call(*given, "-o", tmp_path / "alone.h5")
    assert set(batch_sizes) == {1}
    assert largest_difference(tmp_path / "batched.h5", tmp_path / "alone.h5") < 1e-4


# ---------------------------------------------------------------- long transcripts


def test_transcripts_that_are_cut_are_counted(invoke, write_manifest, tiny_encoders, tmp_path):
    """The small RoBERTa takes 32 tokens, two of them special."""
    texts = {"short": "so sad", "fits": "day " * 30, "long": "day " * 31, "longer": "so sad " * 200, "none": " "}
    manifest = write_manifest(
        tmp_path / "m.csv", [{"clip": clip, "path": f"{clip}.mp4", "text": text} for clip, text in texts.items()]
    )
    given = ["extract", "text", manifest, "--encoder", tiny_encoders["roberta"], "--storage", "float32"]
    said = invoke(*given, "-o", tmp_path / "said.h5").stdout
    assert "cut to the encoder's length: 2 transcripts\n" in said
    assert json.loads(invoke(*given, "-o", tmp_path / "counted.h5", "--json").stdout)["truncated"] == 2
    values, _, _ = read(tmp_path / "said.h5")
    np.testing.assert_allclose(values["long"], values["fits"], atol=1e-5)
    again = invoke(*given, "-o", tmp_path / "said.h5")
    assert "is up to date" in again.stdout
    assert "cut to" not in again.stdout


def test_where_nothing_is_cut_nothing_is_said(invoke, four, tiny_encoders, tmp_path):
    given = ["extract", "text", four, "--encoder", tiny_encoders["bert"]]
    assert "cut to" not in invoke(*given, "-o", tmp_path / "a.h5").stdout
    assert json.loads(invoke(*given, "-o", tmp_path / "b.h5", "--json").stdout)["truncated"] == 0


# ---------------------------------------------------------------- where the time went

SECONDS = r"\d+\.\d s"


def test_the_line_of_times(invoke, four, tiny_encoders, tmp_path):
    given = ["--encoder", tiny_encoders["hubert_group"]]
    said = invoke("extract", "audio", four, "-o", tmp_path / "a.h5", *given).stdout
    beside = f"decode {SECONDS}, faces 0\\.0 s, write {SECONDS}"
    line = (
        rf"^time without loading: {SECONDS} \(\d+ s of media per second\): encode {SECONDS}, idle {SECONDS}; "
        rf"beside it, summed over the processes: {beside}$"
    )
    assert re.search(line, said, re.MULTILINE), said
    assert "time without" not in invoke("extract", "audio", four, "-o", tmp_path / "a.h5", *given).stdout


def test_times_as_json(audio):
    seconds = audio()["seconds"]
    assert list(seconds) == ["wall", "encode", "idle", "decode", "faces", "write"]
    assert seconds["wall"] == pytest.approx(seconds["encode"] + seconds["idle"], abs=0.0021)
    assert seconds["encode"] > 0
    assert seconds["decode"] > 0
    assert seconds["faces"] == 0
    assert set(audio()["seconds"].values()) == {0}


@pytest.mark.parametrize(
    ("spent", "slowest"),
    [
        ({"encode": 8.0, "idle": 2.0, "decode": 9.0, "faces": 9.0}, "the encoder"),
        ({"encode": 2.0, "idle": 8.0, "decode": 9.0, "faces": 1.0}, "decode"),
        ({"encode": 2.0, "idle": 8.0, "decode": 1.0, "faces": 9.0}, "faces"),
        ({"encode": 2.0, "idle": 8.0, "decode": 0.1, "faces": 0.0, "write": 7.5}, "write"),
    ],
)
def test_the_bottleneck(spent, slowest):
    from types import SimpleNamespace

    from mertool.cli.extract import _format_times

    seconds = {"wall": 10.0, "write": 0.1, **spent}
    line = _format_times(SimpleNamespace(seconds=seconds, media_seconds=100.0), "video")
    assert line.startswith("time without loading: 10.0 s (10 s of media per second): encode ")
    assert line.endswith(f". Bottleneck: {slowest}")


# ---------------------------------------------------------------- the counts


def test_every_clip_is_accounted_for(workspace, audio_store, faces_store, text_store, clip_names):
    values, _, failures = read(audio_store)
    assert failures == {
        clip_names.no_sound: "no_audio",
        clip_names.broken: "unreadable",
        clip_names.gone: "missing_file",
    }
    assert [clip for clip in workspace.clips if clip not in failures] == list(values)
    faces, _, faceless = read(faces_store)
    assert faceless == {
        clip_names.no_face: "no_face",
        clip_names.broken: "unreadable",
        clip_names.pictureless: "no_video",
        clip_names.gone: "missing_file",
    }
    assert len(faces) == len(workspace.clips) - 4
    assert read(text_store)[2] == {clip_names.no_text: "no_text"}


def test_the_json_result(audio, tmp_path):
    result = audio()
    assert {key: result[key] for key in ("clips", "extracted", "cached", "features", "layers", "channels")} == {
        "clips": 4,
        "extracted": 4,
        "cached": 0,
        "features": 4,
        "layers": 5,
        "channels": 32,
    }
    assert (result["missing"], result["failed"], result["failed_share"]) == ({}, {}, 0.0)
    assert result["store"] == str(tmp_path / "audio.h5")
    assert 8 <= result["media_seconds"] <= 16


def test_the_report_for_people(invoke, four, tiny_encoders, tmp_path):
    given = ["extract", "text", four, "-o", tmp_path / "t.h5", "--encoder", tiny_encoders["bert"]]
    first, second = invoke(*given), invoke(*given)
    assert "3 of 4 clips have text features (3 extracted now, 0 cached), 1 layer x 96" in first.stdout
    assert "missing: 1 no_text" in first.stdout
    assert f"OTHER_STORES --manifest {four} -o runs/fusion" in first.stdout
    assert "is up to date: 3 of 4 clips cached, nothing to do" in second.stdout


@pytest.mark.parametrize(("broken", "code"), [(1, 0), (2, 3)])
def test_too_many_failures_are_exit_code_three(broken, code, audio, four, tmp_path, write_manifest, invoke):
    for number in range(broken):
        (tmp_path / "media" / f"{FOUR[number]}.mp4").write_bytes(b"no media")
    result = audio("--max-failed", "0.25", code=code)
    assert result["failed"] == {"unreadable": broken}
    assert result["failed_share"] == broken / 4
    assert len(read(tmp_path / "audio.h5")[0]) == 4 - broken


def test_a_store_without_a_single_clip_is_exit_code_three(invoke, tiny_encoders, demo_rows, write_manifest, tmp_path):
    manifest = write_manifest(tmp_path / "m.csv", [demo_rows["spk05_001"]])
    result = invoke("extract", "audio", manifest, "-o", tmp_path / "t.h5", "--encoder", tiny_encoders["hubert"], "-q")
    assert result.exit_code == 3
    assert "no clip gave anything" in result.stderr


def test_text_without_a_single_transcript_is_refused_before_the_encoder_loads(
    invoke, tiny_encoders, demo_rows, write_manifest, tmp_path
):
    manifest = write_manifest(tmp_path / "m.csv", [{**demo_rows["spk01_001"], "text": ""}])
    result = invoke("extract", "text", manifest, "-o", tmp_path / "t.h5", "--encoder", tiny_encoders["bert"], "-q")
    assert isinstance(result.exception, MertoolError)
    assert "no clip of" in str(result.exception) and "--asr" in str(result.exception)
    assert not (tmp_path / "t.h5").exists()


# ---------------------------------------------------------------- again


def test_a_second_run_does_nothing(audio, tmp_path):
    audio()
    before = (tmp_path / "audio.h5").read_bytes()
    again = audio()
    assert (again["extracted"], again["cached"], again["features"]) == (0, 4, 4)
    assert (tmp_path / "audio.h5").read_bytes() == before


def test_a_second_run_does_not_even_load_the_encoder(audio, monkeypatch):
    from mertool.extraction.clip_encoder import EncoderAssets

    audio()
    monkeypatch.setattr(EncoderAssets, "load", lambda *_: pytest.fail("the encoder was loaded"))
    audio()


def test_a_changed_file_alone_is_extracted_again(audio, demo_rows, tmp_path):
    audio()
    before = read(tmp_path / "audio.h5")[0]
    shutil.copy(demo_rows["spk05_005"]["path"], tmp_path / "media" / f"{FOUR[1]}.mp4")
    again = audio()
    after = read(tmp_path / "audio.h5")[0]
    assert (again["extracted"], again["cached"]) == (1, 3)
    assert [clip for clip in FOUR if not np.array_equal(before[clip], after[clip])] == [FOUR[1]]


def test_a_file_that_came_back_is_extracted(audio, demo_rows, tmp_path):
    (tmp_path / "media" / f"{FOUR[0]}.mp4").unlink()
    assert audio(code=3)["failed"] == {"missing_file": 1}
    shutil.copy(demo_rows[FOUR[0]]["path"], tmp_path / "media" / f"{FOUR[0]}.mp4")
    again = audio()
    assert (again["extracted"], again["cached"], again["failed"]) == (1, 3, {})
    assert list(read(tmp_path / "audio.h5")[0]) == list(FOUR)


def test_clips_added_to_the_manifest_are_added_to_the_store(audio, demo_rows, four, write_manifest, tmp_path):
    rows = [{**demo_rows[clip], "path": f"media/{clip}.mp4"} for clip in FOUR]
    write_manifest(four, rows[:2])
    assert audio()["features"] == 2
    write_manifest(four, rows)
    again = audio()
    assert (again["extracted"], again["cached"], again["features"]) == (2, 2, 4)


def test_another_encoder_is_refused_and_the_store_untouched(audio, invoke, four, tiny_encoders, tmp_path):
    audio()
    before = (tmp_path / "audio.h5").read_bytes()
    given = ["extract", "audio", four, "-o", tmp_path / "audio.h5", "--encoder", tiny_encoders["wav2vec2_group"]]
    result = invoke(*given)
    assert isinstance(result.exception, MertoolError)
    assert "was made by another recipe (encoder: hubert_group there, wav2vec2_group here" in str(result.exception)
    assert "--overwrite" in str(result.exception)
    assert (tmp_path / "audio.h5").read_bytes() == before
    assert not (tmp_path / "audio.h5.parts").exists()


@pytest.mark.parametrize("option", [("--layers", "last"), ("--storage", "float32"), ("--pool", "none")])
def test_other_settings_are_refused(option, audio, invoke, four, tiny_encoders, tmp_path):
    audio()
    given = ["extract", "audio", four, "-o", tmp_path / "audio.h5", "--encoder", tiny_encoders["hubert_group"]]
    assert "another recipe" in str(invoke(*given, *option).exception)


def test_overwrite_builds_the_store_anew(audio, tmp_path):
    audio()
    result = audio("--overwrite", "--layers", "last", encoder="wav2vec2_group")
    assert (result["extracted"], result["cached"], result["layers"]) == (4, 0, 1)
    with FeatureStore(tmp_path / "audio.h5") as store:
        assert store.recipe.encoder == "wav2vec2_group"
        assert store.validate() == []


def test_moving_the_encoder_or_the_media_changes_nothing(
    audio, invoke, tiny_encoders, demo_rows, write_manifest, tmp_path
):
    audio()
    shutil.copytree(tiny_encoders["hubert_group"], tmp_path / "moved" / "hubert_group")
    (tmp_path / "media").rename(tmp_path / "films")
    rows = [{**demo_rows[clip], "path": f"films/{clip}.mp4"} for clip in FOUR]
    manifest = write_manifest(tmp_path / "clips.csv", rows)
    encoder = tmp_path / "moved" / "hubert_group"
    result = invoke("extract", "audio", manifest, "-o", tmp_path / "audio.h5", "--encoder", encoder, "--json")
    assert json.loads(result.stdout)["cached"] == 4


# ---------------------------------------------------------------- sound alone


@pytest.fixture(scope="module")
def sounds(tmp_path_factory, demo_rows):
    """One utterance as wav, flac, mp3 and m4a of several rates."""
    import av
    import soundfile

    from mertool.media import read_audio

    folder = tmp_path_factory.mktemp("sounds")
    wave = read_audio(_path(demo_rows, "spk01_001"))
    soundfile.write(folder / "plain.wav", wave, 16_000)
    soundfile.write(folder / "stereo.flac", np.stack([wave, wave], 1), 16_000)
    for name, codec, rate in (("music.mp3", "libmp3lame", 44_100), ("phone.m4a", "aac", 16_000)):
        with av.open(str(folder / name), "w") as container:
            stream = container.add_stream(codec, rate=rate)
            resampler = av.AudioResampler(format=stream.format, layout="mono", rate=rate)
            frame = av.AudioFrame.from_ndarray((wave * 32767).astype(np.int16)[None], format="s16", layout="mono")
            frame.sample_rate = 16_000
            pieces = [*resampler.resample(frame), *resampler.resample(None)]
            fifo = av.AudioFifo()
            for piece in pieces:
                fifo.write(piece)
            while samples := fifo.read(stream.codec_context.frame_size or 1024, partial=True):
                container.mux(stream.encode(samples))
            container.mux(stream.encode(None))
    return folder, len(wave) / 16_000


def test_a_folder_of_sound_files(sounds, audio, tmp_path):
    folder, seconds = sounds
    assert audio("--storage", "float32", source=folder)["features"] == 4
    values, _, _ = read(tmp_path / "audio.h5")
    assert sorted(values) == ["music", "phone", "plain", "stereo"]
    with FeatureStore(tmp_path / "audio.h5") as store:
        np.testing.assert_allclose(store.media_stats()["seconds"], seconds, atol=0.15)
    np.testing.assert_allclose(values["stereo"], values["plain"], atol=1e-3)
    for name in ("music", "phone"):
        a, b = values[name].ravel(), values["plain"].ravel()
        assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > 0.95


def test_sound_files_have_no_faces(sounds, invoke, tmp_path):
    result = invoke("extract", "faces", sounds[0], "-o", tmp_path / "faces.h5", "--json")
    assert result.exit_code == 3
    assert json.loads(result.stdout)["missing"] == {"no_video": 4}
    assert json.loads(result.stdout)["failed"] == {}


# ---------------------------------------------------------------- options that do not fit together


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--fps", 3], "was made with other settings"),
        (["--fps", 0], "--fps 0: give more than 0 and at most 120"),
        (["--fps", 1, "--aligner", "nowhere"], "nowhere is not a run"),
    ],
)
def test_video_options_that_do_not_fit(options, words, invoke, workspace, faces_store, tiny_encoders, tmp_path):
    given = ["--encoder", tiny_encoders["clip"], "--faces", faces_store, *options]
    result = invoke("extract", "video", workspace.manifest, "-o", tmp_path / "v.h5", *given)
    assert isinstance(result.exception, MertoolError)
    assert words in str(result.exception)


def test_an_aligner_pools_by_itself(invoke, workspace, faces_store, align_run, tiny_encoders, tmp_path):
    given = ["--encoder", tiny_encoders["clip"], "--faces", faces_store, "--fps", 1, "--aligner", align_run]
    result = invoke("extract", "video", workspace.manifest, "-o", tmp_path / "v.h5", *given, "--pool", "none")
    assert "leave out --pool none" in str(result.exception)


def test_faces_must_be_a_store_of_faces(invoke, workspace, audio_store, tiny_encoders, tmp_path):
    given = ["--encoder", tiny_encoders["clip"], "--faces", audio_store]
    result = invoke("extract", "video", workspace.manifest, "-o", tmp_path / "v.h5", *given)
    assert "holds audio: --faces takes a store of `extract faces`" in str(result.exception)


def test_half_precision_is_close_and_another_recipe(audio, tmp_path):
    audio("--storage", "float32", "--layers", "last")
    audio("--storage", "float32", "--layers", "last", "--dtype", "bfloat16", store=tmp_path / "half.h5")
    full, half = read(tmp_path / "audio.h5")[0], read(tmp_path / "half.h5")[0]
    for clip in FOUR:
        error = np.linalg.norm(full[clip] - half[clip]) / np.linalg.norm(full[clip])
        assert 0 < error < 0.05
    with FeatureStore(tmp_path / "audio.h5") as a, FeatureStore(tmp_path / "half.h5") as b:
        assert a.fingerprint != b.fingerprint
        assert b.recipe.compute_dtype == "bfloat16"
    assert torch.get_default_dtype() == torch.float32
