"""`mertool report`: the document of runs, and what it says of runs whose parts are gone."""

import json
import re
import shutil

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, f1_score

from mertool.manifest import EMOTIONS, Manifest
from mertool.predictions import Predictions


@pytest.fixture(scope="module")
def made(reported, call, tmp_path_factory):
    """The folder of a report of all runs and the evaluation, and its document."""
    folder = tmp_path_factory.mktemp("made")
    runs = [reported / "runs" / name for name in ("both", "text", "probe")]
    call("report", *runs, reported / "metrics.json", "-o", folder / "report.html", "-q")
    return folder, json.loads((folder / "report.json").read_text(encoding="utf-8"))


def test_the_files_of_a_report(made):
    names = ["report.checklist.md", "report.html", "report.json", "report.model-card.md", "report.tex"]
    assert sorted(file.name for file in made[0].iterdir()) == names
    assert made[1]["missing"] == []


def test_scores_and_confusion_are_those_of_scikit_learn(made, reported):
    (system,) = [system for system in made[1]["systems"] if system["name"] == "both"]
    predictions = Predictions.read(reported / "runs" / "both" / "held_out.csv")
    labels = Manifest.read(reported / "clips.csv").known_labels()
    truth = [labels[clip] for clip in predictions.clips]
    assert system["confusion"] == confusion_matrix(truth, predictions.labels, labels=EMOTIONS).tolist()
    assert system["scores"]["waf"]["value"] == pytest.approx(f1_score(truth, predictions.labels, average="weighted"))
    assert system["as_recorded"] is True
    assert system["intervals"] == "speakers"


def test_every_clip_of_a_confusion_matrix_is_in_its_cell(made):
    for system in made[1]["systems"]:
        counts = np.zeros((6, 6), int)
        for clip, truth, predicted, probabilities in system["cells"]:
            counts[truth, predicted] += 1
            assert int(np.argmax(probabilities)) == predicted, clip
        assert counts.tolist() == system["confusion"]


def test_all_compared_systems_are_one_family_of_tests(made):
    tests = made[1]["tests"]
    pairs = {(test["first"], test["second"]) for test in tests}
    assert pairs == {("both", "text"), ("both", "metrics.json"), ("text", "metrics.json")}
    # Holm (1979): the p values in ascending order times 3, 2 and 1, and never below the one before.
    ordered = sorted(tests, key=lambda test: test["p"])
    expected = np.maximum.accumulate([min(1.0, test["p"] * (3 - rank)) for rank, test in enumerate(ordered)])
    assert [test["p_holm"] for test in ordered] == pytest.approx(expected.tolist())


def test_the_difference_of_a_test_is_that_of_the_scores(made):
    scores = {system["name"]: system["scores"]["waf"]["value"] for system in made[1]["systems"]}
    (test,) = [test for test in made[1]["tests"] if test["second"] == "text"]
    # Both predict all 60 clips: a clip without audio has a text.
    assert test["clips"] == 60
    assert test["difference"] == pytest.approx(scores["text"] - scores["both"])


def test_settings_seeds_versions_and_fingerprints(made):
    (run,) = [run for run in made[1]["runs"] if run["name"] == "both"]
    assert (run["seed"], run["options"]["epochs"], run["stage"]) == (0, "12", "fuse")
    assert {"python", "torch"} <= set(run["versions"])
    assert run["seconds"] > 0
    assert [store["path"] for store in run["stores"]] == [f"features/{name}.h5" for name in ("audio", "video", "text")]
    assert all(re.fullmatch(r"[0-9a-f]{64}", store["fingerprint"]) for store in run["stores"])


def test_no_path_says_whose_machine_it_is(made, reported):
    assert str(reported) not in (made[0] / "report.html").read_text(encoding="utf-8")


def test_failures_by_reason(made):
    failures = {(row["path"], row["modality"]): row["reasons"] for row in made[1]["failures"]}
    (reason,) = failures["features/audio.h5", "audio"]
    assert (reason["reason"], reason["count"], reason["clips"]) == ("unreadable", 1, ["c7"])
    assert failures["predictions.csv", "audio"][0]["reason"] == "timeout"
    assert failures["features/text.h5", "text"] == []


def test_the_ledger_tells_what_is_optimistic(made):
    ledger = {row["score"]: row for row in made[1]["ledger"]}
    best = next(row for name, row in ledger.items() if name.startswith("probe: best single layer"))
    assert best["optimistic"] == "the layer was chosen by these scores"
    assert ledger["both: fusion"]["optimistic"] == ""
    # The evaluated clips of this corpus are those that were trained on.
    assert ledger["metrics.json: predictions"]["optimistic"] == "60 scored clips have the id of a training clip"


def test_layers_are_those_of_the_probe(made, reported):
    metrics = json.loads((reported / "runs" / "probe" / "metrics.json").read_text())
    (section,) = made[1]["layers"]
    recorded = {int(layer): row["waf"]["value"] for layer, row in metrics["layers"].items()}
    assert {row["layer"]: row["waf"]["value"] for row in section["layers"]} == recorded


def test_without_media_no_people(reported, make_report, tmp_path):
    document = make_report([reported / "runs" / "both"], tmp_path / "r.html", "--no-media")
    text = "".join(file.read_text(encoding="utf-8") for file in tmp_path.iterdir())
    assert document["clips"] == {}
    assert "words of clip" not in text
    assert "speaker-1" not in text
    assert "data:image" not in text
    assert "c11" in text  # ids of clips stay


