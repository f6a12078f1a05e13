"""`mertool evaluate`: scores of predictions files."""

import json

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, f1_score

from mertool.errors import MertoolError

CLASSES = ("neutral", "angry", "happy", "sad", "worried", "surprise")


def write_predictions(path, clips, guesses, classes=CLASSES):
    lines = ["clip,label," + ",".join(f"p_{name}" for name in classes) + ",modalities"]
    for clip, guess in zip(clips, guesses, strict=True):
        scores = ["0.5" if number == guess else f"{0.5 / (len(classes) - 1):.4f}" for number in range(len(classes))]
        lines.append(f"{clip},{classes[guess]},{','.join(scores)},audio+text")
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def truth(tmp_path, write_manifest):
    """Eighty clips with labels, five without."""
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 6, 80)
    rows = [
        {"clip": f"c{n}", "path": "x.mp4", "label": CLASSES[label], "split": "test"} for n, label in enumerate(labels)
    ]
    rows += [{"clip": f"u{n}", "path": "x.mp4", "split": "unlabelled"} for n in range(5)]
    return write_manifest(tmp_path / "truth.csv", rows), labels


def guesses(labels, share, seed):
    rng = np.random.default_rng(seed)
    return np.where(rng.random(len(labels)) < share, labels, rng.integers(0, 6, len(labels)))


def evaluate(invoke, *args):
    result = invoke("evaluate", *args, "--json")
    assert result.exit_code == 0, result.exception
    return json.loads(result.stdout)


def test_scores_are_scikit_learns(invoke, truth, tmp_path):
    manifest, labels = truth
    guess = guesses(labels, 0.5, 1)
    clips = [f"c{n}" for n in range(80)]
    order = np.random.default_rng(0).permutation(80)  # files need not be in one order
    path = write_predictions(tmp_path / "p.csv", [clips[n] for n in order], guess[order])
    found = evaluate(invoke, path, "-l", manifest)
    system = found["systems"][0]
    assert found["clips"] == 80
    assert system["waf"]["value"] == pytest.approx(f1_score(labels, guess, average="weighted"))
    assert system["accuracy"]["value"] == pytest.approx(accuracy_score(labels, guess))
    assert system["uar"]["value"] == pytest.approx(balanced_accuracy_score(labels, guess))
    assert system["macro_f1"]["value"] == pytest.approx(f1_score(labels, guess, average="macro"))
    assert system["confusion"] == confusion_matrix(labels, guess, labels=range(6)).tolist()
    f1 = f1_score(labels, guess, average=None, labels=range(6))
    assert [row["f1"] for row in system["per_class"]] == pytest.approx(list(f1))
    assert system["waf"]["low"] < system["waf"]["value"] < system["waf"]["high"]


def test_the_order_of_the_predictions_changes_no_score(invoke, truth, reorder_rows, write_manifest, tmp_path):
    rows = [{"clip": f"c{n}", "path": "x.mp4", "label": CLASSES[n % 6], "speaker": f"s{n % 7}"} for n in range(80)]
    manifest = write_manifest(tmp_path / "speakers.csv", rows)
    guess = guesses(np.arange(80) % 6, 0.5, 1)
    path = write_predictions(tmp_path / "p.csv", [f"c{n}" for n in range(80)], guess)
    first = evaluate(invoke, path, "-l", manifest)["systems"][0]
    for order in ("reversed", "shuffled"):
        other = reorder_rows(path, tmp_path / f"{order}.csv", order)
        labels = reorder_rows(manifest, tmp_path / f"labels-{order}.csv", order)
        assert evaluate(invoke, other, "-l", labels)["systems"][0] | {"predictions": str(path)} == first


def test_two_files_are_compared_in_pairs(invoke, truth, tmp_path):
    manifest, labels = truth
    clips = [f"c{n}" for n in range(80)]
    worse, better = guesses(labels, 0.2, 1), guesses(labels, 0.9, 2)
    paths = [write_predictions(tmp_path / f"{n}.csv", clips, g) for n, g in enumerate((worse, better))]
    found = evaluate(invoke, *paths, "-l", manifest)
    gain, exact = found["paired"]["waf"], found["paired"]["mcnemar"]
    scores = [f1_score(labels, g, average="weighted") for g in (worse, better)]
    assert gain["difference"] == pytest.approx(scores[1] - scores[0])
    assert 0 < gain["low"] < gain["difference"] < gain["high"]
    assert gain["p"] < 0.01
    assert exact["only_second"] == np.sum((better == labels) & (worse != labels))
    assert exact["only_first"] == np.sum((better != labels) & (worse == labels))


