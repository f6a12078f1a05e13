"""`mertool fuse`: one classifier over any number of stores, and the bundle it leaves."""

import json
import shutil

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score

from mertool import registry
from mertool.errors import MertoolError
from mertool.manifest import EMOTIONS

QUICK = ["--folds", 3, "--seeds", 2, "--width", 16, "--epochs", 25, "--learning-rate", 0.01]


@pytest.fixture(scope="module")
def made(tmp_path_factory, make_store, write_manifest):
    """Ninety clips: `audio` tells classes 0 to 2 apart, `text` 3 to 5, `noise` none; some lack a modality."""
    folder, rng = tmp_path_factory.mktemp("made"), np.random.default_rng(0)
    labels = rng.integers(0, 6, 90)
    centres = 3 * rng.normal(0, 1, (6, 8))
    values = {name: rng.normal(0, 1, (90, 2, 8)).astype(np.float32) for name in ("audio", "text", "noise")}
    for number, label in enumerate(labels):
        values["audio" if label < 3 else "text"][number] += centres[label]
    absent = {"audio": {3, 4}, "text": {4, 5}, "noise": set()}
    stores = {}
    for name, x in values.items():
        there = {f"c{n}": x[n] for n in range(90) if n not in absent[name]}
        reasons = {f"c{n}": "no_audio" for n in absent[name]}
        stores[name] = make_store(folder / f"{name}.h5", "text" if name == "text" else "audio", there, reasons)
    rows = [
        {"clip": f"c{n}", "path": "x.mp4", "label": EMOTIONS[label], "speaker": f"s{n % 9}", "split": "train"}
        for n, label in enumerate(labels)
    ]
    return stores, write_manifest(folder / "clips.csv", rows)


def fuse(invoke, stores, manifest, run, *options):
    result = invoke("fuse", *stores, "-m", manifest, "-o", run, *QUICK, "--json", *options)
    assert result.exit_code == 0, (result.exception, result.stderr)
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def fused(made, invoke, tmp_path_factory):
    """The run of audio and text, and its JSON object."""
    run = tmp_path_factory.mktemp("fuse") / "run"
    return run, fuse(invoke, [made[0]["audio"], made[0]["text"]], made[1], run)


def test_fusion_beats_what_it_fuses(fused):
    scores = {name: score["accuracy"]["value"] for name, score in fused[1]["cross_validation"].items()}
    assert set(scores) == {"audio", "text", "fusion"}
    assert scores["fusion"] > max(scores["audio"], scores["text"]) + 0.1
    assert scores["fusion"] > 0.8


def test_clips_without_a_modality_stay(fused):
    counts = {name: score["clips"] for name, score in fused[1]["cross_validation"].items()}
    assert counts == {"audio": 88, "text": 88, "fusion": 89}  # one has neither
    assert fused[1]["clips"] == 90


def test_members_are_folds_times_seeds(fused):
    from mertool.runs import load_tensors

    assert fused[1]["members"] == 6
    assert {len(value) for value in load_tensors(fused[0] / "members-0.safetensors").values()} == {6}
    (group,) = json.loads((fused[0] / "run.json").read_text())["members"]
    assert (group["fold"], group["seed"]) == ([0, 0, 1, 1, 2, 2], [0, 1, 0, 1, 0, 1])


def test_the_files_of_the_run(fused):
    names = {file.name for file in fused[0].iterdir() if file.is_file()}
    assert names == {
        *("run.json", "metrics.json", "members-0.safetensors", "held_out.csv"),
        *("scores.png", "scores.svg", "confusion.png", "confusion.svg"),
    }


@pytest.mark.parametrize("order", ["reversed", "shuffled"])
def test_the_order_of_the_manifest_changes_no_score(order, fused, made, reorder_rows, invoke, tmp_path):
    manifest = reorder_rows(made[1], tmp_path / "clips.csv", order)
    fuse(invoke, [made[0]["audio"], made[0]["text"]], manifest, tmp_path / "run")
    for name in ("metrics.json", "held_out.csv", "members-0.safetensors", "scores.svg"):
        assert (tmp_path / "run" / name).read_bytes() == (fused[0] / name).read_bytes()


