"""`mertool predict`: raw clips in, labels out, with nothing but the bundle."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from mertool.errors import MertoolError
from mertool.manifest import EMOTIONS
from mertool.predictions import Predictions


@pytest.fixture(scope="module")
def clips(tmp_path_factory, demo_rows, write_manifest):
    """Test clips, some of which lack a modality or cannot be read."""
    folder = tmp_path_factory.mktemp("predict")
    rows = [demo_rows[clip] for clip in ("spk01_003", "spk02_014", "spk07_001", "spk07_006", "spk05_001")]
    rows.append({**demo_rows["spk05_001"], "clip": "silent", "text": "", "label": ""})
    return write_manifest(folder / "test.csv", rows)


@pytest.fixture(scope="module")
def predicted(
    make_bundle,
    workspace,
    acoustic_store,
    video_store,
    frames_store,
    align_run,
    text_store,
    clips,
    invoke,
    tmp_path_factory,
):
    """Predictions by a bundle of all kinds of features, whose encoders' folders are gone; the JSON object."""
    folder = tmp_path_factory.mktemp("moved")
    stores = [acoustic_store, video_store, frames_store, workspace.store("aligned"), text_store]
    bundle = make_bundle(folder / "bundle", stores)
    text = (bundle / "run.json").read_text()
    info = json.loads(text)
    for part in info["parts"]:  # as if the folders had been deleted
        for key, value in list(part["origin"].items()):
            if isinstance(value, str):
                part["origin"][key] = f"/gone{value}"
        part["origin"]["encoder"]["checkpoint"] = "/gone" + part["origin"]["encoder"]["checkpoint"]
    (bundle / "run.json").write_text(json.dumps(info))
    result = invoke("predict", bundle, clips, "-o", folder / "p.csv", "--json", "--max-failed", 0.5)
    assert result.exit_code == 0, (result.exception, result.stderr)
    return bundle, folder / "p.csv", json.loads(result.stdout)


def test_every_clip_with_any_modality_gets_a_row(predicted):
    found = Predictions.read(predicted[1])
    assert dict(zip(found.clips, found.modalities, strict=True)) == {
        "spk01_003": ("audio", "video", "text"),
        "spk02_014": ("audio", "text"),  # no face
        "spk07_001": ("audio", "video"),  # no transcript
        "spk07_006": ("audio", "text"),  # no picture
        "spk05_001": ("text",),  # a broken file with a transcript
    }
    assert found.classes == EMOTIONS
    np.testing.assert_allclose(found.probabilities.sum(1), 1, atol=1e-5)
    assert (found.probabilities > 0).all()


def test_rows_say_where_the_clip_lies_and_why_a_modality_is_missing(predicted, demo_rows):
    found = Predictions.read(predicted[1])
    assert dict(zip(found.clips, found.missing, strict=True)) == {
        "spk01_003": {},
        "spk02_014": {"video": "no_face"},
        "spk07_001": {"text": "no_text"},
        "spk07_006": {"video": "no_video"},
        "spk05_001": {"audio": "unreadable", "video": "unreadable"},
    }
    for clip, path in zip(found.clips, found.paths, strict=True):
        assert Path(path).samefile(demo_rows[clip]["path"])
    assert predicted[2]["missing"]["video: no_face"] == 1


def test_the_counts(predicted):
    result = predicted[2]
    assert (result["clips"], result["predicted"], result["unreadable"]) == (6, 5, 1)
    assert result["modalities"] == {"audio+text": 2, "audio+video": 1, "audio+video+text": 1, "text": 1}
    assert result["failed_share"] == pytest.approx(1 / 6)


def test_failures_are_listed_with_their_reasons(predicted):
    with open(predicted[2]["failures"], newline="") as file:
        rows = [(row["clip"], row["modality"], row["reason"]) for row in csv.DictReader(file)]
    assert ("silent", "audio", "unreadable") in rows
    assert ("silent", "text", "no_text") in rows
    assert ("spk05_001", "audio", "unreadable") in rows
    assert not [row for row in rows if row[0] in ("spk01_003", "spk02_014", "spk07_001", "spk07_006")]