NO_GAIN = {"difference": 0.0, "low": 0.0, "high": 0.0, "p": 1.0}


def test_a_file_against_itself_has_no_gain(invoke, truth, tmp_path):
    manifest, labels = truth
    path = write_predictions(tmp_path / "p.csv", [f"c{n}" for n in range(80)], guesses(labels, 0.5, 1))
    paired = evaluate(invoke, path, path, "-l", manifest)["paired"]
    assert {name: paired["waf"][name] for name in ("difference", "low", "high", "p")} == NO_GAIN
    assert paired["mcnemar"] == {"only_first": 0.0, "only_second": 0.0, "p": 1.0}


def test_two_files_are_scored_on_the_clips_of_both(invoke, truth, tmp_path):
    manifest, labels = truth
    first = write_predictions(tmp_path / "a.csv", [f"c{n}" for n in range(60)], labels[:60])
    second = write_predictions(tmp_path / "b.csv", [f"c{n}" for n in range(40, 80)], labels[40:])
    assert evaluate(invoke, first, second, "-l", manifest)["clips"] == 20


def test_labelled_clips_without_a_prediction_are_counted(invoke, truth, tmp_path):
    manifest, labels = truth
    path = write_predictions(tmp_path / "p.csv", [*(f"c{n}" for n in range(70)), "u1", "other"], [*labels[:70], 0, 0])
    found = evaluate(invoke, path, "-l", manifest)
    assert (found["clips"], found["labelled_without_prediction"]) == (70, 10)
    assert found["systems"][0]["waf"]["value"] == 1.0


def test_no_clip_in_common(invoke, truth, tmp_path):
    path = write_predictions(tmp_path / "p.csv", ["other"], [0])
    result = invoke("evaluate", path, "-l", truth[0])
    assert isinstance(result.exception, MertoolError)
    assert "none of the 80 labelled clips" in str(result.exception)


@pytest.mark.parametrize(
    ("name", "text", "encoding"),
    [
        ("l.csv", "name,discrete\nc0.mp4,高兴\nc1,sad\nother,sad\n", "gbk"),
        ("l.csv", "file;emotion;speaker\n/data/x/c0.wav;happiness;s1\nx\\c1.wav;sadness;s2\nz.wav;sad;s3\n", "utf-8"),
        ("l.csv", "clip,path,label,valence\nc0,a.mp4,happy,1\nc1,b.mp4,sad,2\nc9,c.mp4,sad,2\n", "utf-8"),
        (
            "l.jsonl",
            '{"key":"c0","wav":"c0.wav","emo":"happy"}\n{"key":"c1","emo":"sad"}\n{"key":"z","emo":"sad"}\n',
            "utf-8",
        ),
    ],
)
def test_labels_of_the_forms_that_manifest_reads(name, text, encoding, invoke, tmp_path):
    path = write_predictions(tmp_path / "p.csv", ["c0", "c1", "c2"], [2, 2, 0])
    (tmp_path / name).write_bytes(text.encode(encoding))
    found = evaluate(invoke, path, "-l", tmp_path / name)
    assert (found["clips"], found["labelled_without_prediction"]) == (2, 1)
    assert found["systems"][0]["accuracy"]["value"] == 0.5


def test_labels_of_no_predicted_clip(invoke, tmp_path):
    path = write_predictions(tmp_path / "p.csv", ["c0"], [2])
    (tmp_path / "l.csv").write_text("name,label\nother,sad\n")
    result = invoke("evaluate", path, "-l", tmp_path / "l.csv")
    assert isinstance(result.exception, MertoolError)
    assert "names 1 clip, none of which is in" in str(result.exception)


def test_a_manifest_without_labels(invoke, truth, write_manifest, tmp_path):
    path = write_predictions(tmp_path / "p.csv", ["c0"], [0])
    rows = [{"clip": "c0", "path": "x.mp4"}]
    result = invoke("evaluate", path, "-l", write_manifest(tmp_path / "none.csv", rows))
    assert "has no labels: build it with `mertool manifest FOLDER --labels CSV`" in str(result.exception)