def test_a_class_of_one_speaker_is_named(made, write_manifest, invoke, tmp_path):
    rows = [{"clip": f"c{n}", "path": "x.mp4", "label": EMOTIONS[n % 3], "speaker": f"s{n % 9}"} for n in range(90)]
    rows[4]["label"] = rows[13]["label"] = "surprise"
    manifest = write_manifest(tmp_path / "clips.csv", rows)
    result = invoke("fuse", made[0]["audio"], "-m", manifest, "-o", tmp_path / "run", *QUICK, "-q")
    assert "note: surprise (2 clips of speaker s4 alone) is never in training when it is held out" in result.stderr
    (sentence,) = json.loads((tmp_path / "run" / "metrics.json").read_text())["rare_classes"]
    assert sentence.startswith("surprise (2 clips of speaker s4 alone)")


def test_noise_is_near_chance(made, invoke, tmp_path):
    result = fuse(invoke, [made[0]["noise"]], made[1], tmp_path / "run")
    assert set(result["cross_validation"]) == {"noise"}
    assert result["cross_validation"]["noise"]["accuracy"]["value"] < 0.35


def test_random_labels_are_near_chance(made, invoke, tmp_path):
    rows = made[1].read_text().splitlines()
    labels = [row.split(",")[2] for row in rows[1:]]
    shuffled = np.random.default_rng(5).permutation(labels)
    manifest = tmp_path / "m.csv"
    changed = [row.replace(f",{old},", f",{new},") for row, old, new in zip(rows[1:], labels, shuffled, strict=True)]
    manifest.write_text("\n".join([rows[0], *changed]) + "\n")
    result = fuse(invoke, [made[0]["audio"], made[0]["text"]], manifest, tmp_path / "run")
    assert result["cross_validation"]["fusion"]["accuracy"]["value"] < 0.38


@pytest.mark.parametrize("head", registry.choices("fusion.heads"))
def test_every_head_trains(head, made, invoke, tmp_path):
    result = fuse(invoke, [made[0]["audio"], made[0]["text"]], made[1], tmp_path / "run", "--head", head)
    assert result["cross_validation"]["fusion"]["accuracy"]["value"] > 0.6
    assert result["loss"][-1] < result["loss"][0]


def test_a_second_run_is_reused_and_another_seed_is_not(fused, made, invoke):
    stores = [made[0]["audio"], made[0]["text"]]
    before = (fused[0] / "members-0.safetensors").read_bytes()
    assert fuse(invoke, stores, made[1], fused[0])["reused"] is True
    assert (fused[0] / "members-0.safetensors").read_bytes() == before


def test_the_same_seed_gives_the_same_bundle(made, invoke, tmp_path):
    stores = [made[0]["audio"], made[0]["text"]]
    a, b, c = (fuse(invoke, stores, made[1], tmp_path / f"{n}", "--seed", seed) for n, seed in enumerate((1, 1, 2)))
    assert a["cross_validation"] == b["cross_validation"]
    assert (tmp_path / "0" / "members-0.safetensors").read_bytes() == (
        tmp_path / "1" / "members-0.safetensors"
    ).read_bytes()
    assert a["cross_validation"] != c["cross_validation"]


def test_a_clip_that_was_never_extracted_is_an_error(made, invoke, tmp_path):
    manifest = tmp_path / "m.csv"
    manifest.write_text(made[1].read_text() + "extra,x.mp4,happy,,s1,train,,\n")
    result = invoke("fuse", made[0]["audio"], made[0]["text"], "-m", manifest, "-o", tmp_path / "run")
    assert isinstance(result.exception, MertoolError)
    assert "of 91 labelled clips 1 not in" in str(result.exception)
    assert "extra" in str(result.exception)