def test_a_second_run_is_cached_and_equal(predicted, clips, invoke, monkeypatch):
    from mertool.extraction.clip_encoder import EncoderAssets

    bundle, output, _ = predicted
    before = output.read_bytes()
    monkeypatch.setattr(EncoderAssets, "load", lambda *_: pytest.fail("an encoder was loaded"))
    result = invoke("predict", bundle, clips, "-o", output, "--json", "--max-failed", 0.5)
    assert result.exit_code == 0, result.exception
    assert output.read_bytes() == before


def test_a_missing_modality_is_no_failure_and_too_many_broken_files_are(predicted, clips, invoke):
    bundle, output, _ = predicted
    assert invoke("predict", bundle, clips, "-o", output, "-q").exit_code == 3


def test_clips_to_predict_get_the_adapter_trained_on_all(predicted):
    """Whatever their names: a clip called like a training clip is not one."""
    from mertool.store import FeatureStore

    with FeatureStore(predicted[1].parent / "p.csv.features" / "acoustic.h5") as store:
        assert store.recipe.adapter.endswith(":final")


# ---------------------------------------------------------------- a small bundle of text


@pytest.fixture(scope="module")
def text_bundle(tmp_path_factory, tiny_encoders, workspace, call, make_bundle):
    """A bundle over text whose encoder's folder was deleted afterwards."""
    folder = tmp_path_factory.mktemp("text")
    encoder = folder / "encoder"
    shutil.copytree(tiny_encoders["bert"], encoder)
    call("extract", "text", workspace.manifest, "-o", folder / "text.h5", "--encoder", encoder, "-q")
    make_bundle(folder / "run", [folder / "text.h5"])
    shutil.rmtree(encoder)
    (folder / "text.h5").unlink()
    return folder / "run"


@pytest.fixture
def bundle(text_bundle, tmp_path):
    """A copy that a test may change."""
    shutil.copytree(text_bundle, tmp_path / "bundle")
    return tmp_path / "bundle"


def test_a_moved_bundle_without_its_encoders_folder(bundle, clips, call, tmp_path):
    call("predict", bundle, clips, "-o", tmp_path / "p.csv", "-q", "--max-failed", 1)
    assert len(Predictions.read(tmp_path / "p.csv").clips) == 4


def test_json_lines_say_the_same(bundle, clips, call, tmp_path):
    for name in ("p.csv", "p.jsonl"):
        call("predict", bundle, clips, "-o", tmp_path / name, "-q", "--max-failed", 1)
    rows = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    table, lines = Predictions.read(tmp_path / "p.csv"), Predictions.read(tmp_path / "p.jsonl")
    assert [row["clip"] for row in rows] == list(table.clips)
    assert list(rows[0]) == ["clip", "path", "label", "confidence", "probabilities", "modalities", "missing"]
    assert lines.modalities == table.modalities
    np.testing.assert_allclose(lines.probabilities, table.probabilities, atol=1e-6)


def test_the_probabilities_are_those_of_the_mean_logits(bundle, clips, call, tmp_path):
    import torch

    from mertool.fusion.heads import HeadSpec
    from mertool.runs import load_tensors
    from mertool.store import FeatureStore

    call("predict", bundle, clips, "-o", tmp_path / "p.csv", "-q", "--max-failed", 1)
    found = Predictions.read(tmp_path / "p.csv")
    state = load_tensors(bundle / "members-0.safetensors")
    with FeatureStore(tmp_path / "p.csv.features" / "text.h5") as store:
        values = torch.from_numpy(store.read(found.clips))
    logits = []
    for member in range(3):
        head = HeadSpec("attention", [(1, 96)], 6).build(width=8).eval()
        head.load_state_dict({name: value[member] for name, value in state.items()})
        with torch.no_grad():
            logits.append(head([values], torch.ones(len(values), 1, dtype=torch.bool)))
    expected = (torch.stack(logits).mean(0) / 1.5).softmax(1)  # the bundle's temperature
    np.testing.assert_allclose(found.probabilities, expected, atol=2e-6)


def test_a_changed_encoder_is_named(bundle, clips, invoke, tmp_path):
    config = next(bundle.glob("encoders/*/model.safetensors"))
    content = bytearray(config.read_bytes())
    content[-1] ^= 1
    config.write_bytes(content)
    result = invoke("predict", bundle, clips, "-o", tmp_path / "p.csv")
    assert isinstance(result.exception, MertoolError)
    assert "model.safetensors was changed" in str(result.exception)
    assert not (tmp_path / "p.csv").exists()


