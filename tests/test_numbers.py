"""From labels to predictions of a number: manifest, extract, probe-layers, fuse, predict and evaluate."""

import csv
import json

import pytest

from mertool.predictions import NumberPredictions, read_predictions

VALENCE = {"happy": 2.0, "surprise": 1.0, "neutral": 0.0, "worried": -1.0, "sad": -2.0, "angry": -2.5}


@pytest.fixture
def rated(workspace, demo_rows, write_manifest, tmp_path):
    """The workspace's clips that have a transcript, with a valence by their emotion; two of them are tests."""
    clips = [clip for clip in workspace.clips if demo_rows.get(clip, {}).get("text") and demo_rows[clip]["label"]]
    rows = [
        {**demo_rows[clip], "valence": str(VALENCE[demo_rows[clip]["label"]]), "split": "test" if number < 2 else ""}
        for number, clip in enumerate(clips)
    ]
    return write_manifest(tmp_path / "clips.csv", rows), clips


def test_a_number_from_the_manifest_to_predictions(rated, tiny_encoders, call, invoke, tmp_path):
    manifest, clips = rated
    store, target = tmp_path / "text.h5", ["--target", "valence", "--folds", 3, "-q"]
    call("extract", "text", manifest, "-o", store, "--encoder", tiny_encoders["bert"], "--layers", "all", "-q")
    call("probe-layers", store, "-m", manifest, "-o", tmp_path / "probe", *target, "--no-mlp", "--seeds", 1)
    call("fuse", store, "-m", manifest, "-o", tmp_path / "fusion", *target, "--seeds", 1, "--epochs", 5, "--width", 8)
    probed = json.loads((tmp_path / "probe" / "metrics.json").read_text())
    assert (probed["target"], probed["clips"]) == ("valence", len(clips) - 2)
    call("predict", tmp_path / "fusion", manifest, "-o", tmp_path / "p.csv", "-q")
    call("predict", tmp_path / "fusion", manifest, "-o", tmp_path / "p.jsonl", "-q")
    with open(tmp_path / "p.csv", newline="", encoding="utf-8") as file:
        assert next(csv.reader(file)) == ["clip", "path", "valence", "modalities", "missing"]
    predictions = read_predictions(tmp_path / "p.csv")
    assert isinstance(predictions, NumberPredictions)
    assert (predictions.name, predictions.clips) == ("valence", tuple(clips))
    assert read_predictions(tmp_path / "p.jsonl").numbers.tolist() == predictions.numbers.tolist()
    result = invoke("evaluate", tmp_path / "p.csv", "-l", manifest, "--json")
    assert result.exit_code == 0, result.exception
    found = json.loads(result.stdout)
    assert (found["target"], found["clips"], found["intervals"]) == ("valence", len(clips), "speakers")
    assert found["systems"][0]["mae"]["value"] < 3
    lines = [f"{clips[0]},sad,0.2,0.8,text"]
    (tmp_path / "classes.csv").write_text("\n".join(["clip,label,p_happy,p_sad,modalities", *lines]) + "\n")
    other = tmp_path / "other.csv"
    other.write_text(f"clip,path,label\n{clips[0]},x.mp4,sad\n")
    result = invoke(
        "evaluate", tmp_path / "classes.csv", "-l", other, "--bundle", tmp_path / "fusion", "--missing", "text"
    )
    assert "predicts valence" in str(result.exception)
    result = invoke("report", tmp_path / "fusion", "-o", tmp_path / "report.html")
    assert "is a run of valence, a number: a report shows runs of classes, leave it out" in str(result.exception)
    # A submission holds emotions.
    (tmp_path / "candidates.csv").write_text(f"name\n{clips[0]}\n")
    given = ["--submission", "mer2024", "--candidates", tmp_path / "candidates.csv"]
    result = invoke("predict", tmp_path / "fusion", manifest, "-o", tmp_path / "s.csv", *given)
    assert "predicts valence, a submission holds emotions" in str(result.exception)