def test_files_of_other_classes(invoke, truth, tmp_path):
    first = write_predictions(tmp_path / "a.csv", ["c0"], [0])
    second = write_predictions(tmp_path / "b.csv", ["c0"], [0], CLASSES[:4])
    result = invoke("evaluate", first, second, "-l", truth[0])
    assert isinstance(result.exception, MertoolError)
    assert "predict different classes" in str(result.exception)


def test_the_files_it_writes(invoke, truth, tmp_path):
    manifest, labels = truth
    path = write_predictions(tmp_path / "p.csv", [f"c{n}" for n in range(80)], labels)
    result = invoke("evaluate", path, "-l", manifest, "-o", tmp_path / "out" / "metrics.json")
    assert result.exit_code == 0
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["clips"] == 80
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        "metrics.json",
        "metrics-confusion.png",
        "metrics-confusion.svg",
        "metrics-reliability.png",
        "metrics-reliability.svg",
    }
    assert "100.0 [95.3, 100.0]" in result.stdout
    assert "as worried" in result.stdout


def test_aliases_of_labels_are_known(invoke, tmp_path, write_manifest):
    rows = [{"clip": "a", "path": "x.mp4", "label": "Anger"}, {"clip": "b", "path": "x.mp4", "label": "sadness"}]
    manifest = write_manifest(tmp_path / "m.csv", rows)
    path = write_predictions(tmp_path / "p.csv", ["a", "b"], [1, 3])
    assert evaluate(invoke, path, "-l", manifest)["systems"][0]["accuracy"]["value"] == 1.0


def test_the_calibration_error_is_of_the_probabilities(invoke, truth, tmp_path):
    """All guesses are made at 0.5; three in four are right, so the error is a quarter."""
    manifest, labels = truth
    guess = np.where(np.arange(80) % 4 == 0, (labels + 1) % 6, labels)
    path = write_predictions(tmp_path / "p.csv", [f"c{n}" for n in range(80)], guess)
    found = evaluate(invoke, path, "-l", manifest)["systems"][0]["calibration"]
    assert found["ece"] == pytest.approx(0.25)
    assert [row["clips"] for row in found["bins"] if row["clips"]] == [80]


