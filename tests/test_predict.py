"""`mertool predict`: raw clips in, labels out, with the bundle alone."""

import csv
import json
import shutil

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
def predicted(fuse_run, clips, invoke, tmp_path_factory):
    """Predictions by the whole bundle from another place, whose encoders' folders are gone; the JSON object."""
    folder = tmp_path_factory.mktemp("moved")
    bundle = folder / "bundle"
    shutil.copytree(fuse_run, bundle)
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
    import mertool.predict

    bundle, output, _ = predicted
    before = output.read_bytes()
    monkeypatch.setattr(mertool.predict, "assemble", lambda *_: pytest.fail("an encoder was loaded"))
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


# ---------------------------------------------------------------- a small bundle, text alone


@pytest.fixture(scope="module")
def text_bundle(tmp_path_factory, tiny_encoders, workspace, call):
    """A bundle over text whose encoder's folder was deleted afterwards."""
    folder = tmp_path_factory.mktemp("text")
    encoder = folder / "encoder"
    shutil.copytree(tiny_encoders["bert"], encoder)
    call("extract", "text", workspace.manifest, "-o", folder / "text.h5", "--encoder", encoder, "-q")
    given = ["--folds", 3, "--seeds", 1, "--epochs", 3, "--width", 8, "-q"]
    call("fuse", folder / "text.h5", "-m", workspace.manifest, "-o", folder / "run", *given)
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
    assert list(rows[0]) == ["clip", "label", "probabilities", "modalities"]
    assert lines.modalities == table.modalities
    np.testing.assert_allclose(lines.probabilities, table.probabilities, atol=1e-6)


def test_the_probabilities_are_those_of_the_mean_logits(bundle, clips, call, tmp_path):
    import torch

    from mertool import fusion
    from mertool.runs import load_tensors
    from mertool.store import FeatureStore

    call("predict", bundle, clips, "-o", tmp_path / "p.csv", "-q", "--max-failed", 1)
    found = Predictions.read(tmp_path / "p.csv")
    state = load_tensors(bundle / "members.safetensors")
    with FeatureStore(tmp_path / "p.csv.features" / "text.h5") as store:
        values = torch.from_numpy(store.read(found.clips))
    logits = []
    for member in range(3):
        head = fusion.build("attention", [(1, 96)], 6, 8, 0.3).eval()
        head.load_state_dict({name: value[member] for name, value in state.items()})
        with torch.no_grad():
            logits.append(head([values], torch.ones(len(values), 1, dtype=torch.bool)))
    np.testing.assert_allclose(found.probabilities, torch.stack(logits).mean(0).softmax(1), atol=2e-6)


def test_a_changed_encoder_is_named(bundle, clips, invoke, tmp_path):
    config = bundle / "part0" / "encoder" / "model.safetensors"
    content = bytearray(config.read_bytes())
    content[-1] ^= 1
    config.write_bytes(content)
    result = invoke("predict", bundle, clips, "-o", tmp_path / "p.csv")
    assert isinstance(result.exception, MertoolError)
    assert "encoder 'encoder' is not the one of" in str(result.exception)
    assert not (tmp_path / "p.csv").exists()


def test_a_bundle_that_lost_its_weights(bundle, clips, invoke, tmp_path):
    (bundle / "members.safetensors").unlink()
    result = invoke("predict", bundle, clips, "-o", tmp_path / "p.csv")
    assert isinstance(result.exception, MertoolError)
    assert "members.safetensors" in str(result.exception)


def test_another_bundle_does_not_use_the_cache_of_the_first(bundle, clips, call, tiny_encoders, workspace, tmp_path):
    call("predict", bundle, clips, "-o", tmp_path / "p.csv", "-q", "--max-failed", 1)
    before = Predictions.read(tmp_path / "p.csv").probabilities
    other = ["--encoder", tiny_encoders["roberta"], "-q"]
    call("extract", "text", workspace.manifest, "-o", tmp_path / "text.h5", *other)
    given = ["--folds", 3, "--seeds", 1, "--epochs", 1, "--width", 8, "-q"]
    call("fuse", tmp_path / "text.h5", "-m", workspace.manifest, "-o", tmp_path / "other", *given)
    call("predict", tmp_path / "other", clips, "-o", tmp_path / "p.csv", "-q", "--max-failed", 1)
    assert not np.allclose(Predictions.read(tmp_path / "p.csv").probabilities, before, atol=1e-3)


def test_a_changed_transcript_changes_its_own_row_alone(bundle, clips, demo_rows, write_manifest, call, tmp_path):
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