def test_frames_are_fused_as_spans(made, make_store, invoke, tmp_path):
    rng, labels = np.random.default_rng(3), [row.split(",")[2] for row in made[1].read_text().splitlines()[1:]]
    values = {
        f"c{number}": rng.normal(0, 1, (int(rng.integers(3, 40)), 8)).astype(np.float32)
        + np.eye(8, dtype=np.float32)[EMOTIONS.index(label)] * 3
        for number, label in enumerate(labels)
    }
    store = make_store(tmp_path / "frames.h5", "frames", values)
    result = fuse(invoke, [store], made[1], tmp_path / "run", "--head", "cross-attention")
    assert result["cross_validation"]["frames"]["accuracy"]["value"] > 0.8
    (part,) = json.loads((tmp_path / "run" / "run.json").read_text())["parts"]
    assert (part["shape"], part["spans"]) == ([16, 8], 16)


def test_face_crops_are_refused(faces_store, workspace, invoke, tmp_path):
    result = invoke("fuse", faces_store, "-m", workspace.manifest, "-o", tmp_path / "run")
    assert isinstance(result.exception, MertoolError)
    assert "holds face crops" in str(result.exception)


def test_held_out_predictions_give_the_score_of_the_run(fused, made, invoke):
    run, result = fused
    told = invoke("evaluate", run / "held_out.csv", "--labels", made[1], "--json")
    assert told.exit_code == 0, (told.exception, told.stderr)
    rows = (run / "held_out.csv").read_text().splitlines()
    assert len(rows) == 1 + result["cross_validation"]["fusion"]["clips"]
    assert rows[1].endswith(",audio+text,")
    (system,) = json.loads(told.stdout)["systems"]
    for name in ("waf", "accuracy", "uar"):
        assert system[name] == pytest.approx(result["cross_validation"]["fusion"][name])


def test_fusion_is_compared_with_the_best_part(fused):
    gain, scores = fused[1]["against_best_part"], fused[1]["cross_validation"]
    best = max(("audio", "text"), key=lambda name: scores[name]["waf"]["value"])
    assert gain["part"] == best
    assert gain["clips"] == 88
    assert gain["low"] > 0
    assert gain["p"] < 0.05
    assert "after the fact" in gain["note"]


@pytest.fixture(scope="module")
def searched(made, invoke, tmp_path_factory):
    """The run of a nested search of three draws."""
    run = tmp_path_factory.mktemp("search") / "run"
    result = invoke(
        *("fuse", made[0]["audio"], made[0]["text"], "-m", made[1], "-o", run, "--json"),
        *("--folds", 3, "--seeds", 2, "--epochs", 12, "--search", 3),
    )
    assert result.exit_code == 0, (result.exception, result.stderr)
    return run, json.loads(result.stdout)


def test_a_search_is_nested_and_says_what_it_chose(searched):
    run, result = searched
    assert result["selection"].startswith("nested: of 3 draws")
    table = result["chosen"]["fusion"]["by_fold"]
    assert [row["fold"] for row in table] == [0, 1, 2]
    assert all(row["width"] in (64, 128, 256) and 1 <= row["epochs"] <= 12 for row in table)
    assert result["cross_validation"]["fusion"]["accuracy"]["value"] > 0.5
    groups = json.loads((run / "run.json").read_text())["members"]
    members = [pair for group in groups for pair in zip(group["fold"], group["seed"], strict=True)]
    assert sorted(members) == [(fold, seed) for fold in range(3) for seed in range(2)]
    of_fold = {row["fold"]: (row["width"], row["dropout"]) for row in table}
    assert all(of_fold[fold] == (g["width"], g["dropout"]) for g in groups for fold in g["fold"])


def test_a_bundle_of_several_widths_scores(searched):
    import torch

    from mertool.bundle import Bundle

    bundle = Bundle.open(searched[0])
    features = [torch.zeros(2, *shape) for shape in bundle.shapes]
    assert bundle.ensemble_logits(features, torch.ones(2, 2, dtype=torch.bool)).shape == (6, 2, 6)


@pytest.fixture(scope="module")
def official(made, invoke, tmp_path_factory):
    """The run of MERTools' protocol with a search of two draws and three repetitions, and its output."""
    run = tmp_path_factory.mktemp("official") / "run"
    options = ["--search", 2, "--protocol", "mertools", "--folds", 3, "--epochs", 4, "--seeds", 3]
    result = invoke("fuse", made[0]["audio"], made[0]["text"], "-m", made[1], "-o", run, *options)
    assert result.exit_code == 0, (result.exception, result.stderr)
    return run, " ".join(result.stdout.split())