def test_intervals_are_over_speakers_where_all_are_known(invoke, tmp_path, write_manifest):
    """Clips of one speaker are all right or all wrong: the interval over clips would be far too narrow."""
    labels = np.random.default_rng(0).integers(0, 6, 120)
    rows = [{"clip": f"c{n}", "path": "x", "label": CLASSES[label]} for n, label in enumerate(labels)]
    guess = np.where(np.arange(120) // 20 % 2, labels, (labels + 1) % 6)
    path = write_predictions(tmp_path / "p.csv", [row["clip"] for row in rows], guess)
    widths = {}
    for name, chosen in {
        "clips": rows,
        "speakers": [{**r, "speaker": f"s{n // 20}"} for n, r in enumerate(rows)],
    }.items():
        found = evaluate(invoke, path, "-l", write_manifest(tmp_path / f"{name}.csv", chosen))
        assert found["intervals"] == name
        widths[name] = found["systems"][0]["accuracy"]["high"] - found["systems"][0]["accuracy"]["low"]
    assert widths["speakers"] > 2 * widths["clips"]


@pytest.mark.parametrize("n_speakers", [2, 6])
def test_two_systems_are_compared_over_speakers(n_speakers, invoke, tmp_path, write_manifest):
    """McNemar's test is left out, because it takes clips to be independent; two speakers give no interval."""
    labels = np.random.default_rng(0).integers(0, 6, 120)
    rows = [
        {"clip": f"c{n}", "path": "x", "label": CLASSES[label], "speaker": f"s{n % n_speakers}"}
        for n, label in enumerate(labels)
    ]
    clips = [row["clip"] for row in rows]
    paths = [
        write_predictions(tmp_path / f"{share}.csv", clips, guesses(labels, share, number))
        for number, share in enumerate((0.2, 0.9))
    ]
    manifest = write_manifest(tmp_path / "clips.csv", rows)
    paired = evaluate(invoke, *paths, "-l", manifest)["paired"]
    assert set(paired) == {"waf"}
    assert (paired["waf"]["unit"], paired["waf"]["units"]) == ("speakers", n_speakers)
    assert paired["waf"]["p"] == pytest.approx(0.5 if n_speakers == 2 else 1 / 2**6)
    assert (paired["waf"]["low"] is None) == (n_speakers == 2)
    told = invoke("evaluate", *paths, "-l", manifest).stdout
    assert f"sign-flip test over {n_speakers} speakers" in told
    assert ("no intervals: they need 5 speakers or more" in told) == (n_speakers == 2)


def test_speakers_of_some_clips_are_no_units(invoke, truth, tmp_path, write_manifest):
    """Clips are not independent either, if some are of one speaker, so McNemar's test is left out."""
    _, labels = truth
    clips = [f"c{n}" for n in range(80)]
    rows = [
        {"clip": clip, "path": "x", "label": CLASSES[labels[n]], "speaker": f"s{n % 8}" if n < 50 else ""}
        for n, clip in enumerate(clips)
    ]
    manifest = write_manifest(tmp_path / "some.csv", rows)
    paths = [write_predictions(tmp_path / f"{n}.csv", clips, guesses(labels, 0.5, n)) for n in range(2)]
    found = evaluate(invoke, *paths, "-l", manifest)
    assert found["intervals"] == found["paired"]["waf"]["unit"] == "clips"
    assert "mcnemar" not in found["paired"]
    told = "names the speakers of only 50 of the 80 scored clips, so intervals and tests are over clips"
    assert told in invoke("evaluate", *paths, "-l", manifest).stderr


@pytest.mark.parametrize("form", ["name,discrete", "file;emotion", "npz"])
def test_labels_are_what_manifest_takes(form, invoke, truth, tmp_path):
    manifest, labels = truth
    guess = guesses(labels, 0.5, 1)
    predictions = write_predictions(tmp_path / "p.csv", [f"c{n}" for n in range(70)], guess[:70])
    if form == "npz":
        table = tmp_path / "label-6way.npz"
        corpus = {f"c{n}": {"emo": CLASSES[label], "val": -10} for n, label in enumerate(labels)}
        np.savez_compressed(table, train_corpus=np.array(corpus, dtype=object))
    else:
        delimiter = ";" if ";" in form else ","
        names = "x/c{}.wav" if "file" in form else "c{}"
        rows = [names.format(n) + delimiter + CLASSES[label] for n, label in enumerate(labels)]
        table = tmp_path / "labels.csv"
        table.write_text("\n".join([form, *rows]) + "\n")
    found = evaluate(invoke, predictions, "-l", table)
    assert found["systems"][0]["waf"] == evaluate(invoke, predictions, "-l", manifest)["systems"][0]["waf"]
    assert (found["clips"], found["labelled_without_prediction"]) == (70, 10)


def test_labels_that_are_numbers_need_their_classes(invoke, truth, tmp_path):
    _, labels = truth
    predictions = write_predictions(tmp_path / "p.csv", [f"c{n}" for n in range(80)], labels)
    table = tmp_path / "numbers.csv"
    # Another order of the same classes.
    table.write_text("name,label\n" + "".join(f"c{n},{5 - label}\n" for n, label in enumerate(labels)))
    assert "these are numbers" in str(invoke("evaluate", predictions, "-l", table).exception)
    found = evaluate(invoke, predictions, "-l", table, "--classes", ",".join(CLASSES[::-1]))
    assert found["systems"][0]["accuracy"]["value"] == 1.0


def test_two_files_have_pictures_of_their_own(invoke, truth, tmp_path, monkeypatch):
    from mertool import plots

    monkeypatch.setitem(plots.plt.rcParams, "svg.fonttype", "none")
    manifest, labels = truth
    paths = []
    for folder, share in (("a", 0.2), ("b$x$", 0.9)):
        (tmp_path / folder).mkdir()
        clips = [f"c{n}" for n in range(80)]
        paths.append(write_predictions(tmp_path / folder / "p.csv", clips, guesses(labels, share, 1)))
    result = invoke("evaluate", *paths, "-l", manifest, "-o", tmp_path / "m.json")
    assert result.exit_code == 0, result.exception
    drawn = json.loads((tmp_path / "m.json").read_text())["plots"]
    assert len(drawn) == 4
    for number, name in enumerate(("a/p.csv", "b$x$/p.csv"), start=1):
        for kind in ("confusion", "reliability"):
            assert str(tmp_path / f"m-{kind}-{number}.png") in drawn
            assert name in (tmp_path / f"m-{kind}-{number}.svg").read_text(encoding="utf-8")


def test_what_is_done_with_absent_classes_is_told(invoke, tmp_path, write_manifest):
    labels, guess = [0, 0, 1, 1], [0, 2, 1, 1]
    rows = [{"clip": f"c{n}", "path": "x", "label": CLASSES[label]} for n, label in enumerate(labels)]
    manifest = write_manifest(tmp_path / "m.csv", rows)
    path = write_predictions(tmp_path / "p.csv", [row["clip"] for row in rows], guess)
    (system,) = evaluate(invoke, path, "-l", manifest)["systems"]
    assert system["macro_f1"]["value"] == pytest.approx(f1_score(labels, guess, average="macro"))
    assert system["averaged_classes"]["uar"] == ["neutral", "angry"]
    assert system["averaged_classes"]["macro_f1"] == ["neutral", "angry", "happy"]
    assert system["per_class"][2]["recall"] is None
    printed = " ".join(invoke("evaluate", path, "-l", manifest).stdout.split())
    assert "macro F1 is over the 3 classes in truth or prediction, UAR over the 2 with clips" in printed


# ---------------------------------------------------------------- without a modality, in noise


@pytest.fixture(scope="module")
def robust(
    make_bundle, audio_store, frames_store, text_store, workspace, demo_rows, write_manifest, call, tmp_path_factory
):
    """A bundle over audio, frames and text, its predictions of eight clips, and their manifest."""
    folder = tmp_path_factory.mktemp("robust")
    names = ["spk01_001", "spk01_012", "spk01_014", "spk02_003", "spk03_002", "spk03_006", "spk04_011", "spk05_005"]
    manifest = write_manifest(folder / "clips.csv", [demo_rows[name] for name in names])
    bundle = make_bundle(folder / "run", [audio_store, frames_store, text_store])
    call("predict", bundle, manifest, "-o", folder / "p.csv", "-q")
    return bundle, folder / "p.csv", manifest


def test_without_a_modality(robust, invoke, tmp_path, monkeypatch):
    from mertool.extraction.clip_encoder import EncoderAssets
    from mertool.predictions import Predictions, feature_cache_folder
    from mertool.store import FeatureStore

    bundle, path, manifest = robust
    monkeypatch.setattr(EncoderAssets, "load", lambda *_: pytest.fail("an encoder was loaded"))
    given = ["--bundle", bundle, "--missing", "audio", "--missing", "text", "-o", tmp_path / "m.json"]
    found = evaluate(invoke, path, "-l", manifest, *given)["robustness"]
    assert [(row["condition"], row["clips"]) for row in found] == [
        ("as is", 8),
        ("without audio", 8),
        ("without text", 8),
    ]
    assert found[0]["difference"]["difference"] == 0.0
    assert found[1]["difference"]["p"] <= found[1]["difference"]["p_holm"] <= 1
    # The guesses without audio are those of a bundle that is given none.
    import torch

    from mertool.bundle import Bundle
    from mertool.learning.cached_features import load_features

    opened, clips = Bundle.open(bundle), Predictions.read(path).clips
    stores = [FeatureStore(feature_cache_folder(path) / f"{part.name}.h5") for part in opened.feature_specs]
    features, present = load_features(stores, clips)
    features[0][:], present[:, 0] = 0, False
    logits = opened.logits([torch.from_numpy(values) for values in features], torch.from_numpy(present))
    truth = [label_of(manifest)[clip] for clip in clips]
    guess = [CLASSES[row] for row in logits.argmax(1)]
    assert found[1]["waf"]["value"] == pytest.approx(
        f1_score(truth, guess, average="weighted", labels=sorted(set(truth)))
    )
    assert (tmp_path / "m-robustness.png").exists()


def label_of(manifest):
    from mertool.manifest import Manifest

    return Manifest.read(manifest).known_labels(CLASSES)


def test_clips_with_nothing_left_are_not_guessed(
    make_bundle, audio_store, text_store, demo_rows, write_manifest, call, invoke, tmp_path
):
    rows = [demo_rows[name] for name in ("spk01_001", "spk02_003", "spk03_002")]
    manifest = write_manifest(tmp_path / "clips.csv", [*rows[:2], {**rows[2], "text": ""}])
    bundle = make_bundle(tmp_path / "run", [audio_store, text_store])
    call("predict", bundle, manifest, "-o", tmp_path / "p.csv", "-q")
    found = evaluate(invoke, tmp_path / "p.csv", "-l", manifest, "--bundle", bundle, "--missing", "audio")["robustness"]
    assert [row["clips"] for row in found] == [3, 2]


def test_in_noise(robust, invoke, tmp_path, monkeypatch):
    from mertool.extraction import worker
    from mertool.predictions import feature_cache_folder
    from mertool.store import FeatureStore

    bundle, path, manifest = robust
    given = [path, "-l", manifest, "--bundle", bundle, "--noise", "babble"]
    found = evaluate(invoke, *given)["robustness"]
    assert [row["condition"] for row in found] == ["as is", "noisy (babble)"]
    (noisy,) = feature_cache_folder(path).glob("noise-*")
    assert sorted(file.name for file in noisy.glob("*.h5")) == ["audio.h5", "video-frames.h5"]
    with FeatureStore(noisy / "audio.h5") as store, FeatureStore(feature_cache_folder(path) / "audio.h5") as clean:
        assert store.recipe.media["noise"]["snr"] == [5.0, 10.0]
        assert sorted(store.ids) == sorted(clean.ids)
        assert all(not np.allclose(store.read([clip]), clean.read([clip]), atol=1e-3) for clip in store.ids)
    # What was made is used again.
    monkeypatch.setattr(worker, "DecoderPool", lambda *_: pytest.fail("clips were read again"))
    assert evaluate(invoke, *given)["robustness"] == found


def test_bad_files_of_noise_are_named_before_the_work(robust, invoke, tmp_path, monkeypatch):
    import soundfile

    from mertool.bundle.robustness import RobustnessEvaluator

    bundle, path, manifest = robust
    monkeypatch.setattr(RobustnessEvaluator, "_score", lambda *_, **__: pytest.fail("clips were scored"))
    soundfile.write(tmp_path / "good.wav", np.random.default_rng(0).normal(0, 0.1, 16_000), 16_000)
    soundfile.write(tmp_path / "silent.wav", np.zeros(16_000), 16_000)
    (tmp_path / "broken.wav").write_bytes(b"RIFF no audio")
    result = invoke("evaluate", path, "-l", manifest, "--bundle", bundle, "--noise", tmp_path)
    assert isinstance(result.exception, MertoolError)
    assert "2 faults" in str(result.exception)
    assert "silent.wav: it is digital silence" in str(result.exception)
    assert "broken.wav" in str(result.exception)


def test_clips_that_noise_does_not_reach_are_counted_out(
    make_bundle, audio_store, text_store, demo_rows, write_manifest, call, invoke, tmp_path
):
    """One clip is digital silence with a text, another has no audio file at all."""
    import soundfile

    soundfile.write(tmp_path / "silence.wav", np.zeros(32_000), 16_000)
    rows = [demo_rows[name] for name in ("spk01_001", "spk02_003", "spk03_002")]
    rows.append({**rows[0], "clip": "silence", "path": tmp_path / "silence.wav", "text": "yes"})
    rows.append({**rows[0], "clip": "words", "path": "", "text": "no"})
    manifest = write_manifest(tmp_path / "clips.csv", rows)
    bundle = make_bundle(tmp_path / "run", [audio_store, text_store])
    call("predict", bundle, manifest, "-o", tmp_path / "p.csv", "-q")
    as_is, noisy = evaluate(invoke, tmp_path / "p.csv", "-l", manifest, "--bundle", bundle, "--noise", "babble")[
        "robustness"
    ]
    assert (as_is["clips"], noisy["clips"]) == (5, 3)
    assert noisy["not_scored"] == {
        "the audio is digital silence": ["silence"],
        "noise changes none of its features": ["words"],
    }


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--missing", "audio"], "give --bundle runs/fusion"),
        (["--bundle", "BUNDLE"], "--bundle is for --missing audio|video|text and --noise FOLDER"),
        (["--bundle", "BUNDLE", "--missing", "sound"], "unknown modality 'sound': valid: audio, video, text"),
        (["--bundle", "BUNDLE", "--noise", "nowhere"], "--noise nowhere is not a folder"),
        (["PREDICTIONS", "--bundle", "BUNDLE", "--missing", "audio"], "are of one predictions file"),
        (["--bundle", "runs/none", "--missing", "audio"], "runs/none is not a run"),
    ],
)
def test_what_robustness_needs(given, words, robust, invoke):
    bundle, path, manifest = robust
    names = {"BUNDLE": bundle, "PREDICTIONS": path}
    result = invoke("evaluate", path, *(names.get(word, word) for word in given), "-l", manifest)
    assert isinstance(result.exception, MertoolError)
    assert words in str(result.exception)
    assert len(str(result.exception).splitlines()) == 1


