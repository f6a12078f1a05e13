"""`extract text --asr` transcribes clips without a transcript, and so does a bundle of such features."""

import csv
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import soundfile
from fixtures.whisper import DULL, HIGH, LOW, RATE, tone

from mertool.bundle import Bundle
from mertool.encoders import RecognitionSettings
from mertool.encoders.recognition import find_vad_weights
from mertool.errors import MertoolError
from mertool.extraction.transcripts import COLUMNS
from mertool.predictions import Predictions
from mertool.store import FeatureStore

PITCHES = {"low": LOW, "high": HIGH, "dull": DULL, "told": LOW}
TEXTS = {"low": "good day", "high": "sad"}


@pytest.fixture
def clips(tmp_path, write_manifest):
    """Two clips with speech, one without, one with a transcript, one that cannot be read, and a missing one."""
    folder = tmp_path / "media"
    folder.mkdir()
    for number, (clip, pitch) in enumerate(PITCHES.items(), start=10_001):
        soundfile.write(folder / f"{clip}.wav", tone(pitch, 0.8, seed=number), RATE)
    (folder / "broken.wav").write_bytes(b"no sound")
    rows = [{"clip": clip, "path": f"media/{clip}.wav"} for clip in [*PITCHES, "broken", "gone"]]
    rows[3]["text"] = "we lost the dog"
    return write_manifest(tmp_path / "clips.csv", rows)


@pytest.fixture
def extract_text(invoke, clips, tiny_encoders, whisper, tmp_path):
    """A function (*options) that runs `extract text` with speech recognition; the command's result."""

    def run(*options, source=clips, asr=whisper, store="text.h5", vad=("--no-vad",)):  # its speech is tones
        command = ["extract", "text", source, "-o", tmp_path / store, "--encoder", tiny_encoders["bert"], "--asr", asr]
        return invoke(*command, "--workers", 1, "--max-failed", 1, "--storage", "float32", *options, *vad)

    return run


@pytest.fixture
def transcribe(extract_text):
    """Like `extract_text`, for runs that must succeed; their JSON object."""

    def run(*options, **changes):
        result = extract_text("--json", *options, **changes)
        assert result.exit_code == 0, (result.exception, result.stderr)
        return json.loads(result.stdout)

    return run


def rows_of(path):
    with open(path, newline="", encoding="utf-8") as file:
        return {row["clip"]: row for row in csv.DictReader(file)}


def failures(path):
    with FeatureStore(path) as store:
        return {failure.clip: failure.reason for failure in store.failures()}


@pytest.fixture
def forbid_whisper(monkeypatch):
    """A function: from its call on, loading a Whisper fails the test."""
    from mertool import encoders

    return lambda: monkeypatch.setattr(
        encoders, "load_recogniser", lambda *_, **__: pytest.fail("the Whisper was loaded")
    )


def test_asr_transcribes_clips_without_a_transcript(transcribe, call, write_manifest, tiny_encoders, tmp_path):
    result = transcribe()
    assert (result["features"], result["missing"]) == (3, {"no_text": 1})
    assert result["failed"] == {"missing_file": 1, "unreadable": 1}
    assert failures(tmp_path / "text.h5") == {"dull": "no_text", "broken": "unreadable", "gone": "missing_file"}
    # The features are those of the same words in a manifest.
    rows = [
        {"clip": clip, "path": "x.wav", "text": text} for clip, text in {**TEXTS, "told": "we lost the dog"}.items()
    ]
    written = write_manifest(tmp_path / "written.csv", rows)
    encoder = ["--encoder", tiny_encoders["bert"], "--storage", "float32", "-q"]
    call("extract", "text", written, "-o", tmp_path / "written.h5", *encoder)
    with FeatureStore(tmp_path / "text.h5") as transcribed, FeatureStore(tmp_path / "written.h5") as expected:
        assert transcribed.ids == expected.ids
        np.testing.assert_allclose(transcribed.read(), expected.read(), atol=1e-5)
        assert transcribed.fingerprint != expected.fingerprint


def test_the_transcripts_are_kept_beside_the_store(transcribe, tmp_path):
    path = tmp_path / "text.transcripts.csv"
    assert transcribe()["transcripts"] == str(path)
    assert path.read_text(encoding="utf-8").splitlines()[0] == ",".join(COLUMNS)
    rows = rows_of(path)
    assert {clip: (row["text"], row["reason"]) for clip, row in rows.items()} == {
        "low": ("good day", ""),
        "high": ("sad", ""),
        "dull": ("", "no_text"),
        "broken": ("", "unreadable"),
        "gone": ("", "missing_file"),
    }
    assert 0.7 < float(rows["low"]["confidence"]) <= 1
    assert float(rows["dull"]["no_speech"]) > 0.6
    assert rows["broken"]["confidence"] == ""


