"""`mertool probe-layers`: which layers carry emotion."""

import json

import numpy as np
import pytest

from mertool.errors import MertoolError
from mertool.manifest import EMOTIONS
from mertool.probe_layers import _adopt_ablation
from mertool.probing.window import Window

SMALL = ("--folds", 3, "--seeds", 2)


@pytest.fixture(scope="module")
def planted(tmp_path_factory, make_store, write_manifest):
    """Ninety clips of nine speakers whose label is written into layers 4 and 5 of 9, and nowhere else."""
    folder, rng = tmp_path_factory.mktemp("planted"), np.random.default_rng(0)
    labels = rng.integers(0, 6, 90)
    centres = rng.normal(0, 1, (6, 12))
    values = rng.normal(0, 1, (90, 9, 12)).astype(np.float32)
    values[:, 4:6] = 2 * centres[labels][:, None] + 0.5 * values[:, 4:6]
    rows = [
        {"clip": f"c{n}", "path": "x.mp4", "label": EMOTIONS[label], "speaker": f"s{n % 9}", "split": "train"}
        for n, label in enumerate(labels)
    ]
    store = make_store(folder / "audio.h5", "audio", {f"c{n}": value for n, value in enumerate(values)})
    return store, write_manifest(folder / "clips.csv", rows)


@pytest.fixture(scope="module")
def run(planted, invoke, tmp_path_factory):
    """The run's folder and the JSON object of the command."""
    folder = tmp_path_factory.mktemp("probe") / "run"
    result = invoke("probe-layers", planted[0], "-m", planted[1], "-o", folder, *SMALL, "--width", 2, "--json")
    assert result.exit_code == 0, result.exception
    return folder, json.loads(result.stdout)


@pytest.fixture
def probe(planted, invoke, tmp_path):
    """A function (options) that probes the planted store in new ways: the folder and the JSON object."""

    def run(*options, name="run", quick=("--no-mlp", "--seeds", 1)):
        folder = tmp_path / name
        result = invoke("probe-layers", planted[0], "-m", planted[1], "-o", folder, *quick, *options, "--json")
        assert result.exit_code == 0, result.exception
        return folder, json.loads(result.stdout)

    return run


def test_the_planted_layers_are_recommended(run):
    folder, result = run
    assert result["window"]["layers"] == "4-5"
    assert json.loads((folder / "run.json").read_text())["window"] == [4, 5]


def test_other_layers_and_shuffled_labels_are_near_chance(run):
    layers = run[1]["layers"]
    assert set(layers) == {str(n) for n in range(9)}
    for layer in "0123678":
        assert layers[layer]["accuracy"]["value"] < 0.4
    for scores in layers.values():
        assert scores["control"]["accuracy"]["value"] < 0.4
    assert run[1]["chance"]["accuracy"]["value"] < 0.4


def test_the_window_is_scored_on_clips_that_did_not_choose_it(run):
    assert run[1]["layers"]["4"]["waf"]["value"] > 0.9
    window = json.loads((run[0] / "metrics.json").read_text())["window"]
    assert window["layers"] == "4-5"
    assert 0.9 < window["waf"]["value"] <= 1
    choice = "for each fold by probes that were trained on neither its clips nor those they were scored on"
    assert window["choice"] == choice
    assert window["chosen_by_fold"] == [[[4, 5]] * 3] * 2


def test_both_heads_have_scores_intervals_and_recalls(run):
    planted, other = run[1]["layers"]["4"], run[1]["layers"]["1"]
    assert set(planted["recall"]) == set(EMOTIONS)
    assert min(planted["recall"].values()) > 0.7
    assert planted["mlp"]["waf"]["value"] > 0.9
    assert other["mlp"]["waf"]["value"] < 0.4
    for scores in (planted, planted["mlp"]):
        for name in ("waf", "uar", "accuracy"):
            assert scores[name]["low"] <= scores[name]["value"] <= scores[name]["high"]
    assert run[1]["intervals"] == "speakers"