def test_predictions_of_another_bundle(robust, make_bundle, audio_store, frames_store, text_store, invoke, tmp_path):
    _, path, manifest = robust
    other = make_bundle(tmp_path / "other", [audio_store, frames_store, text_store], head="concat")
    result = invoke("evaluate", path, "-l", manifest, "--bundle", other, "--missing", "audio")
    assert "is not what" in str(result.exception)
    alone = make_bundle(tmp_path / "alone", [audio_store])
    result = invoke("evaluate", path, "-l", manifest, "--bundle", alone, "--missing", "audio")
    assert "uses nothing else, so nothing would be left" in str(result.exception)


# ---------------------------------------------------------------- numbers


@pytest.fixture
def sentiment(tmp_path, write_manifest):
    """Ninety clips of nine speakers, and the predictions of two systems, of which the second has less noise."""
    rng = np.random.default_rng(5)
    truth = np.round(rng.uniform(-3, 3, 90), 1)
    rows = [
        {"clip": f"c{n}", "path": "x.mp4", "speaker": f"s{n % 9}", "sentiment": str(value)}
        for n, value in enumerate(truth)
    ]
    systems = []
    for name, noise in (("worse", 1.5), ("better", 0.5)):
        values = truth + rng.normal(0, noise, 90)
        systems.append((tmp_path / f"{name}.csv", values))
        lines = [f"c{n},{value:.9g}" for n, value in enumerate(values)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["clip,sentiment", *lines]) + "\n")
    return write_manifest(tmp_path / "truth.csv", rows), truth, systems