def test_a_bundle_that_lost_its_weights(bundle, clips, invoke, tmp_path):
    (bundle / "members-0.safetensors").unlink()
    result = invoke("predict", bundle, clips, "-o", tmp_path / "p.csv")
    assert isinstance(result.exception, MertoolError)
    assert "members-0.safetensors is missing" in str(result.exception)


def test_another_bundle_does_not_use_the_cache_of_the_first(
    bundle, clips, call, tiny_encoders, workspace, make_bundle, tmp_path
):
    call("predict", bundle, clips, "-o", tmp_path / "p.csv", "-q", "--max-failed", 1)
    before = Predictions.read(tmp_path / "p.csv").probabilities
    other = ["--encoder", tiny_encoders["roberta"], "-q"]
    call("extract", "text", workspace.manifest, "-o", tmp_path / "text.h5", *other)
    make_bundle(tmp_path / "other", [tmp_path / "text.h5"])
    call("predict", tmp_path / "other", clips, "-o", tmp_path / "p.csv", "-q", "--max-failed", 1)
    assert not np.allclose(Predictions.read(tmp_path / "p.csv").probabilities, before, atol=1e-3)


def test_a_changed_transcript_changes_only_its_row(bundle, clips, demo_rows, write_manifest, call, tmp_path):
    rows = [demo_rows[clip] for clip in ("spk01_003", "spk02_014", "spk07_006")]
    manifest = write_manifest(tmp_path / "m.csv", rows)
    call("predict", bundle, manifest, "-o", tmp_path / "p.csv", "-q")
    before = Predictions.read(tmp_path / "p.csv").probabilities
    write_manifest(manifest, [rows[0], {**rows[1], "text": "wow what a day"}, rows[2]])
    call("predict", bundle, manifest, "-o", tmp_path / "p.csv", "-q")
    after = Predictions.read(tmp_path / "p.csv").probabilities
    assert [bool(np.allclose(a, b, atol=1e-6)) for a, b in zip(before, after, strict=True)] == [True, False, True]


def test_failures_of_an_earlier_run_do_not_stay(bundle, clips, demo_rows, write_manifest, invoke, call, tmp_path):
    manifest = write_manifest(tmp_path / "m.csv", [{**demo_rows["spk01_003"], "text": ""}, demo_rows["spk02_014"]])
    invoke("predict", bundle, manifest, "-o", tmp_path / "p.csv", "-q")
    assert (tmp_path / "p.failures.csv").exists()
    write_manifest(manifest, [demo_rows["spk01_003"], demo_rows["spk02_014"]])
    call("predict", bundle, manifest, "-o", tmp_path / "p.csv", "-q")
    assert not (tmp_path / "p.failures.csv").exists()


def test_no_clip_that_can_be_scored_is_exit_code_three(bundle, demo_rows, write_manifest, invoke, tmp_path):
    manifest = write_manifest(tmp_path / "m.csv", [{**demo_rows["spk01_003"], "text": ""}])
    result = invoke("predict", bundle, manifest, "-o", tmp_path / "p.csv", "-q")
    assert result.exit_code == 3
    assert "p.failures.csv" in result.stderr


# ---------------------------------------------------------------- features, audio files, speech recognition


def test_the_features_are_those_that_extract_makes(
    predicted, clips, call, tiny_encoders, align_run, workspace, tmp_path
):
    """Stores that share the pass of an encoder hold the values of separate extractions."""
    from mertool.store import FeatureStore

    options = ["--encoder", tiny_encoders["clip"], "--fps", 1, "--max-failed", 1, "-q"]
    for name, given in {"video": [], "frames": ["--pool", "none"], "aligned": ["--aligner", align_run]}.items():
        call("extract", "video", clips, "-o", tmp_path / f"{name}.h5", *options, *given)
        cached = {"frames": "video-frames"}.get(name, name)
        with (
            FeatureStore(tmp_path / f"{name}.h5") as alone,
            FeatureStore(predicted[1].parent / "p.csv.features" / f"{cached}.h5") as together,
        ):
            assert together.ids == alone.ids == ["spk01_003", "spk07_001"]
            for clip in alone.ids:
                values = [store.read([clip]) if store.pooled else store.frames(clip) for store in (together, alone)]
                np.testing.assert_array_equal(*values)
            assert {f.reason for f in together.failures()} == {f.reason for f in alone.failures()}