def test_a_moved_folder_of_runs_is_found_again(copy_of, make_report, tmp_path):
    document = make_report([copy_of / "runs" / "both"], tmp_path / "r.html")
    assert document["missing"] == []
    assert document["runs"][0]["manifest"] == "../clips.csv" or document["runs"][0]["manifest"].endswith("clips.csv")
    assert len(document["systems"]) == 1


def test_parts_that_are_gone_are_told(copy_of, invoke, tmp_path):
    (copy_of / "clips.csv").unlink()
    shutil.rmtree(copy_of / "features")
    result = invoke("report", copy_of / "runs" / "both", "-o", tmp_path / "r.html")
    assert result.exit_code == 0, result.stderr
    document = json.loads((tmp_path / "r.json").read_text())
    assert {part["part"] for part in document["missing"]} == {"manifest", "stores"}
    assert all("no longer there" in part["reason"] for part in document["missing"])
    assert document["systems"] == []
    assert document["fusion"][0]["systems"][-1]["name"] == "fusion"  # scores that the run recorded
    assert "note: both: manifest" in result.stderr
    assert "are gone" in (tmp_path / "r.html").read_text()


def test_labels_that_were_changed_are_told(copy_of, make_report, tmp_path):
    manifest = copy_of / "clips.csv"
    manifest.write_text(manifest.read_text().replace("happy", "sad"))
    document = make_report([copy_of / "runs" / "both"], tmp_path / "r.html")
    assert document["systems"][0]["as_recorded"] is False
    assert "these are not the scores that the run recorded" in (tmp_path / "r.html").read_text()


@pytest.mark.parametrize("damage", ["{}", '{"cross_validation": {"fusion": 3}}', "[]", "no json"])
def test_metrics_that_are_damaged_are_told(damage, copy_of, make_report, tmp_path):
    (copy_of / "runs" / "both" / "metrics.json").write_text(damage)
    document = make_report([copy_of / "runs" / "both"], tmp_path / "r.html")
    assert document["fusion"] == []
    assert damage == "{}" or [part["part"] for part in document["missing"]] == ["metrics"]


def test_a_run_made_before_sources_were_recorded(copy_of, make_report, tmp_path):
    file = copy_of / "runs" / "both" / "run.json"
    info = json.loads(file.read_text())
    for name in ("sources", "folder", "seconds", "finished", "machine"):
        del info[name]
    file.write_text(json.dumps(info))
    document = make_report([copy_of / "runs" / "both"], tmp_path / "r.html")
    assert [part["part"] for part in document["missing"]] == ["sources"]
    assert "not recorded" in (tmp_path / "r.html").read_text()


@pytest.mark.parametrize(
    ("paths", "output", "message"),
    [
        (["."], "r.html", "is not a run: there is no run.json in it"),
        (["nowhere"], "r.html", "is not a run"),
        (["clips.csv"], "r.html", "is not a run: give the -o folder of a run"),
        (["runs/both/metrics.json"], "r.html", "lists no systems"),
        (["runs/both"], "r.pdf", "give a name that ends in .html"),
        (["runs/both"], "runs/both/r.html", "a run that this command reads"),
        (["metrics.json"], "metrics.html", "it is an input of this command"),
    ],
)
def test_bad_input_is_one_line(paths, output, message, copy_of, invoke):
    result = invoke("report", *(copy_of / path for path in paths), "-o", copy_of / output)
    assert result.exit_code == 1
    assert message in str(result.exception)


def test_a_run_of_no_stage_is_refused(copy_of, invoke, tmp_path):
    (copy_of / "runs" / "both" / "run.json").write_text('{"stage": "cook", "key": "x"}')
    result = invoke("report", copy_of / "runs" / "both", "-o", tmp_path / "r.html")
    assert "it is of no stage of mertool" in str(result.exception)


@pytest.mark.slow
def test_the_whole_chain(fuse_run, make_report, tmp_path):
    """Every section reads what its stage writes, and the chain leads from the fusion to the probe."""
    document = make_report([fuse_run], tmp_path / "r.html")
    assert document["missing"] == []
    assert [run["name"] for run in document["runs"]] == ["probe", "acoustic", "visual", "fusion"]
    used = {run["name"]: run["used"] for run in document["runs"]}
    assert used["fusion"] == {"adapter": ["acoustic"], "aligner": ["visual"]}
    assert used["acoustic"] == {"probe": ["probe"]}
    for section in ("layers", "adaptation", "alignment", "fusion"):
        assert len(document[section]) == 1, section
    ledger = {row["score"]: row for row in document["ledger"]}
    assert "layers of acoustic were chosen" in ledger["fusion: fusion"]["optimistic"]
    names = {system["name"] for system in document["systems"]}
    assert {"acoustic", "acoustic, frozen features", "fusion"} <= names
    assert all(system["as_recorded"] for system in document["systems"])


def test_an_evaluation_of_numbers_is_told(copy_of, make_report, tmp_path):
    (copy_of / "metrics.json").write_text('{"labels": "clips.csv", "systems": [{"predictions": "p.csv", "ccc": {}}]}')
    document = make_report([copy_of / "metrics.json"], tmp_path / "r.html")
    assert [part["part"] for part in document["missing"]] == ["systems"]