def test_scores_of_numbers(invoke, sentiment, tmp_path):
    manifest, truth, systems = sentiment
    path, values = systems[0]
    found = evaluate(invoke, path, "-l", manifest, "-o", tmp_path / "m.json")
    system = found["systems"][0]
    assert (found["target"], found["classes"], found["intervals"], found["plots"]) == ("sentiment", [], "speakers", [])
    assert system["mae"]["value"] == pytest.approx(np.abs(truth - values).mean())
    assert system["pearson"]["value"] == pytest.approx(np.corrcoef(truth, values)[0, 1])
    assert system["acc2_with_zero"]["value"] == pytest.approx(accuracy_score(truth >= 0, values >= 0))
    assert all(system[name]["low"] < system[name]["value"] < system[name]["high"] for name in ("ccc", "mse", "acc7"))
    assert json.loads((tmp_path / "m.json").read_text())["systems"] == found["systems"]


def test_two_files_of_numbers_are_compared(invoke, sentiment):
    manifest, truth, systems = sentiment
    found = evaluate(invoke, *(path for path, _ in systems), "-l", manifest)
    errors = [np.abs(truth - values).mean() for _, values in systems]
    assert found["paired"]["mae"]["difference"] == pytest.approx(errors[1] - errors[0])
    assert found["paired"]["ccc"]["difference"] > 0
    assert found["paired"]["ccc"]["p"] < 0.05
    assert found["paired"]["ccc"]["p_holm"] >= found["paired"]["ccc"]["p"]
    assert (found["paired"]["mae"]["unit"], found["paired"]["mae"]["units"]) == ("speakers", 9)
    printed = invoke("evaluate", *(path for path, _ in systems), "-l", manifest).stdout
    for words in ("Acc-2 without zeros", "second minus first, CCC: +0.", "second minus first, MAE: -0.", "9 speakers"):
        assert words in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--target", "valence"], "holds predictions of sentiment, not of valence: give --target sentiment"),
        (
            ["--target", "sentiment", "--classes", "a,b"],
            "--classes is for classes: leave it out with --target sentiment",
        ),
        (["--bundle", "runs/x", "--noise", "babble"], "--missing and --noise are for classes"),
    ],
)
def test_options_that_numbers_do_not_have(options, message, invoke, sentiment):
    manifest, _, systems = sentiment
    result = invoke("evaluate", systems[0][0], "-l", manifest, *options)
    assert (result.exit_code, message in str(result.exception)) == (1, True)


def test_labels_without_the_numbers(invoke, sentiment, truth):
    result = invoke("evaluate", sentiment[2][0][0], "-l", truth[0])
    assert "has no numbers in a column sentiment" in str(result.exception)