def test_video_encoders_share_their_face_crops(
    make_bundle, workspace, video_store, faces_store, clips, call, tiny_encoders, tmp_path
):
    """Faces are detected once for two encoders, and no crops are kept for a single one."""
    from mertool.store import FeatureStore

    options = ["--encoder", tiny_encoders["vit"], "--fps", 1, "-q"]
    call("extract", "video", workspace.manifest, "-o", tmp_path / "vit.h5", *options, "--faces", faces_store)
    bundle = make_bundle(tmp_path / "run", [video_store, tmp_path / "vit.h5"])
    call("predict", bundle, clips, "-o", tmp_path / "p.csv", "-q", "--max-failed", 1)
    cache = tmp_path / "p.csv.features"
    (crops,) = cache.glob("face-crops-*.h5")
    call("extract", "video", clips, "-o", tmp_path / "alone.h5", *options, "--max-failed", 1)
    with (
        FeatureStore(crops) as faces,
        FeatureStore(cache / "vit.h5") as shared,
        FeatureStore(tmp_path / "alone.h5") as alone,
    ):
        assert faces.ids == shared.ids == alone.ids == ["spk01_003", "spk07_001"]
        np.testing.assert_array_equal(shared.read(), alone.read())
    single = make_bundle(tmp_path / "single", [video_store])
    call("predict", single, clips, "-o", tmp_path / "single.csv", "-q", "--max-failed", 1)
    assert not list((tmp_path / "single.csv.features").glob("face-crops-*"))


@pytest.fixture(scope="module")
def audio_bundle(make_bundle, audio_store, frames_store, text_store, tmp_path_factory):
    """A bundle over audio, frames of faces and text."""
    return make_bundle(tmp_path_factory.mktemp("sound") / "run", [audio_store, frames_store, text_store])


@pytest.fixture(scope="module")
def tones(tmp_path_factory):
    """A folder of two audio files that the tiny Whisper knows, and a file that is not audio."""
    import soundfile
    from fixtures.whisper import HIGH, LOW, RATE, tone

    folder = tmp_path_factory.mktemp("tones")
    for number, (name, pitch) in enumerate({"low": LOW, "high": HIGH}.items()):
        soundfile.write(folder / f"{name}.wav", tone(pitch, 0.8, seed=10_001 + number), RATE)
    (folder / "none.wav").write_bytes(b"no sound")
    return folder


def test_a_folder_of_audio_files(audio_bundle, tones, call, tmp_path):
    call("predict", audio_bundle, tones, "-o", tmp_path / "p.csv", "-q", "--max-failed", 0.5)
    found = Predictions.read(tmp_path / "p.csv")
    assert dict(zip(found.clips, found.modalities, strict=True)) == {"high": ("audio",), "low": ("audio",)}
    with open(tmp_path / "p.failures.csv", newline="") as file:
        assert {(row["clip"], row["reason"]) for row in csv.DictReader(file)} >= {("none", "unreadable")}


def test_asr_transcribes_a_folder(audio_bundle, tones, call, whisper, tmp_path, monkeypatch):
    from mertool import encoders

    recognised = ["--asr", whisper, "--no-vad"]  # the tiny Whisper's speech is tones
    given = ["predict", audio_bundle, tones, "-o", tmp_path / "p.csv", "--max-failed", 0.5, "-q", *recognised]
    call(*given)
    found = Predictions.read(tmp_path / "p.csv")
    assert dict(zip(found.clips, found.modalities, strict=True)) == {
        "high": ("audio", "text"),
        "low": ("audio", "text"),
    }
    before = (tmp_path / "p.csv").read_bytes()
    monkeypatch.setattr(encoders, "load_recogniser", lambda *_, **__: pytest.fail("the Whisper was loaded"))
    call(*given)
    assert (tmp_path / "p.csv").read_bytes() == before


def test_asr_for_a_bundle_without_text(make_bundle, audio_store, tones, whisper, invoke, tmp_path):
    bundle = make_bundle(tmp_path / "run", [audio_store])
    result = invoke("predict", bundle, tones, "-o", tmp_path / "p.csv", "--asr", whisper)
    assert isinstance(result.exception, MertoolError)
    assert "uses no text" in str(result.exception)