def test_learned_weights_find_the_planted_layers(run):
    found = run[1]["layer_weights"]
    assert sum(found["mean"].values()) == pytest.approx(1, abs=1e-5)
    assert found["mean"]["4"] + found["mean"]["5"] > 0.5
    assert set(found["deviation"]) == set(found["mean"])
    assert found["waf"]["value"] > 0.9


def test_penalties_are_stored_by_shuffle_and_fold(run):
    penalties = np.array(run[1]["layers"]["4"]["penalties"])
    assert penalties.shape == (2, 3)
    assert run[1]["unsolved"] == 0


def test_speakers_that_are_not_in_the_features_are_not_found(run):
    speakers = run[1]["speakers"]
    assert (speakers["speakers"], speakers["clips"]) == (9, 90)
    assert max(scores["value"] for scores in speakers["layers"].values()) < 0.3
    assert speakers["chance"]["value"] < 0.3


def test_folds_are_stored_and_speaker_disjoint(run):
    info = json.loads((run[0] / "run.json").read_text())
    folds = info["folds"]
    assert set(folds) == {f"c{n}" for n in range(90)}
    assert set(folds.values()) == {0, 1, 2}
    for speaker in range(9):
        assert len({folds[f"c{n}"] for n in range(speaker, 90, 9)}) == 1
    assert info["speakers"]["c3"] == "s3"
    rows = (run[0] / "folds.csv").read_text().splitlines()
    assert rows[:2] == ["clip,fold", f"c0,{folds['c0']}"]
    assert len(rows) == 91