def test_the_official_protocol_is_called_optimistic(official):
    run, printed = official
    words = "optimistic: epochs and hyper-parameters were chosen on the clips that score them"
    assert words in printed
    info, metrics = (json.loads((run / f"{name}.json").read_text()) for name in ("run", "metrics"))
    assert info["selection"] == metrics["selection"] == words
    assert info["members"][0]["head"] == "attention-mertools"
    assert info["settings"]["training"]["weight_decay"] == 1e-5
    assert metrics["folds"] == "3 folds, shuffled; speakers are not kept apart"


def labels_of(manifest):
    return {row.split(",")[0]: EMOTIONS.index(row.split(",")[2]) for row in manifest.read_text().splitlines()[1:]}


def predicted_in(path):
    """Return the predicted class by clip, from the probabilities in a predictions file."""
    rows = [row.split(",") for row in path.read_text().splitlines()]
    columns = [rows[0].index(f"p_{name}") for name in EMOTIONS]
    return {row[0]: int(np.argmax([float(row[column]) for column in columns])) for row in rows[1:]}


def test_mertools_figure_is_the_mean_over_folds_and_repetitions_of_single_models(official, made):
    """The right values come from the stored predictions of single models, by scikit-learn."""
    run, printed = official
    truth, fold_of = labels_of(made[1]), json.loads((run / "run.json").read_text())["folds"]
    scores = []
    for repetition in (1, 2, 3):
        predicted = predicted_in(run / f"held_out-{repetition}.csv")
        folds = [[clip for clip in predicted if fold_of[clip] == fold] for fold in range(3)]
        pairs = [([truth[clip] for clip in clips], [predicted[clip] for clip in clips]) for clips in folds]
        scores.append(np.mean([f1_score(*pair, average="weighted") for pair in pairs]))
    metrics = json.loads((run / "metrics.json").read_text())
    single = metrics["single_models"]
    found = single["scores"]["fusion"]["waf"]
    assert (single["folds"], single["repetitions"]) == (3, 3)
    assert found["repetitions"] == pytest.approx(scores)
    assert found["mean"] == pytest.approx(np.mean(scores))
    assert found["std"] == pytest.approx(np.std(scores, ddof=1))
    assert "MERTools' figure: single models" in printed
    assert f"{100 * np.mean(scores):.1f} ± {100 * np.std(scores, ddof=1):.1f}" in printed


def test_the_score_of_an_ensemble_has_a_name_of_its_own(official, made):
    run, printed = official
    truth, predicted = labels_of(made[1]), predicted_in(run / "held_out.csv")
    expected = f1_score([truth[clip] for clip in predicted], list(predicted.values()), average="weighted")
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["ensembles"]["fusion"]["waf"]["value"] == pytest.approx(expected)
    assert "cross_validation" not in metrics
    assert set(metrics["ensembles"]) == set(metrics["single_models"]["scores"]) == {"audio", "text", "fusion"}
    assert "Ensemble of all repetitions, which is not MERTools' figure" in printed


def test_one_repetition_has_no_spread(made, invoke, tmp_path):
    result = fuse(invoke, [made[0]["audio"]], made[1], tmp_path / "run", "--protocol", "mertools", "--seeds", 1)
    single, ensemble = (result[name] for name in ("single_models", "ensembles"))
    assert single["scores"]["audio"]["waf"]["std"] is None
    # One member by itself: what differs is the mean over folds against all clips at once.
    assert single["scores"]["audio"]["clips"] == ensemble["audio"]["clips"] == 88