def test_a_silent_video_is_predicted_from_its_faces(
    audio_bundle, demo_rows, clip_names, write_manifest, call, tmp_path
):
    manifest = write_manifest(tmp_path / "m.csv", [{**demo_rows[clip_names.no_sound], "text": ""}])
    call("predict", audio_bundle, manifest, "-o", tmp_path / "p.csv", "-q")
    assert Predictions.read(tmp_path / "p.csv").modalities == (("video",),)


def test_rows_come_in_the_manifests_order_whatever_the_block(text_bundle, workspace, call, tmp_path, monkeypatch):
    from mertool.bundle import scoring

    call("predict", text_bundle, workspace.manifest, "-o", tmp_path / "one.csv", "-q", "--max-failed", 1)
    monkeypatch.setattr(scoring, "CLIPS_PER_BLOCK", 4)
    call("predict", text_bundle, workspace.manifest, "-o", tmp_path / "some.csv", "-q", "--max-failed", 1)
    one, some = Predictions.read(tmp_path / "one.csv"), Predictions.read(tmp_path / "some.csv")
    order = [clip for clip in workspace.clips if clip in one.clips]
    assert list(one.clips) == list(some.clips) == order
    np.testing.assert_allclose(one.probabilities, some.probabilities, atol=1e-6)


def test_an_error_while_scoring_leaves_the_old_predictions(text_bundle, workspace, call, invoke, tmp_path, monkeypatch):
    from mertool import predict as stage

    output = tmp_path / "p.csv"
    call("predict", text_bundle, workspace.manifest, "-o", output, "-q", "--max-failed", 1)
    before = output.read_bytes()

    def broken(*args, **options):
        yield from list(score_blocks(*args, **options))[:1]
        raise MertoolError("the disk is full")

    score_blocks = stage.score_blocks
    monkeypatch.setattr(stage, "score_blocks", broken)
    assert invoke("predict", text_bundle, workspace.manifest, "-o", output, "-q").exit_code != 0
    assert output.read_bytes() == before
    assert not list(tmp_path.glob(".p.csv*"))


def test_an_encoder_that_is_gone_is_named_before_the_work(
    audio_store, tiny_encoders, workspace, make_bundle, clips, call, invoke, tmp_path, monkeypatch
):
    """The last encoder was too large for the bundle: hours of extraction by the others would be for nothing."""
    from mertool.bundle import feature_spec

    encoder = tmp_path / "encoder"
    shutil.copytree(tiny_encoders["bert"], encoder)
    call("extract", "text", workspace.manifest, "-o", tmp_path / "text.h5", "--encoder", encoder, "-q")
    monkeypatch.setattr(feature_spec, "COPY_BYTES", 0)
    bundle = make_bundle(tmp_path / "run", [audio_store, tmp_path / "text.h5"])
    shutil.rmtree(encoder)
    result = invoke("predict", bundle, clips, "-o", tmp_path / "p.csv")
    assert isinstance(result.exception, MertoolError)
    assert "encoder 'encoder' of features 'text' is neither in" in str(result.exception)
    assert not (tmp_path / "p.csv.features").exists()


# ---------------------------------------------------------------- sources, silence


def test_files_and_folders_are_sources(audio_bundle, tones, demo_rows, call, tmp_path):
    video = Path(demo_rows["spk01_003"]["path"])
    call("predict", audio_bundle, video, tones / "high.wav", tones, "-o", tmp_path / "p.csv", "-q", "--max-failed", 0.5)
    found = Predictions.read(tmp_path / "p.csv")
    assert found.clips == ("spk01_003", "high", "low")
    assert found.paths == (str(video), str(tones / "high.wav"), str(tones / "low.wav"))


def test_silence_and_very_short_audio_have_no_label(audio_bundle, invoke, tmp_path):
    import soundfile

    (tmp_path / "clips").mkdir()
    wave = np.sin(np.arange(16_000) / 20).astype(np.float32)
    given = {"good": wave, "short": wave[:800], "silent": 0 * wave, "offset": 0 * wave + 0.1}
    for name, samples in given.items():
        soundfile.write(tmp_path / "clips" / f"{name}.wav", samples, 16_000)
    result = invoke("predict", audio_bundle, tmp_path / "clips", "-o", tmp_path / "p.csv", "--max-failed", 1)
    assert result.exit_code == 0, result.exception
    assert Predictions.read(tmp_path / "p.csv").clips == ("good",)
    reasons = {row[0]: row[2:] for row in read_csv(tmp_path / "p.failures.csv") if row[1] == "audio"}
    assert reasons == {
        "short": ["too_short", "50 ms of audio, less than the 100 ms of a syllable"],
        "silent": ["silent", "the audio is digital silence"],
        "offset": ["silent", "the audio is digital silence"],
    }