def test_the_files_of_the_run(run):
    pictures = {f"{name}.{suffix}" for name in ("layers", "recall") for suffix in ("png", "svg")}
    assert {file.name for file in run[0].iterdir()} == {"run.json", "metrics.json", "folds.csv", *pictures}
    for name in ("layers", "recall"):
        assert (run[0] / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (run[0] / f"{name}.svg").read_text()


def test_a_second_run_is_reused_and_another_seed_is_not(run, planted, invoke):
    given = ["probe-layers", planted[0], "-m", planted[1], "-o", run[0], *SMALL, "--width", 2, "--json"]
    before = (run[0] / "run.json").stat().st_mtime_ns
    again = json.loads(invoke(*given).stdout)
    assert (again["reused"], again["layers"]) == (True, run[1]["layers"])
    assert (run[0] / "run.json").stat().st_mtime_ns == before


def test_other_options_replace_the_run_when_asked_to(probe):
    assert len(probe("--folds", 3, "--width", 1)[1]["window"]["layers"]) == 1
    second = probe("--folds", 3, "--width", 3, "--overwrite")[1]
    assert second["reused"] is False
    assert second["window"]["layers"] in ("3-5", "4-6")
    assert probe("--folds", 3, "--width", 3)[1]["reused"] is True


@pytest.mark.parametrize("estimator", ["logistic", "ridge"])
def test_the_width_is_chosen_and_the_reason_told(probe, estimator):
    _, result = probe("--folds", 3, "--estimator", estimator)
    assert set(result["window"]["layers"]) <= set("4-5")
    assert "one standard error of the difference" in result["window"]["reason"]
    assert "mlp" not in result["layers"]["4"]
    assert (result["estimator"], result["shuffles"]) == (estimator, 1)


@pytest.mark.parametrize("form", ["csv", "run"])
def test_folds_of_a_run_are_used_again(probe, run, form):
    given = run[0] if form == "run" else run[0] / "folds.csv"
    folder, result = probe("--folds", given)
    assert (
        json.loads((folder / "run.json").read_text())["folds"] == json.loads((run[0] / "run.json").read_text())["folds"]
    )
    assert "speaker-disjoint (9 speakers)" in result["folds"]


def test_given_folds_are_not_shuffled_and_the_mlp_is_repeated(probe, run):
    _, result = probe("--folds", run[0] / "folds.csv", quick=("--seeds", 2))
    assert (result["seeds"], result["shuffles"]) == (2, 1)
    assert np.shape(result["layers"]["4"]["penalties"]) == (1, 3)
    assert result["layers"]["4"]["mlp"]["waf"]["value"] > 0.9


def test_changed_folds_are_another_run(probe, run, tmp_path):
    copy, content = tmp_path / "folds.csv", (run[0] / "folds.csv").read_text()
    copy.write_text(content)
    assert [probe("--folds", copy)[1]["reused"] for _ in range(2)] == [False, True]
    copy.write_text(content.replace(",0\n", ",1\n"))
    _, result = probe("--folds", copy)
    assert result["reused"] is False
    assert result["folds"].startswith("2 folds of folds.csv")


def test_two_folds_are_not_nested_and_say_so(probe):
    _, result = probe("--folds", 2)
    assert result["penalty"] == "fixed: two folds"
    assert "two folds cannot be nested" in result["window"]["choice"]


def test_without_speakers_intervals_are_over_clips(invoke, planted, write_manifest, tmp_path):
    rows = [line.split(",") for line in planted[1].read_text().splitlines()[1:]]
    manifest = write_manifest(tmp_path / "m.csv", [{"clip": r[0], "path": "x.mp4", "label": r[2]} for r in rows])
    given = ["probe-layers", planted[0], "-m", manifest, "-o", tmp_path / "run", "--no-mlp", "--seeds", 1, "--json"]
    result = json.loads(invoke(*given).stdout)
    assert result["intervals"] == "clips"
    assert "speakers" not in result
    assert json.loads((tmp_path / "run" / "run.json").read_text())["speakers"] is None


def test_random_labels_give_chance(invoke, planted, write_manifest, tmp_path):
    rng = np.random.default_rng(5)
    rows = [{"clip": f"c{n}", "path": "x.mp4", "label": EMOTIONS[n % 2]} for n in rng.permutation(90)]
    for row, label in zip(rows, rng.permutation(np.arange(90) % 2), strict=True):
        row["label"] = EMOTIONS[label]
    manifest = write_manifest(tmp_path / "m.csv", rows)
    given = ["probe-layers", planted[0], "-m", manifest, "-o", tmp_path / "run", "--no-mlp", "--seeds", 1, "--json"]
    result = json.loads(invoke(*given).stdout)
    assert 0.3 < result["layer_weights"]["accuracy"]["value"] < 0.7
    assert 0.4 < np.mean([scores["accuracy"]["value"] for scores in result["layers"].values()]) < 0.6


@pytest.fixture(scope="module")
def chance(planted, invoke, write_manifest, tmp_path_factory):
    """Random labels for the planted clips: the manifest, the run and what the command printed."""
    folder, rng = tmp_path_factory.mktemp("chance"), np.random.default_rng(1)
    rows = [
        {"clip": f"c{n}", "path": "x.mp4", "label": EMOTIONS[label], "speaker": f"s{n % 9}", "split": "train"}
        for n, label in enumerate(rng.permutation(np.arange(90) % 3))
    ]
    manifest = write_manifest(folder / "clips.csv", rows)
    return manifest, folder / "run", invoke("probe-layers", planted[0], "-m", manifest, "-o", folder / "run", *SMALL)


def test_no_window_is_recommended_where_no_layer_is_above_chance(chance):
    _, folder, printed = chance
    assert printed.exit_code == 0, printed.exception
    info, metrics = (json.loads((folder / name).read_text()) for name in ("run.json", "metrics.json"))
    assert info["window"] is None
    assert metrics["window"] is None
    assert metrics["best_layer"]["above_chance"] is False
    assert f"no window is recommended: the best layer, {metrics['best_layer']['layer']}, is not above" in printed.stderr
    assert "recommended window" not in printed.stdout
    assert "next: mertool finetune" not in printed.stdout


def test_finetune_asks_for_layers_where_the_probe_recommends_none(chance, invoke, tmp_path):
    result = invoke("finetune", chance[0], "--probe", chance[1], "-o", tmp_path / "run")
    assert isinstance(result.exception, MertoolError)
    assert "found no layer above chance and recommends none: give --layers" in str(result.exception)


def test_finetune_refuses_a_probe_of_other_clips(run, planted, invoke, write_manifest, tmp_path):
    rows = [{"clip": f"other{n}", "path": "x.mp4", "label": EMOTIONS[n % 3]} for n in range(12)]
    manifest = write_manifest(tmp_path / "clips.csv", rows)
    result = invoke("finetune", manifest, "--probe", run[0], "-o", tmp_path / "run")
    assert isinstance(result.exception, MertoolError)
    assert "probed none of the 12 labelled clips" in str(result.exception)
    assert "or --layers" in str(result.exception)


def test_finetune_says_that_a_probe_saw_few_of_the_clips(run, planted, invoke, write_manifest, tmp_path):
    rows = [{"clip": f"c{n}", "path": "x.mp4", "label": EMOTIONS[n % 3]} for n in range(85, 120)]
    manifest = write_manifest(tmp_path / "clips.csv", rows)
    result = invoke("finetune", manifest, "--probe", run[0], "-o", tmp_path / "run")
    assert "probed only 5 of the 35 labelled clips" in result.stderr


@pytest.mark.parametrize("order", ["reversed", "shuffled"])
def test_the_order_of_the_manifest_changes_no_score(order, run, planted, reorder_rows, invoke, tmp_path):
    manifest = reorder_rows(planted[1], tmp_path / "clips.csv", order)
    invoke("probe-layers", planted[0], "-m", manifest, "-o", tmp_path / "run", *SMALL, "--width", 2, "-q")
    for name in ("metrics.json", "folds.csv", "layers.svg", "layers.png"):
        assert (tmp_path / "run" / name).read_bytes() == (run[0] / name).read_bytes()


def test_a_class_of_one_speaker_is_named_before_the_work(planted, invoke, write_manifest, monkeypatch, tmp_path):
    def label(number):
        return "surprise" if number in (4, 13) else EMOTIONS[number % 3]

    rows = [{"clip": f"c{n}", "path": "x.mp4", "label": label(n), "speaker": f"s{n % 9}"} for n in range(90)]
    manifest = write_manifest(tmp_path / "clips.csv", rows)
    monkeypatch.setattr("mertool.probe_layers.probe_all", lambda *_, **__: 1 / 0)
    result = invoke("probe-layers", planted[0], "-m", manifest, "-o", tmp_path / "run", *SMALL)
    assert isinstance(result.exception, ZeroDivisionError)
    (line,) = [line for line in result.stderr.splitlines() if "surprise" in line]
    assert line.startswith("note: surprise (2 clips of speaker s4 alone) is never in training when it is held out")


def fails(invoke, *args):
    result = invoke("probe-layers", *args)
    assert isinstance(result.exception, MertoolError), result.exception
    return str(result.exception)


def test_a_frame_store_is_refused(invoke, frames_store, workspace, tmp_path):
    message = fails(invoke, frames_store, "-m", workspace.manifest, "-o", tmp_path / "run")
    assert "holds frames: probe-layers reads a pooled store" in message


def test_a_window_wider_than_the_encoder(invoke, planted, tmp_path):
    result = invoke("probe-layers", planted[0], "-m", planted[1], "-o", tmp_path / "run", *SMALL, "--width", 40)
    assert isinstance(result.exception, MertoolError)
    assert "transformer layers, give at most " in str(result.exception)


def test_labels_for_clips_that_are_not_in_the_store(invoke, planted, write_manifest, tmp_path):
    rows = [{"clip": f"other{n}", "path": "x.mp4", "label": EMOTIONS[n % 3]} for n in range(12)]
    message = fails(invoke, planted[0], "-m", write_manifest(tmp_path / "m.csv", rows), "-o", tmp_path / "run")
    assert "of 12 labelled clips none in" in message


def test_a_clip_that_was_never_extracted(invoke, planted, tmp_path):
    text = planted[1].read_text() + "extra,x.mp4,happy,,s1,train,,\n"
    manifest = tmp_path / "m.csv"
    manifest.write_text(text)
    message = fails(invoke, planted[0], "-m", manifest, "-o", tmp_path / "run")
    assert "1 not in" in message
    assert "extra" in message


def test_one_class(invoke, planted, tmp_path, write_manifest):
    rows = [{"clip": f"c{n}", "path": "x.mp4", "label": "happy"} for n in range(20)]
    message = fails(invoke, planted[0], "-m", write_manifest(tmp_path / "m.csv", rows), "-o", tmp_path / "run")
    assert "all 20 labelled clips" in message
    assert "'happy'" in message


def test_clips_that_failed_are_left_out(probe_run, clip_names):
    metrics = json.loads((probe_run / "metrics.json").read_text())
    assert metrics["clips"] == len(clip_names.labelled) - 1  # one has no sound
    assert clip_names.no_sound not in json.loads((probe_run / "run.json").read_text())["folds"]


def test_an_unknown_estimator(invoke, planted, tmp_path):
    message = fails(invoke, planted[0], "-m", planted[1], "-o", tmp_path / "run", "--estimator", "logistics")
    assert message == "unknown estimator 'logistics': did you mean 'logistic'? valid: logistic, ridge"


def test_a_file_of_folds_that_is_none(invoke, planted, tmp_path):
    message = fails(invoke, planted[0], "-m", planted[1], "-o", tmp_path / "run", "--folds", tmp_path / "no.csv")
    assert "does not exist: give a number, or a CSV with the columns clip,fold" in message


def test_the_report_for_people(invoke, planted, tmp_path):
    text = invoke("probe-layers", planted[0], "-m", planted[1], "-o", tmp_path / "run", *SMALL).stdout
    for words in (
        "recommended window: layers 4",
        "95 % intervals over speakers",
        "mean of 2 shuffles",
        "shuffled labels",
        "MLP, weighted F1",
        "layer 0 the embedding",
        "accuracy of telling 9 speakers apart",
        "learned layer weights: most on layers",
        "a window chosen so, on clips that did not choose it",
        f"plots: {tmp_path / 'run' / 'layers.png'}",
        f"next: mertool finetune {planted[1]} --probe {tmp_path / 'run'}",
    ):
        assert words in text
    assert "4 *" in text


# ---------------------------------------------------------------- where an adapter helps


def test_injection_ranks_windows_beside_the_read_out(workspace, audio_store, invoke, tmp_path):
    given = ["probe-layers", audio_store, "-m", workspace.manifest, "-o", tmp_path / "run"]
    options = ["--folds", 2, "--seeds", 1, "--no-mlp", "--estimator", "ridge", "--width", 2, "--injection"]
    result = invoke(*given, *options)
    assert result.exit_code == 0, (result.exception, result.stderr)
    assert "a short adapter in each window" in result.stdout
    assert (tmp_path / "run" / "injection.png").exists()
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    ranking = metrics["injection"]
    blocks = max(map(int, metrics["layers"]))
    tiles = {(last - 1, last) for last in range(blocks, 1, -2)}
    found = {tuple(one["window"]) for one in ranking}
    assert tiles <= found and len(found) <= len(tiles) + 1
    scores = [one["waf"]["value"] for one in ranking]
    assert scores == sorted(scores, reverse=True)
    assert len({one["trainable"] for one in ranking}) == 1
    assert json.loads((tmp_path / "run" / "run.json").read_text())["window"] in [list(one) for one in found]


@pytest.mark.parametrize(("n_windows", "adopted"), [(3, True), (4, False)])
def test_an_ablated_window_overrules_the_probes_only_where_its_lead_stands_for_the_number_of_windows(
    n_windows, adopted
):
    rows = [
        {"layers": f"{2 * n - 1}-{2 * n}", "window": [2 * n - 1, 2 * n], "against_best": {"p": 0.02}}
        for n in range(1, n_windows + 1)
    ]
    metrics = {"injection": rows, "window": {"layers": "3-4", "reason": ""}}
    window = _adopt_ablation(metrics, Window(3, 4, ""))
    assert (window.first, window.last) == ((1, 2) if adopted else (3, 4))


def test_injection_needs_a_speech_encoder(workspace, video_store, invoke, tmp_path):
    result = invoke("probe-layers", video_store, "-m", workspace.manifest, "-o", tmp_path / "run", "--injection")
    assert isinstance(result.exception, MertoolError)
    assert "speech encoder" in str(result.exception)


# ---------------------------------------------------------------- numbers


@pytest.fixture(scope="module")
def rated(tmp_path_factory, make_store, write_manifest):
    """Ninety clips of nine speakers whose valence, 1 to 7, is written into layers 4 and 5 of 9."""
    folder, rng = tmp_path_factory.mktemp("rated"), np.random.default_rng(0)
    valence = np.round(rng.uniform(1, 7, 90), 2)
    values = rng.normal(0, 1, (90, 9, 12)).astype(np.float32)
    values[:, 4:6] += (valence - 4)[:, None, None] * rng.normal(0, 0.6, 12)
    rows = [
        {"clip": f"c{n}", "path": "x.mp4", "valence": str(number), "speaker": f"s{n % 9}"}
        for n, number in enumerate(valence)
    ]
    rows.append({"clip": "unrated", "path": "x.mp4", "label": "sad", "speaker": "s1"})
    store = make_store(folder / "audio.h5", "audio", {f"c{n}": value for n, value in enumerate(values)})
    return store, write_manifest(folder / "clips.csv", rows)


def test_layers_that_carry_a_number_are_recommended(rated, invoke, tmp_path):
    command = ("probe-layers", rated[0], "-m", rated[1], "-o", tmp_path / "run", "--target", "valence", *SMALL)
    result = invoke(*command, "--width", 2, "--json")
    assert result.exit_code == 0, result.exception
    found = json.loads(result.stdout)
    assert (found["target"], found["clips"], found["window"]["layers"]) == ("valence", 90, "4-5")
    assert found["window"]["ccc"]["value"] > 0.7
    assert found["window"]["chosen_by_fold"][0] == [[4, 5]] * 3
    for layer in "0128":
        assert found["layers"][layer]["ccc"]["value"] < 0.4
    assert abs(found["chance"]["ccc"]["value"]) < 0.2
    assert found["layers"]["4"]["mlp"]["ccc"]["value"] > 0.5
    assert found["layer_weights"]["ccc"]["value"] > 0.6
    assert found["best_layer"]["ccc"]["low"] > found["best_layer"]["best_shuffled"]
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (info["target"], info["classes"], info["window"]) == ("valence", [], [4, 5])
    assert (tmp_path / "run" / "layers.png").exists()
    assert not (tmp_path / "run" / "recall.png").exists()
    printed = invoke(*command, "--width", 2).stdout
    assert "CCC" in printed
    assert "weighted F1" not in printed
    result = invoke("finetune", rated[1], "--probe", tmp_path / "run", "-o", tmp_path / "acoustic")
    assert "probed valence, but finetune trains classes: give --layers instead" in str(result.exception)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--injection"], "--injection is for classes: leave it out with --target valence, which is a number"),
        (["--classes", "a,b"], "--classes is for classes"),
    ],
)
def test_options_of_classes_are_refused_for_numbers(options, message, rated, invoke, tmp_path):
    result = invoke("probe-layers", rated[0], "-m", rated[1], "-o", tmp_path / "run", "--target", "valence", *options)
    assert message in str(result.exception)


def test_a_manifest_without_the_number(rated, invoke, tmp_path):
    result = invoke("probe-layers", rated[0], "-m", rated[1], "-o", tmp_path / "run", "--target", "arousal")
    assert "has no labelled training clip: fill in the column arousal" in str(result.exception)