def test_asr_in_the_printed_report(extract_text, tmp_path):
    printed = extract_text().stdout
    assert "3 of 6 clips have text features (3 extracted now, 0 cached)" in printed
    assert "missing: 1 no_text\nfailed: 1 missing_file, 1 unreadable\n" in printed
    assert f"transcripts: {tmp_path / 'text.transcripts.csv'}\n" in printed


def test_a_second_run_is_cached(transcribe, forbid_whisper, tmp_path):
    (tmp_path / "media" / "gone.wav").write_bytes(b"no sound either")  # else it is tried again
    transcribe()
    before = {path: path.read_bytes() for path in tmp_path.glob("text.*")}
    forbid_whisper()
    result = transcribe()
    assert (result["extracted"], result["cached"], result["features"]) == (0, 3, 3)
    assert (result["missing"], result["failed"]) == ({"no_text": 1}, {"unreadable": 2})
    assert {path: path.read_bytes() for path in tmp_path.glob("text.*")} == before


def test_a_corrected_text_counts(transcribe, tmp_path):
    transcribe()
    path = tmp_path / "text.transcripts.csv"
    path.write_text(path.read_text(encoding="utf-8").replace("good day", "what a day"), encoding="utf-8")
    result = transcribe()
    assert (result["extracted"], result["cached"]) == (1, 2)
    assert rows_of(path)["low"]["text"] == "what a day"


def test_asr_transcribes_a_file_that_came_back(transcribe, tmp_path):
    transcribe()
    shutil.copy(tmp_path / "media" / "high.wav", tmp_path / "media" / "gone.wav")
    result = transcribe()
    assert (result["extracted"], result["cached"], result["failed"]) == (1, 3, {"unreadable": 1})
    assert rows_of(tmp_path / "text.transcripts.csv")["gone"]["text"] == "sad"


def test_shards_have_transcripts_of_their_own(transcribe, tmp_path):
    for number in (1, 2):
        transcribe("--shard", f"{number}/2")
    tables = [rows_of(tmp_path / f"text.{number}-of-2.transcripts.csv") for number in (1, 2)]
    assert [sorted(table) for table in tables] == [["dull", "high", "low"], ["broken", "gone"]]


def test_asr_transcribes_nothing_again_after_shards_are_merged(transcribe, call, forbid_whisper, tmp_path):
    (tmp_path / "media" / "gone.wav").write_bytes(b"no sound either")
    for number in (1, 2):
        transcribe("--shard", f"{number}/2")
    parts = [tmp_path / f"text.{number}-of-2.h5" for number in (1, 2)]
    call("store", "merge", *parts, "-o", tmp_path / "text.h5", "-q")
    forbid_whisper()
    assert transcribe()["extracted"] == 0


def test_asr_writes_no_table_where_every_clip_has_a_transcript(extract_text, write_manifest, forbid_whisper, tmp_path):
    forbid_whisper()
    manifest = write_manifest(tmp_path / "told.csv", [{"clip": "a", "path": "a.wav", "text": "what a day"}])
    result = extract_text(source=manifest)
    assert result.exit_code == 0
    assert not list(tmp_path.glob("*transcripts*"))
    assert "transcripts: " not in result.stdout
    assert json.loads(extract_text("--json", source=manifest).stdout)["transcripts"] is None


def test_nothing_is_transcribed_where_nobody_speaks(transcribe, tmp_path):
    """To silero-vad tones are no speech."""
    if find_vad_weights() is None:
        pytest.skip("silero-vad is not installed")
    result = transcribe(vad=())
    assert (result["features"], result["missing"]) == (1, {"no_text": 3})
    assert {row["reason"] for clip, row in rows_of(tmp_path / "text.transcripts.csv").items() if clip in PITCHES} == {
        "no_text"
    }


def test_without_silero_vad_the_user_is_told_once(extract_text, monkeypatch):
    from mertool.encoders import recognition

    monkeypatch.setattr(recognition, "find_vad_weights", lambda: None)
    result = extract_text(vad=())
    assert "3 of 6 clips have text features" in result.stdout
    assert result.stderr.count("pip install 'mertool[asr]'") == 1
    assert extract_text("--overwrite", vad=()).stderr.count("pip install") == 1  # the missing file is tried again