# ---------------------------------------------------------------- submissions


@pytest.fixture
def submit(bundle, demo_rows, write_manifest, invoke, tmp_path):
    """A function (candidates, clips, year) that predicts with --submission; the result."""

    def run(candidates, clips=("spk01_003", "spk02_014", "spk07_006"), year="mer2024", more=()):
        manifest = write_manifest(tmp_path / "m.csv", [demo_rows[clip] for clip in clips])
        (tmp_path / "candidates.csv").write_text("name\n" + "".join(f"{name}\n" for name in candidates))
        given = ["--submission", year, "--candidates", tmp_path / "candidates.csv", "--max-failed", 1, *more]
        return invoke("predict", bundle, manifest, "-o", tmp_path / "p.csv", *given)

    return run


def read_csv(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


@pytest.mark.parametrize("year", ["mer2023", "mer2024", "mer2025", "mer2026"])
def test_a_submission_has_the_candidates_in_their_order(year, submit, tmp_path):
    order = ["spk07_006", "spk01_003", "spk02_014"]
    result = submit(order, year=year)
    assert result.exit_code == 0, result.exception
    found = Predictions.read(tmp_path / "p.csv")
    label = dict(zip(found.clips, found.labels, strict=True))
    rows = read_csv(tmp_path / f"p.{year}.csv")
    if year == "mer2023":
        assert rows == [["name", "discrete", "valence"], *([clip, label[clip], "0"] for clip in order)]
        assert "the column valence of the submission is 0: give predictions of it with --valence" in result.stderr
    else:
        assert rows == [["name", "discrete"], *([clip, label[clip]] for clip in order)]
    assert f"submission: {tmp_path / f'p.{year}.csv'}" in result.stdout


def test_a_submission_with_predicted_valence(submit, tmp_path):
    (tmp_path / "valence.csv").write_text("clip,valence\nspk01_003,-1.25\nspk02_014,2\n")
    given = ["--valence", tmp_path / "valence.csv"]
    result = submit(["spk02_014", "spk01_003", "spk07_006"], year="mer2023", more=given)
    assert result.exit_code == 0, result.exception
    assert "valence" not in result.stderr
    rows = read_csv(tmp_path / "p.mer2023.csv")[1:]
    # The third has no prediction, and so the mean of the others.
    assert [(row[0], row[2]) for row in rows] == [("spk02_014", "2"), ("spk01_003", "-1.25"), ("spk07_006", "0.375")]


@pytest.mark.parametrize(
    ("year", "content", "message"),
    [
        ("mer2024", "clip,valence\na,1\n", "--valence is for the submission of MER2023"),
        ("mer2023", "clip,arousal\na,1\n", "holds predictions of arousal, not of valence"),
    ],
)
def test_valence_that_fits_no_submission(year, content, message, submit, tmp_path):
    (tmp_path / "valence.csv").write_text(content)
    result = submit(["spk01_003"], year=year, more=["--valence", tmp_path / "valence.csv"])
    assert message in str(result.exception)


def test_only_the_candidates_are_predicted(submit, tmp_path):
    assert submit(["spk02_014"]).exit_code == 0
    assert Predictions.read(tmp_path / "p.csv").clips == ("spk02_014",)
    assert [row[0] for row in read_csv(tmp_path / "p.mer2024.csv")] == ["name", "spk02_014"]


def test_a_candidate_that_cannot_be_read_gets_the_most_frequent_class(submit, tmp_path):
    result = submit(["spk01_003", "spk07_001"], ["spk01_003", "spk07_001"])  # the second has no transcript
    assert result.exit_code == 0, result.exception
    assert ["spk07_001", "surprise"] in read_csv(tmp_path / "p.mer2024.csv")
    assert "the label 'surprise', the most frequent class in training: 1 (spk07_001)" in result.stderr
    assert str(tmp_path / "p.failures.csv") in result.stderr
    assert Predictions.read(tmp_path / "p.csv").clips == ("spk01_003",)


def test_a_submission_stays_until_the_next_one_is_whole(submit, tmp_path, monkeypatch):
    from mertool import predict as stage

    submit(["spk01_003"])
    before = (tmp_path / "p.mer2024.csv").read_bytes()
    assert isinstance(submit(["no-such-clip"]).exception, MertoolError)

    def full(*_, **__):
        raise MertoolError("the disk is full")

    monkeypatch.setattr(stage, "score_blocks", full)
    assert isinstance(submit(["spk01_003", "spk02_014"]).exception, MertoolError)
    assert (tmp_path / "p.mer2024.csv").read_bytes() == before


@pytest.mark.parametrize("name", ["p.csv", "p.mer2024.csv", "p.failures.csv"])
@pytest.mark.parametrize("kind", ["candidates", "manifest", "media", "link to the bundle"])
def test_no_output_replaces_an_input(kind, name, bundle, demo_rows, write_manifest, invoke, tmp_path):
    rows = [demo_rows["spk01_003"]]
    candidates, manifest = tmp_path / "candidates.csv", tmp_path / "m.csv"
    if kind == "media":
        shutil.copy(rows[0]["path"], tmp_path / name)
        rows = [{**rows[0], "path": str(tmp_path / name)}]
    elif kind == "link to the bundle":
        (tmp_path / name).symlink_to(bundle / "run.json")
    elif kind == "candidates":
        candidates = tmp_path / name
    else:
        manifest = tmp_path / name
    write_manifest(manifest, rows)
    candidates.write_text("name\nspk01_003\n")
    before = (tmp_path / name).read_bytes()
    given = ["--submission", "mer2024", "--candidates", candidates]
    result = invoke("predict", bundle, manifest, "-o", tmp_path / "p.csv", *given)
    assert "an input of this command" in str(result.exception) or "a run that this command" in str(result.exception)
    assert (tmp_path / name).read_bytes() == before


def test_nothing_is_written_into_the_bundle(bundle, clips, invoke):
    result = invoke("predict", bundle, clips, "-o", bundle / "p.csv")
    assert "a run that this command reads. Choose another output path" in str(result.exception)
    assert not (bundle / "p.csv.features").exists()


@pytest.mark.parametrize(
    ("candidates", "words"),
    [
        (["spk01_003", "spk02_014", "spk07_006", "a", "b"], "candidates that are not in"),
        (["spk01_003", "spk01_003", "spk02_014", "spk07_006"], "names that are listed more than once: 1 (spk01_003)"),
        ([], "names no clip"),
    ],
)
def test_names_that_do_not_agree_are_refused_before_the_work(candidates, words, submit, tmp_path):
    result = submit(candidates)
    assert isinstance(result.exception, MertoolError)
    assert words in str(result.exception)
    assert not (tmp_path / "p.csv").exists()
    assert not (tmp_path / "p.csv.features").exists()


def test_classes_that_no_challenge_has(make_bundle, text_store, invoke, workspace, tmp_path):
    bundle = make_bundle(tmp_path / "run", [text_store], classes=("neutral", "bored"))
    (tmp_path / "c.csv").write_text("name\nx\n")
    given = ["--submission", "mer2024", "--candidates", tmp_path / "c.csv"]
    result = invoke("predict", bundle, workspace.manifest, "-o", tmp_path / "p.csv", *given)
    assert "the bundle's classes bored are none of the challenge's (neutral, angry" in str(result.exception)


@pytest.mark.parametrize("given", [["--submission", "mer2024"], ["--candidates", "c.csv"]])
def test_a_submission_needs_its_candidates(given, bundle, clips, invoke, tmp_path):
    result = invoke("predict", bundle, clips, "-o", tmp_path / "p.csv", *given)
    assert "give --submission mer2024 --candidates CSV" in str(result.exception)


def test_predictions_of_another_form_are_refused(bundle, clips, invoke, tmp_path):
    result = invoke("predict", bundle, clips, "-o", tmp_path / "p.txt")
    assert "give a name that ends in .csv or .jsonl" in str(result.exception)


def test_an_unknown_submission(bundle, clips, invoke, tmp_path):
    result = invoke("predict", bundle, clips, "-o", tmp_path / "p.csv", "--submission", "mer2042", "--candidates", "c")
    assert "unknown submission 'mer2042': did you mean 'mer2026'?" in str(result.exception)
