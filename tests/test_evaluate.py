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
    assert system["confusion"] == confusion_matrix(labels, guess, labels=range(6)).tolist()
    f1 = f1_score(labels, guess, average=None, labels=range(6))
    assert [row["f1"] for row in system["per_class"]] == pytest.approx(list(f1))
    assert system["waf"]["low"] < system["waf"]["value"] < system["waf"]["high"]


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


def test_a_file_against_itself_has_no_gain(invoke, truth, tmp_path):
    manifest, labels = truth
    path = write_predictions(tmp_path / "p.csv", [f"c{n}" for n in range(80)], guesses(labels, 0.5, 1))
    paired = evaluate(invoke, path, path, "-l", manifest)["paired"]
    assert paired["waf"] == {"difference": 0.0, "low": 0.0, "high": 0.0, "p": 1.0}
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
    }
    assert "100.0 [100.0, 100.0]" in result.stdout
    assert "as worried" in result.stdout


def test_aliases_of_labels_are_known(invoke, tmp_path, write_manifest):
    rows = [{"clip": "a", "path": "x.mp4", "label": "Anger"}, {"clip": "b", "path": "x.mp4", "label": "sadness"}]
    manifest = write_manifest(tmp_path / "m.csv", rows)
    path = write_predictions(tmp_path / "p.csv", ["a", "b"], [1, 3])
    assert evaluate(invoke, path, "-l", manifest)["systems"][0]["accuracy"]["value"] == 1.0
