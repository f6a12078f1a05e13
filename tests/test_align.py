"""`mertool align`: training a visual encoder into the acoustic space."""

import json
import shutil

import numpy as np
import pytest

from mertool.errors import MertoolError
from mertool.store import FeatureStore

SMALL = ["--width", 8, "--epochs"]
OPTIONS = ["--width", 32, "--blocks", 1, "--learning-rate", 2e-3, "--epochs", 80, "--patience", 30]


@pytest.fixture(scope="module")
def paired(tmp_path_factory, make_store):
    """Sixty clips whose frames and audio share a hidden cause, five with only audio and five with only frames."""
    folder, rng = tmp_path_factory.mktemp("paired"), np.random.default_rng(0)
    to_audio, to_video = rng.normal(0, 1, (4, 2, 10)), rng.normal(0, 1, (4, 8))
    audio_values, video_values = {}, {}
    for number in range(70):
        cause = rng.normal(0, 1, 4)
        if number < 65:
            audio_values[f"c{number}"] = (np.einsum("k,kld->ld", cause, to_audio)).astype(np.float32)
        if number < 60 or number >= 65:
            frames = cause @ to_video + 0.1 * rng.normal(0, 1, (rng.integers(2, 7), 8))
            video_values[f"c{number}"] = frames.astype(np.float32)
    audio = make_store(folder / "audio.h5", "audio", audio_values)
    return audio, make_store(folder / "frames.h5", "frames", video_values, {"c64": "no_face"})


@pytest.fixture(scope="module")
def aligned(paired, invoke, tmp_path_factory):
    """The run, the aligned store and the JSON object of the command."""
    folder = tmp_path_factory.mktemp("align")
    arguments = ["-o", folder / "run", "--aligned", folder / "aligned.h5", *OPTIONS, "--json"]
    result = invoke("align", "--audio", paired[0], "--video", paired[1], *arguments)
    assert result.exit_code == 0, result.exception
    return folder / "run", folder / "aligned.h5", json.loads(result.stdout)


def test_retrieval_beats_chance_if_audio_and_video_share_a_cause(aligned):
    held_out = aligned[2]["held_out"]
    assert held_out["clips"] == 12
    for direction in ("video_to_audio", "audio_to_video"):
        assert held_out[direction]["recall@5"]["value"] > held_out["chance"]["recall@5"] + 0.2
        assert held_out[direction]["median_rank"] < 5
    assert held_out["cka"]["value"] > held_out["cka"]["shuffled"] + 0.1
    assert held_out["chance"]["recall@1"] == pytest.approx(1 / 12)


def test_the_order_of_the_stores_changes_no_score(aligned, paired, make_store, invoke, tmp_path):
    with FeatureStore(paired[0]) as audio, FeatureStore(paired[1]) as video:
        reversed_audio = {clip: audio.read([clip])[0] for clip in reversed(audio.ids)}
        reversed_video = {clip: video.frames(clip) for clip in reversed(video.ids)}
    stores = (
        make_store(tmp_path / "a.h5", "audio", reversed_audio),
        make_store(tmp_path / "v.h5", "frames", reversed_video),
    )
    arguments = ["-o", tmp_path / "run", "--aligned", tmp_path / "aligned.h5", *OPTIONS, "--json"]
    result = json.loads(invoke("align", "--audio", stores[0], "--video", stores[1], *arguments).stdout)
    facts, expected = (json.loads((run / "run.json").read_text()) for run in (tmp_path / "run", aligned[0]))
    assert facts["held_out_clips"] == expected["held_out_clips"]
    np.testing.assert_allclose(result["development_loss"], aligned[2]["development_loss"], rtol=1e-4)
    assert result["held_out"]["video_to_audio"] == aligned[2]["held_out"]["video_to_audio"]


def test_a_clip_whose_vector_is_not_finite_is_recorded(paired, make_store, call, tmp_path):
    """Frames that no audio belongs to train nothing, and may be of any size."""
    with FeatureStore(paired[1]) as video:
        frames = {clip: video.frames(clip) for clip in video.ids}
    frames["huge"] = np.full_like(frames["c1"], 3e38)
    video_path = make_store(tmp_path / "v.h5", "frames", frames)
    arguments = ["-o", tmp_path / "run", "--aligned", tmp_path / "aligned.h5", *OPTIONS, "--epochs", 1, "-q"]
    call("align", "--audio", paired[0], "--video", video_path, *arguments)
    with FeatureStore(tmp_path / "aligned.h5") as store:
        assert [(failure.clip, failure.reason) for failure in store.failures()] == [("huge", "not_finite")]
        assert (len(store), store.validate()) == (len(frames) - 1, [])


