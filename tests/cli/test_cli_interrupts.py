"""An interrupted command says in one line what it keeps, by stage."""

import importlib

import pytest

from mertool.cli.interrupts import Interrupted, kept_adapters, kept_checkpoint, kept_clips, kept_features

NOTHING = "interrupted: run the same command again; it starts anew, and what was there before is unchanged"


@pytest.fixture
def touch(tmp_path):
    """A function (path) that makes a file below the test's folder."""

    def make(name):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        return path

    return make


@pytest.mark.parametrize("parts", ["audio.h5.parts", "audio.2-of-4.h5.parts", "faces.h5.parts"])
def test_parts_of_an_extraction(parts, touch, tmp_path):
    touch(f"{parts}/part-1.h5")
    touch("other.h5.parts/part-1.h5")
    assert kept_clips([tmp_path / "audio.h5"]) == f"finished clips are kept in {tmp_path / parts}"


def test_a_lock_is_no_part(touch, tmp_path):
    touch("audio.h5.parts/lock")
    assert kept_clips([tmp_path / "audio.h5"]) == ""


def test_transcripts_of_an_extraction(touch, tmp_path):
    touch("text.transcripts.csv")
    assert "text.transcripts.csv" in kept_clips([tmp_path / "text.h5"])


def test_features_of_a_prediction(touch, tmp_path):
    assert kept_features(tmp_path / "p.csv.features") == ""
    touch("p.csv.features/audio.h5.parts/part-1.h5")
    assert kept_features(tmp_path / "p.csv.features") == f"finished clips are kept in {tmp_path / 'p.csv.features'}"


def test_adapters(touch, tmp_path):
    runs = [tmp_path / "run-lora", tmp_path / "run-dora"]
    assert kept_adapters(runs) == ""
    touch("frozen-layers/1.h5")
    assert kept_adapters(runs) == "the features in frozen-layers are kept, no adapter is finished yet"
    touch(".run-lora.unfinished/fold0.safetensors")
    assert kept_adapters(runs) == "1 finished adapter and the features in frozen-layers are kept"
    touch(".run-dora.unfinished/fold0.safetensors")
    assert kept_adapters(runs).startswith("2 finished adapters and")


def test_a_checkpoint(touch, tmp_path):
    assert kept_checkpoint(tmp_path / "run") == ""
    touch(".run.unfinished-0123.safetensors")
    assert kept_checkpoint(tmp_path / "run").startswith("the training continues from its last checkpoint")


@pytest.mark.parametrize(
    ("command", "stage", "left", "words"),
    [
        ("extract text M -o {}/t.h5", "extract", "t.h5.parts/part-1.h5", "finished clips are kept in {}/t.h5.parts"),
        ("probe-layers S -m M -o {}/run", "probe_layers", None, ""),
        ("finetune M --layers 2 -o {}/run", "finetune", ".run.unfinished/fold0.safetensors", "1 finished adapter and"),
        ("align --audio S --video S -o {}/run", "align", ".run.unfinished-1.safetensors", "the training continues"),
        ("fuse S -m M -o {}/run", "fuse", None, ""),
        ("predict B M -o {}/p.csv", "predict", "p.csv.features/a.h5", "finished clips are kept in {}/p.csv.features"),
        ("evaluate P -l M", "evaluate", None, ""),
    ],
)
def test_each_stage_says_what_it_keeps(
    command, stage, left, words, workspace, audio_store, text_bundle_run, invoke, touch, tmp_path, monkeypatch
):
    def interrupt(*_, **__):
        if left:
            touch(left)
        raise Interrupted(130)

    monkeypatch.setattr(importlib.import_module(f"mertool.{stage}"), stage, interrupt)
    given = {"M": workspace.manifest, "S": audio_store, "B": text_bundle_run, "P": tmp_path / "p.csv"}
    arguments = [given.get(word, word.replace("{}", str(tmp_path))) for word in command.split()]
    with pytest.raises(Interrupted) as caught:
        invoke(*arguments)
    message = caught.value.message
    assert "\n" not in message
    if words:
        expected = words.replace("{}", str(tmp_path))
        assert message.startswith(f"interrupted: run the same command again to resume; {expected}")
    else:
        assert message == NOTHING


@pytest.fixture(scope="module")
def text_bundle_run(make_bundle, text_store, tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("bundle") / "run", [text_store])