def test_the_language_is_kept_and_another_one_is_another_recipe(transcribe, extract_text, tmp_path):
    transcribe()
    assert [rows_of(tmp_path / "text.transcripts.csv")[clip]["language"] for clip in ("low", "high", "dull")] == [
        "en", "zh", "",
    ]  # fmt: skip
    assert "was made by another recipe" in str(extract_text("--language", "chinese").exception)
    transcribe("--language", "chinese", "--overwrite")
    rows = rows_of(tmp_path / "text.transcripts.csv")
    assert [(rows[clip]["text"], rows[clip]["language"]) for clip in ("low", "high")] == [("so", "zh"), ("sad", "zh")]
    with FeatureStore(tmp_path / "text.h5") as store:
        settings = store.recipe.media["recognition"]
    assert settings == {"language": "zh", "chinese": None, "vad": None, "version": 1}


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("asr", "words"),
    [
        ("bert", "cannot be loaded as a speech recogniser: a Whisper is needed"),
        ("nowhere/at/all", "encoder folder nowhere/at/all does not exist"),
        ("whisper-large-v4", "unknown speech recogniser 'whisper-large-v4' (--asr): did you mean 'whisper-large-v3'?"),
        ("roberta-large", "unknown speech recogniser 'roberta-large' (--asr): valid: whisper-tiny-en"),
    ],
)
def test_asr_models_that_are_not_whisper(asr, words, extract_text, tiny_encoders, tmp_path):
    result = extract_text(asr=tiny_encoders["bert"] if asr == "bert" else asr)
    assert isinstance(result.exception, MertoolError)
    assert words in str(result.exception)
    assert len(str(result.exception).splitlines()) == 1
    assert not list(tmp_path.glob("text.*"))


@pytest.mark.parametrize("option", [["--language", "en"], ["--chinese", "simplified"], ["--no-vad"]])
def test_settings_of_speech_recognition_need_it(option, invoke, clips, tmp_path):
    for command in (["extract", "text", clips, "-o", tmp_path / "t.h5"], ["predict", "run", clips, "-o", "p.csv"]):
        result = invoke(*command, *option)
        assert result.exit_code != 0
        assert f"{option[0]} belongs to --asr: give a Whisper, too" in f"{result.exception} {result.stderr}"


def test_a_language_that_is_misspelt(extract_text, forbid_whisper):
    forbid_whisper()
    assert "unknown language 'englsh' (--language): did you mean 'english'?" in str(
        extract_text("--language", "englsh").exception
    )


def test_asr_does_not_start_before_a_store_of_another_recipe_is_refused(
    extract_text, transcribe, call, clips, tiny_encoders, forbid_whisper
):
    """A store without recognised texts is another recipe; to transcribe thousands of clips takes hours."""
    store = clips.with_name("text.h5")
    call("extract", "text", clips, "-o", store, "--encoder", tiny_encoders["bert"], "-q", "--max-failed", 1)
    forbid_whisper()
    assert "was made by another recipe" in str(extract_text().exception)


# ---------------------------------------------------------------- predict


def test_a_bundle_with_asr_transcribes_new_clips(
    extract_text, invoke, workspace, write_manifest, demo_rows, make_bundle, tmp_path
):
    rows = [demo_rows[clip] for clip in workspace.clips if clip in demo_rows]
    labelled = write_manifest(tmp_path / "labelled.csv", [row for row in rows if row["label"] and row["text"]])
    assert extract_text("-q", source=labelled).exit_code == 0
    make_bundle(tmp_path / "run", [tmp_path / "text.h5"])
    # A folder has no transcripts at all.
    command = ["predict", tmp_path / "run", tmp_path / "media", "-o", tmp_path / "p.csv", "--max-failed", 1, "--json"]
    result = invoke(*command)
    assert result.exit_code == 0, (result.exception, result.stderr)
    assert json.loads(result.stdout)["modalities"] == {"text": 3}
    assert Predictions.read(tmp_path / "p.csv").clips == ("high", "low", "told")
    (table,) = (tmp_path / "p.csv.features").glob("transcripts-*.csv")
    texts = {clip: row["text"] for clip, row in rows_of(table).items()}
    assert texts == {**TEXTS, "told": "good day", "dull": "", "broken": ""}
    reasons = {clip: row["reason"] for clip, row in rows_of(tmp_path / "p.failures.csv").items()}
    assert reasons == {"broken": "unreadable", "dull": "no_text"}


def test_a_bundle_transcribes_with_its_own_settings_or_refuses(
    extract_text, workspace, write_manifest, demo_rows, make_bundle, tmp_path
):
    rows = [demo_rows[clip] for clip in workspace.clips if clip in demo_rows]
    labelled = write_manifest(tmp_path / "labelled.csv", [row for row in rows if row["label"] and row["text"]])
    assert extract_text("-q", "--language", "zh", source=labelled).exit_code == 0
    bundle = Bundle.open(make_bundle(tmp_path / "run", [tmp_path / "text.h5"]))
    (spec,) = bundle.feature_specs
    assert bundle.recognition_of(spec).settings == RecognitionSettings(language="zh")
    for settings, words in (
        ({}, "were transcribed by a mertool without voice activity detection: extract the text again, and fuse"),
        ({"recognition": {"vad": "0" * 64}}, "voice activity detection by silero-vad, which is here"),
    ):
        media = {"asr": spec.recipe.media["asr"], **settings}
        with pytest.raises(MertoolError, match=words):
            bundle.recognition_of(replace(spec, recipe=replace(spec.recipe, media=media)))