def test_held_out_clips_are_recorded_and_not_used_in_training(aligned):
    facts = json.loads((aligned[0] / "run.json").read_text())
    assert len(facts["held_out_clips"]) == 12
    assert len(facts["development_clips"]) == aligned[2]["development_clips"] == 8
    assert not set(facts["held_out_clips"]) & set(facts["development_clips"])
    assert aligned[2]["train_clips"] == 40


def test_training_stops_by_the_development_loss(aligned):
    losses = aligned[2]["development_loss"]
    assert aligned[2]["best_epoch"] == np.argmin(losses) + 1
    assert len(losses) == min(80, aligned[2]["best_epoch"] + 30)


def test_every_clip_with_frames_gets_an_aligned_vector(aligned, paired):
    with FeatureStore(aligned[1]) as store, FeatureStore(paired[1]) as frames:
        assert store.ids == frames.ids
        assert store.read(store.ids).shape == (65, 1, 10)
        assert [failure.clip for failure in store.failures()] == ["c64"]
        assert store.recipe.modality == "video"
        assert store.validate() == []


def test_a_second_run_is_reused_and_a_missing_store_is_written_again(aligned, paired, invoke):
    run, store, _ = aligned
    arguments = ["-o", run, "--aligned", store, *OPTIONS, "--json"]
    command = ["align", "--audio", paired[0], "--video", paired[1], *arguments]
    before = store.stat().st_mtime_ns
    assert (
        json.loads(invoke(*command, "--classes", "a,b", "--device", "cpu").stdout)["reused"] is True
    )  # neither changes a value
    assert store.stat().st_mtime_ns == before
    with FeatureStore(store) as aligned_store:
        values = aligned_store.read(aligned_store.ids)
    store.unlink()
    assert json.loads(invoke(*command).stdout)["reused"] is True
    with FeatureStore(store) as aligned_store:
        np.testing.assert_array_equal(aligned_store.read(aligned_store.ids), values)


def test_the_aligned_store_equals_extract_with_the_aligner(align_run, workspace, faces_store, call, tmp_path):
    # Without --encoder it is the one that the aligner was trained on.
    arguments = ["--faces", faces_store, "--fps", 1, "--aligner", align_run, "-q"]
    call("extract", "video", workspace.manifest, "-o", tmp_path / "v.h5", *arguments)
    with FeatureStore(workspace.store("aligned")) as a, FeatureStore(tmp_path / "v.h5") as b:
        assert a.fingerprint == b.fingerprint
        assert a.ids == b.ids
        x, y = a.read(a.ids), b.read(b.ids)
    np.testing.assert_allclose(x, y, rtol=2e-3, atol=1e-4)
    assert np.abs(x).max() > 1e-2


def test_run_holds_weights_metrics_and_plots(align_run):
    assert {"run.json", "metrics.json", "aligner.safetensors", "loss.png", "loss.svg"} | {
        "recall.png",
        "recall.svg",
    } == {file.name for file in align_run.iterdir()}


def test_an_aligner_of_other_video_settings_is_refused(align_run, workspace, tiny_encoders, invoke, tmp_path):
    arguments = ["--encoder", tiny_encoders["clip"], "--fps", 7, "--aligner", align_run]
    result = invoke("extract", "video", workspace.manifest, "-o", tmp_path / "v.h5", *arguments)
    assert isinstance(result.exception, MertoolError)
    assert "was trained on other video features" in str(result.exception)


def align(invoke, audio, video, tmp_path):
    result = invoke("align", "--audio", audio, "--video", video, "-o", tmp_path / "run", "--aligned", tmp_path / "a.h5")
    assert isinstance(result.exception, MertoolError), result.exception
    assert not (tmp_path / "run").exists()
    return str(result.exception)


def test_a_pooled_video_store_is_refused(invoke, paired, video_store, tmp_path):
    assert "frames are needed, from `extract video --pool none`" in align(invoke, paired[0], video_store, tmp_path)


def test_audio_and_video_stores_given_in_the_wrong_order(invoke, paired, tmp_path):
    assert "a pooled store of `extract audio` is needed" in align(invoke, paired[1], paired[0], tmp_path)


def test_too_few_clips_in_common(invoke, paired, make_store, tmp_path):
    other = make_store(tmp_path / "o.h5", "audio", {f"c{n}": np.ones((1, 3), np.float32) * n for n in range(5)})
    assert "have 5 clips in common, at least 8 are needed" in align(invoke, other, paired[1], tmp_path)