def test_no_unimodal_trains_only_the_fusion(fused, made, invoke, tmp_path):
    stores = [made[0]["audio"], made[0]["text"]]
    result = fuse(invoke, stores, made[1], tmp_path / "run", "--no-unimodal")
    assert result["cross_validation"] == {"fusion": fused[1]["cross_validation"]["fusion"]}
    assert "against_best_part" not in result
    refused = invoke(
        *("fuse", *stores, "-m", made[1], "-o", tmp_path / "other", "--no-unimodal", "--unlabelled", stores[0])
    )
    assert "pseudo-labels need the agreement of single stores" in str(refused.exception)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--protocol", "mertool"], "did you mean 'mertools'"),
        (["--dropout", "1"], "--dropout 1: give a number from 0 to below 1"),
        (["--modality-dropout", "-0.1"], "--modality-dropout -0.1: give a number from 0 to below 1"),
        (["--learning-rate", "0"], "--learning-rate 0: give a number between 0 and 1"),
    ],
)
def test_options_that_make_no_sense(options, words, made, invoke, tmp_path):
    result = invoke("fuse", made[0]["audio"], "-m", made[1], "-o", tmp_path / "run", *options)
    assert isinstance(result.exception, MertoolError)
    assert words in str(result.exception)


def test_test_clips_are_not_learned_from(made, invoke, tmp_path):
    manifest = tmp_path / "m.csv"
    rows = made[1].read_text().splitlines()
    manifest.write_text("\n".join([*rows[:61], *(row.replace(",train,", ",test,") for row in rows[61:])]) + "\n")
    assert fuse(invoke, [made[0]["audio"]], manifest, tmp_path / "run")["clips"] == 60


def test_the_bundle_holds_what_predict_needs(fuse_run, workspace):
    facts = json.loads((fuse_run / "run.json").read_text())
    assert [part["name"] for part in facts["parts"]] == ["acoustic", "video", "aligned", "text"]
    assert [part["modality"] for part in facts["parts"]] == ["audio", "video", "video", "text"]
    assert facts["classes"] == list(EMOTIONS)
    assert len(list((fuse_run / "encoders").glob("*/config.json"))) == 3  # both visual parts have one encoder
    assert {file.stem for file in (fuse_run / "part0" / "adapters" / "final").glob("*.safetensors")} == {
        "adapter_model",
        "mean_offset",
    }
    assert (fuse_run / "part2" / "aligner" / "aligner.safetensors").exists()
    metrics = json.loads((fuse_run / "metrics.json").read_text())
    assert metrics["clips"] == 24
    assert metrics["cross_validation"]["video"]["clips"] == 23  # one shows no face
    assert metrics["cross_validation"]["acoustic"]["clips"] == 23  # one has no sound


def test_an_adapter_that_changed_since_is_an_error(
    acoustic_store, finetune_run, workspace, invoke, tmp_path, monkeypatch
):
    from mertool.runs import Run

    monkeypatch.setattr(Run, "digest", lambda self: "another")
    result = invoke("fuse", acoustic_store, "-m", workspace.manifest, "-o", tmp_path / "run", *QUICK, "--epochs", 1)
    assert isinstance(result.exception, MertoolError)
    assert "was made with an adapter that is no longer in" in str(result.exception)
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------- other clips


@pytest.fixture(scope="module")
def others(made, tmp_path_factory, make_store):
    """Sixty clips without labels, like those of `made` but half of them of one class, and four of the labelled ones."""
    folder, rng = tmp_path_factory.mktemp("others"), np.random.default_rng(0)
    rng.integers(0, 6, 90)
    centres = 3 * rng.normal(0, 1, (6, 8))
    random = np.random.default_rng(7)
    labels = np.concatenate([np.zeros(30, int), random.integers(0, 6, 30)])
    stores = []
    for name in ("audio", "text"):
        x = random.normal(0, 1, (60, 2, 8)).astype(np.float32)
        for number, label in enumerate(labels):
            if (label < 3) == (name == "audio"):
                x[number] += centres[label]
        values = {f"u{n}": x[n] for n in range(60)} | {f"c{n}": x[n] for n in range(10, 14)}
        stores.append(make_store(folder / f"{name}.h5", name, values, {}))
    return stores


def unlabelled(stores, *options):
    return [word for store in stores for word in ("--unlabelled", store)] + list(options)