def test_aligned_may_not_name_an_input(invoke, paired, tmp_path):
    for name, path in zip(("audio.h5", "frames.h5"), paired, strict=True):
        shutil.copy(path, tmp_path / name)
    before = (tmp_path / "frames.h5").read_bytes()
    audio, frames = tmp_path / "audio.h5", tmp_path / "frames.h5"
    arguments = ["--audio", audio, "--video", frames, "--aligned", frames, "-o", tmp_path / "run", "--epochs", 1]
    result = invoke("align", *arguments)
    assert isinstance(result.exception, MertoolError)
    assert (tmp_path / "frames.h5").read_bytes() == before


def test_faults_of_both_stores_are_reported_together(invoke, paired, video_store, tmp_path):
    message = align(invoke, paired[1], video_store, tmp_path)
    assert "a pooled store of `extract audio` is needed" in message
    assert "frames are needed, from `extract video --pool none`" in message


def test_a_store_that_was_not_aligned_is_not_replaced(invoke, paired, video_store, tmp_path):
    arguments = ["--audio", paired[0], "--video", paired[1], "--aligned", video_store, "-o", tmp_path / "run"]
    result = invoke("align", *arguments, "--epochs", 1)
    assert "holds features that were not aligned: give another path" in str(result.exception)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--loss", "infonec"], "unknown loss 'infonec': did you mean 'infonce'? valid: "),
        (["--false-negatives", "some"], "valid: none, threshold, pseudo-class"),
        (["--loss", "mse", "--false-negatives", "threshold"], "--loss mse pushes no clips apart"),
        (["--width", 18], "--width 18: give a multiple of 4"),
        (["--learning-rate", 2], "give a number between 0 and 1"),
    ],
)
def test_wrong_options(arguments, words, invoke, paired, tmp_path):
    result = invoke("align", "--audio", paired[0], "--video", paired[1], "-o", tmp_path / "run", *arguments)
    assert words in str(result.exception)


@pytest.mark.parametrize(
    "arguments", [["--loss", "siglip", "--false-negatives", "pseudo-class"], ["--loss", "soft"], ["--loss", "cosine"]]
)
def test_other_losses(arguments, call, paired, tmp_path):
    options = ["--aligned", tmp_path / "a.h5", "--width", 8, "--epochs", 2, "--json", *arguments]
    output = json.loads(
        call("align", "--audio", paired[0], "--video", paired[1], "-o", tmp_path / "run", *options).stdout
    )
    assert np.isfinite(output["loss"]).all()
    assert output["false_negatives"]["kind"] == ("pseudo-class" if "siglip" in arguments else "none")


def test_labels_give_the_gain_of_a_linear_probe(workspace, acoustic_store, frames_store, call, tmp_path):
    arguments = ["--audio", acoustic_store, "--video", frames_store, "-m", workspace.manifest, *SMALL, 2]
    places = ["-o", tmp_path / "run", "--aligned", tmp_path / "a.h5"]
    text = call("align", *arguments, *places).stdout
    assert "linear probe" in text
    assert "gain: " in text
    probe = json.loads(call("align", *arguments, *places, "--json").stdout)["probe"]
    assert probe["clips"] == 23  # of the 24 labelled ones, one shows no face
    assert probe["interval"] == "speakers"
    assert probe["gain"]["low"] <= probe["gain"]["difference"] <= probe["gain"]["high"]


def test_features_of_the_probe_are_those_of_the_stores(
    workspace, acoustic_store, frames_store, call, tmp_path, monkeypatch
):
    import mertool.align

    probed = {}

    def record(unaligned, aligned, examples, **_):
        probed.update(unaligned=unaligned, aligned=aligned, clips=examples.clips)
        return {}

    monkeypatch.setattr(mertool.align, "probe_gain", record)
    arguments = ["--audio", acoustic_store, "--video", frames_store, "-m", workspace.manifest, *SMALL, 1]
    call("align", *arguments, "-o", tmp_path / "run", "--aligned", tmp_path / "a.h5", "-q", "--json")
    with FeatureStore(tmp_path / "a.h5") as store, FeatureStore(frames_store) as frames:
        np.testing.assert_allclose(probed["aligned"], store.read(probed["clips"])[:, 0], rtol=2e-3, atol=1e-3)
        for clip, value in zip(probed["clips"], probed["unaligned"], strict=True):
            np.testing.assert_allclose(value, frames.frames(clip).astype(np.float32).mean(0), rtol=1e-5, atol=1e-5)


def test_resume_of_a_killed_run_ends_as_an_undisturbed_one(call, paired, tmp_path, monkeypatch):
    from mertool.alignment import trainer
    from mertool.learning import checkpoint

    arguments = ["align", "--audio", paired[0], "--video", paired[1], *SMALL, 4, "--batch", 16, "-q"]
    call(*arguments, "-o", tmp_path / "whole", "--aligned", tmp_path / "w.h5")
    monkeypatch.setattr(checkpoint, "SAVE_SECONDS", 0.0)
    step, steps = trainer._training_step, []

    def dying(*arguments, **keywords):
        steps.append(1)
        if len(steps) == 6:
            raise KeyboardInterrupt
        return step(*arguments, **keywords)

    monkeypatch.setattr(trainer, "_training_step", dying)
    command = [*arguments, "-o", tmp_path / "killed", "--aligned", tmp_path / "k.h5"]
    with pytest.raises((KeyboardInterrupt, AssertionError)):
        call(*command)
    assert not (tmp_path / "killed").exists()
    assert len(list(tmp_path.glob(".killed.unfinished-*"))) == 1
    (tmp_path / ".killed.unfinished-of-other-options.safetensors").touch()
    call(*command)
    assert len(steps) == 6 + 7  # of twelve, five were done
    name = "aligner.safetensors"
    assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()
    assert (tmp_path / "whole" / "metrics.json").read_text() == (tmp_path / "killed" / "metrics.json").read_text()
    assert not list(tmp_path.glob(".*"))


@pytest.fixture(scope="module")
def labelled_stores(tmp_path_factory, make_store, write_manifest):
    """A function (video_shows_label, n_unlabelled): audio and frame stores of 120 labelled clips, and their manifest.

    Audio and video share a cause that says nothing of the label. The audio carries the label, too, the video only if
    asked for. What else a face looks like differs from clip to clip, so an aligner can tell the clips of its training.
    """

    def make(video_shows_label, n_unlabelled=0):
        folder, random = tmp_path_factory.mktemp("labelled"), np.random.default_rng(0)
        labels = np.arange(120 + n_unlabelled) % 3
        to_audio, to_video = random.normal(0, 1, (4, 10)), random.normal(0, 1, (4, 64))
        audio, video = {}, {}
        for number, label in enumerate(labels):
            cause = random.normal(0, 1, 4)
            heard = 2 * np.eye(3, 10)[label] + cause @ to_audio + random.normal(0, 0.3, (1, 10))
            seen = cause @ to_video + random.normal(0, 1, 64) + random.normal(0, 0.3, (4, 64))
            audio[f"c{number:03d}"] = heard.astype(np.float32)
            video[f"c{number:03d}"] = (seen + 4 * video_shows_label * np.eye(3, 64)[label]).astype(np.float32)
        rows = [
            {"clip": f"c{n:03d}", "path": "x", "speaker": f"s{n // 20}", "label": ("neutral", "angry", "happy")[label]}
            for n, label in enumerate(labels[:120])
        ]
        manifest = write_manifest(folder / "clips.csv", rows)
        return make_store(folder / "a.h5", "audio", audio), make_store(folder / "v.h5", "frames", video), manifest

    return make


def run_align(call, stores, folder, *arguments):
    """Return the JSON object of the command, and what the run says of itself."""
    audio, video, manifest = stores
    places = ["-o", folder / "run", "--aligned", folder / "aligned.h5", "--classes", "neutral,angry,happy", "--json"]
    given = ["--audio", audio, "--video", video, "-m", manifest, *OPTIONS, *places, *arguments]
    return json.loads(call("align", *given).stdout), json.loads((folder / "run" / "run.json").read_text())