def test_unlabelled_clips_are_learned_from_and_reported(made, others, invoke, tmp_path):
    stores = [made[0]["audio"], made[0]["text"]]
    result = fuse(invoke, stores, made[1], tmp_path / "run", *unlabelled(others[::-1], "--rounds", 2, "--prior"))
    taught = result["self_training"]
    assert taught["unlabelled_clips"] == 60
    assert taught["dropped"] == 4
    assert len(taught["rounds"]) == 2
    assert 0 < sum(taught["rounds"][0]["taken"]) < sum(taught["rounds"][1]["taken"]) <= 60
    assert result["clips"] == 90  # no unlabelled clip is scored
    prior = result["correction"]["prior"]
    assert prior["shifted"]
    assert prior["prior"][0] > 2 * prior["train"][0]
    from mertool.bundle import Bundle

    bundle = Bundle.open(tmp_path / "run")
    assert bundle.correction.target_prior == tuple(prior["prior"])


def test_unlabelled_stores_of_another_recipe(made, others, invoke, tmp_path):
    stores = [made[0]["audio"], made[0]["text"]]
    result = invoke("fuse", *stores, "-m", made[1], "-o", tmp_path / "run", *QUICK, *unlabelled(others[:1]))
    assert "no unlabelled store has the recipe of" in str(result.exception)
    assert "text.h5" in str(result.exception)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--prior"], "give their --unlabelled stores"),
        (["--rounds", 5], "give rounds of self-training on --unlabelled stores"),
        (["--learning-rate", 100], "give a number between 0 and 1"),
        (["--unlabelled", "audio", "--rounds", 0], "--unlabelled with --rounds 0 does nothing"),
    ],
)
def test_options_that_need_other_clips(made, invoke, tmp_path, options, words):
    options = [made[0].get(option, option) for option in options]  # a store by its name
    result = invoke("fuse", made[0]["audio"], "-m", made[1], "-o", tmp_path / "run", *options)
    assert words in str(result.exception)


def test_probabilities_are_tempered_and_the_effect_is_told(made, invoke, tmp_path):
    from mertool.bundle import Bundle

    plain = fuse(invoke, [made[0]["audio"]], made[1], tmp_path / "plain", "--no-calibrate")
    assert plain["correction"] == {}
    assert Bundle.open(tmp_path / "plain").correction.temperature == 1
    result = invoke("fuse", made[0]["audio"], "-m", made[1], "-o", tmp_path / "run", *QUICK)
    assert "expected calibration error" in result.stdout
    found = json.loads((tmp_path / "run" / "metrics.json").read_text())["correction"]["temperature"]
    assert found["temperature"] != 1
    assert found["after"]["cross_entropy"] < found["before"]["cross_entropy"]


# ---------------------------------------------------------------- numbers


@pytest.fixture(scope="module")
def rated(tmp_path_factory, make_store, write_manifest):
    """Ninety clips with a sentiment, which is the sum of two parts, one each in the features of audio and text."""
    folder, rng = tmp_path_factory.mktemp("rated"), np.random.default_rng(0)
    parts = {name: rng.uniform(-1.5, 1.5, 90) for name in ("audio", "text")}
    sentiment = parts["audio"] + parts["text"]
    stores = []
    for name, part in parts.items():
        x = 0.5 * rng.normal(0, 1, (90, 2, 8)) + part[:, None, None] * rng.normal(0, 1, 8)
        there = {f"c{n}": x[n].astype(np.float32) for n in range(90) if (name, n) != ("audio", 3)}
        absent = {"c3": "no_audio"} if name == "audio" else {}
        stores.append(make_store(folder / f"{name}.h5", name, there, absent))
    rows = [
        {"clip": f"c{n}", "path": "x.mp4", "sentiment": f"{value:.3f}", "speaker": f"s{n % 9}"}
        for n, value in enumerate(sentiment)
    ]
    return stores, write_manifest(folder / "clips.csv", rows), sentiment


@pytest.fixture(scope="module")
def rated_run(rated, invoke, tmp_path_factory):
    run = tmp_path_factory.mktemp("rated-run") / "run"
    return run, fuse(invoke, rated[0], rated[1], run, "--target", "sentiment")