def probe_score(features, labels, speakers):
    """Accuracy of scikit-learn's logistic regression, each speaker held out once."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import LeaveOneGroupOut, cross_val_predict

    guesses = cross_val_predict(LogisticRegression(), features, labels, groups=speakers, cv=LeaveOneGroupOut())
    return np.mean(guesses == labels)


def test_video_that_shows_nothing_gains_nothing(labelled_stores, call, tmp_path):
    result, info = run_align(call, labelled_stores(video_shows_label=False), tmp_path)
    with FeatureStore(tmp_path / "aligned.h5") as aligned:
        stored = aligned.read([f"c{n:03d}" for n in range(120)])[:, 0]
    assert probe_score(stored, np.arange(120) % 3, np.arange(120) // 20) < 0.43
    assert result["probe"]["aligned"]["accuracy"]["value"] < 0.43
    assert result["probe"]["gain"]["p"] > 0.05
    assert len(info["aligner_of_clip"]) == 120


def test_each_labelled_clip_is_encoded_by_an_aligner_that_did_not_see_its_fold(labelled_stores, call, tmp_path):
    import torch

    from mertool.encoders.aligner import CrossFittedAligner

    stores = labelled_stores(video_shows_label=True)
    result, info = run_align(call, stores, tmp_path)
    # What the video shows of the label is kept.
    assert result["probe"]["aligned"]["accuracy"]["value"] > 0.6
    names = info["aligner_of_clip"]
    assert result["probe"]["aligners"] == len(set(names.values())) == 5
    for speaker in range(6):  # folds keep speakers apart
        assert len({names[f"c{n:03d}"] for n in range(20 * speaker, 20 * speaker + 20)}) == 1
    aligners = CrossFittedAligner.load(tmp_path / "run", torch.device("cpu"))
    with FeatureStore(tmp_path / "aligned.h5") as aligned, FeatureStore(stores[1]) as frames:
        for clip in ("c000", "c025", "c119"):
            values = torch.from_numpy(frames.frames(clip).astype(np.float32))[None]
            expected = aligners.folds[names[clip]].encode_clip(values)
            np.testing.assert_allclose(aligned.read([clip])[0], expected.numpy(), rtol=2e-3, atol=1e-3)


def test_labelled_clips_train_nothing_where_enough_others_are_left(labelled_stores, call, tmp_path):
    stores = labelled_stores(video_shows_label=False, n_unlabelled=130)
    result, info = run_align(call, stores, tmp_path)
    labelled = {f"c{n:03d}" for n in range(120)}
    assert info["aligner_of_clip"] == {}
    assert set(info["held_out_clips"]) == labelled
    assert result["train_clips"] + result["development_clips"] == 130
    assert result["held_out"]["clips"] == 120
    assert result["held_out"]["interval"] == "speakers"
    assert result["probe"]["gain"]["p"] > 0.05
    assert not (tmp_path / "run" / "folds").exists()


def test_a_killed_cross_fit_resumes_after_the_aligners_that_are_finished(labelled_stores, call, tmp_path, monkeypatch):
    from mertool.alignment import trainer

    stores = labelled_stores(video_shows_label=True)
    small = ["--width", 8, "--epochs", 2]
    run_align(call, stores, tmp_path, *small)
    step, steps = trainer._training_step, []

    def dying(*arguments, **keywords):
        steps.append(1)
        if len(steps) == 5:  # each of the six aligners takes four steps
            raise KeyboardInterrupt
        return step(*arguments, **keywords)

    monkeypatch.setattr(trainer, "_training_step", dying)
    killed = tmp_path / "killed"
    with pytest.raises((KeyboardInterrupt, AssertionError)):
        run_align(call, stores, killed, *small)
    run_align(call, stores, killed, *small)
    assert len(steps) == 5 + 24 - 4  # the first aligner was finished
    for name in ("aligner.safetensors", "folds/fold0.safetensors", "folds/fold4.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (killed / "run" / name).read_bytes()


def test_a_run_without_one_of_its_aligners_is_refused(labelled_stores, call, tmp_path):
    import torch

    from mertool.encoders.aligner import CrossFittedAligner

    run_align(call, labelled_stores(video_shows_label=True), tmp_path, "--width", 8, "--epochs", 1)
    (tmp_path / "run" / "folds" / "fold2.safetensors").unlink()
    with pytest.raises(MertoolError, match=r"lacks aligners that .* names: run `mertool align` again"):
        CrossFittedAligner.load(tmp_path / "run", torch.device("cpu"))


def test_fuse_says_which_labelled_clips_trained_the_aligner(labelled_stores, call, invoke, tmp_path):
    audio, video, manifest = labelled_stores(video_shows_label=True)
    places = ["-o", tmp_path / "run", "--aligned", tmp_path / "aligned.h5", "--width", 8, "--epochs", 1]
    fuse = ["fuse", audio, tmp_path / "aligned.h5", "-m", manifest, "-o", tmp_path / "fusion", "--epochs", 1]
    fuse += ["--classes", "neutral,angry,happy", "--seeds", 1, "--overwrite"]
    call("align", "--audio", audio, "--video", video, *places)
    told = invoke(*fuse)
    held_out = json.loads((tmp_path / "run" / "run.json").read_text())["held_out_clips"]
    assert f"the aligner was trained on {120 - len(held_out)} labelled clips" in told.stderr, told.exception
    call(
        "align",
        "--audio",
        audio,
        "--video",
        video,
        "-m",
        manifest,
        *places,
        "--classes",
        "neutral,angry,happy",
        "--overwrite",
    )
    again = invoke(*fuse)
    assert again.exit_code == 0, again.exception
    assert "the aligner was trained on" not in again.stderr