def test_a_fusion_of_numbers(rated, rated_run):
    run, found = rated_run
    scores = found["cross_validation"]
    assert (found["target"], found["correction"], found["clips"]) == ("sentiment", {}, 90)
    assert {name: score["clips"] for name, score in scores.items()} == {"audio": 89, "text": 90, "fusion": 90}
    assert scores["fusion"]["ccc"]["value"] > max(scores[name]["ccc"]["value"] for name in ("audio", "text")) + 0.1
    assert scores["fusion"]["ccc"]["value"] > 0.8
    assert scores["fusion"]["mae"]["value"] < 0.5 * found["always_mean"]["mae"]
    assert abs(found["always_mean"]["ccc"]) < 0.1
    assert found["against_best_part"]["difference"] > 0.1
    assert found["loss"][-1] < 0.5 * found["loss"][0]
    info = json.loads((run / "run.json").read_text())
    assert (info["target"], info["classes"], info["class_counts"]) == ("sentiment", [], {})
    assert (run / "scores.png").exists()
    assert (run / "numbers.png").exists()


def test_held_out_numbers_give_the_reported_scores(rated, rated_run, invoke):
    run, found = rated_run
    result = invoke("evaluate", run / "held_out.csv", "-l", rated[1], "--json")
    system = json.loads(result.stdout)["systems"][0]
    for name in ("ccc", "mae", "acc7", "acc2_without_zero"):
        assert system[name]["value"] == pytest.approx(found["cross_validation"]["fusion"][name]["value"], abs=1e-6)


def test_a_bundle_of_numbers_scores_new_clips(rated, rated_run):
    from mertool.bundle import Bundle
    from mertool.bundle.scoring import score_blocks
    from mertool.store import FeatureStore
    from mertool.targets import Number

    bundle = Bundle.open(rated_run[0])
    assert (bundle.target, bundle.classes, bundle.majority_class) == (Number("sentiment"), (), None)
    stores = [FeatureStore(path) for path in rated[0]]
    clips = [f"c{n}" for n in range(90)]
    ((found, logits, _),) = score_blocks(bundle, stores, clips, device=torch.device("cpu"))
    numbers = bundle.outputs(logits).numpy()[:, 0]
    assert found == clips
    assert np.corrcoef(numbers, rated[2])[0, 1] > 0.9
    assert abs(numbers.mean() - rated[2].mean()) < 0.2


def test_a_bundle_whose_target_was_changed_is_refused(rated_run, tmp_path):
    from mertool.bundle import Bundle

    for target in ("valence", "emotion", "age", None):
        folder = tmp_path / str(target)
        shutil.copytree(rated_run[0], folder)
        info = json.loads((folder / "run.json").read_text())
        info["target"] = target
        if target is None:
            del info["target"]
        (folder / "run.json").write_text(json.dumps(info))
        with pytest.raises(MertoolError):
            Bundle.open(folder)


def test_a_search_for_numbers_is_by_ccc(rated, invoke, tmp_path):
    found = fuse(invoke, rated[0][:1], rated[1], tmp_path / "run", "--target", "sentiment", "--search", 2)
    for chosen in found["chosen"]["audio"]["by_fold"]:
        assert -1 <= chosen["development_ccc"] <= 1


def test_the_table_of_numbers(rated, rated_run, invoke):
    result = invoke("fuse", *rated[0], "-m", rated[1], "-o", rated_run[0], *QUICK, "--target", "sentiment")
    for words in ("always the mean", "CCC", "Acc-7", "numbers.png", "reused"):
        assert words in result.stdout
    assert "weighted F1" not in result.stdout


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        (["--protocol", "mertools"], "--protocol mertools"),
        (["--class-weights"], "--class-weights"),
        (["--label-smoothing", 0.1], "--label-smoothing"),
        (["--unlabelled", "u.h5"], "--unlabelled"),
    ],
)
def test_what_is_for_classes_is_refused_for_numbers(options, flag, rated, invoke, tmp_path):
    result = invoke("fuse", *rated[0], "-m", rated[1], "-o", tmp_path / "run", "--target", "sentiment", *options)
    assert f"{flag} is for classes: leave it out with --target sentiment, which is a number" in str(result.exception)
