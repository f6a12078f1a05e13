"""A user's error is exit code 1 and one line on standard error that says what to do; never a traceback."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mertool.errors import MertoolError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def fails(invoke):
    """A function that runs a command in this process, which must fail as the user's error; the message."""

    def run(*args):
        result = invoke(*args)
        assert isinstance(result.exception, MertoolError), (result.exception, result.stderr)
        assert result.stdout == ""
        return " ".join(str(result.exception).split())

    return run


@pytest.fixture
def manifest(tmp_path, demo_rows, write_manifest, clip_names):
    return write_manifest(tmp_path / "clips.csv", [demo_rows[clip] for clip in clip_names.labelled])


# ---------------------------------------------------------------- the process: one line, the exit code


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_after_the_work_is_done_has_its_exit_code_and_no_traceback(number, code):
    script = f"""
import os, sys
from mertool import cli
sys.argv = ["mertool", "--version"]
try:
    cli.main()
finally:
    os.kill(os.getpid(), {int(number)})
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (code, "")
    assert done.stdout.startswith("mertool ")


@pytest.mark.parametrize("case", ["missing", "columns", "parent", "encoder"])
def test_one_line_and_exit_code_one(case, run_cli, tmp_path, demo, tiny_encoders):
    blocker = tmp_path / "blocker"
    blocker.write_text("a file, not a folder")
    odd = tmp_path / "odd.csv"
    odd.write_text("clip,path,emotion,lable\na,a.mp4,x,y\n")
    clips, encoder = demo / "clips", tiny_encoders["hubert"]
    command, words = {
        "missing": (["extract", "audio", tmp_path / "no.csv", "-o", tmp_path / "a.h5"], ["no.csv does not exist"]),
        "columns": (
            ["extract", "audio", odd, "-o", tmp_path / "a.h5"],
            ["2 faults", "'emotion'", "'lable': did you mean 'label'?"],
        ),
        "parent": (["extract", "audio", clips, "-o", blocker / "a.h5", "--encoder", encoder], ["cannot write"]),
        "encoder": (
            ["extract", "audio", clips, "-o", tmp_path / "a.h5", "--encoder", "hubert-lrge-zh"],
            ["did you mean 'hubert-large-zh'?"],
        ),
    }[case]
    result = run_cli(*command)
    assert result.returncode == 1
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    assert all(word in lines[0] for word in words)


def test_a_bug_keeps_its_traceback(run_cli, tmp_path):
    """Only MertoolError is a user's error: anything else must be seen."""
    (tmp_path / "sitecustomize.py").write_text(
        "import mertool.encoders\n"
        "class Broken(tuple):\n"
        "    def __iter__(self): raise ZeroDivisionError('a bug')\n"
        "mertool.encoders.ENCODERS = Broken()\n"
    )
    from conftest import ROOT

    result = run_cli("models", "--json", PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert result.returncode == 1
    assert "Traceback" in result.stderr
    assert "a bug" in result.stderr


def test_help_starts_without_torch(run_cli, tmp_path):
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    from conftest import ROOT

    for command in (["--help"], ["extract", "audio", "--help"], ["models"], ["--version"]):
        assert run_cli(*command, PYTHONPATH=f"{tmp_path}:{ROOT}").returncode == 0


# ---------------------------------------------------------------- manifests


def test_an_empty_folder(fails, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "holds no video or audio file" in fails("extract", "audio", tmp_path / "empty", "-o", tmp_path / "a.h5")
    assert "holds no video or audio file" in fails("manifest", tmp_path / "empty", "-o", tmp_path / "m.csv")


def test_duplicate_ids_are_all_named(fails, tmp_path):
    path = tmp_path / "m.csv"
    path.write_text("clip,path\na,a.mp4\nb,b.mp4\na,c.mp4\nb,d.mp4\n")
    message = fails("extract", "audio", path, "-o", tmp_path / "a.h5")
    assert "clip id 'a' stands already in row 2" in message
    assert "clip id 'b' stands already in row 3" in message


def test_a_media_file_is_no_manifest(fails, demo, tmp_path):
    message = fails("extract", "audio", demo / "clips" / "spk01_001.mp4", "-o", tmp_path / "a.h5")
    assert "is a media file: give the folder it lies in" in message


@pytest.mark.parametrize("stage", ["probe-layers", "fuse"])
def test_unknown_labels_are_named_with_the_valid_ones(stage, fails, audio_store, manifest, tmp_path):
    manifest.write_text(manifest.read_text().replace(",worried,", ",worry-ed,"))
    message = fails(stage, audio_store, "-m", manifest, "-o", tmp_path / "run")
    assert "unknown labels 'worry-ed' (" in message
    assert "valid: neutral, angry, happy, sad, worried, surprise" in message
    assert not (tmp_path / "run").exists()


def test_unknown_labels_in_finetune(fails, manifest, tiny_encoders, tmp_path):
    manifest.write_text(manifest.read_text().replace(",worried,", ",worry-ed,"))
    options = ["--layers", "2-3", "--encoder", tiny_encoders["hubert"]]
    assert "unknown labels 'worry-ed'" in fails("finetune", manifest, "-o", tmp_path / "run", *options)


@pytest.mark.parametrize("stage", ["probe-layers", "fuse"])
def test_a_manifest_without_labels(stage, fails, audio_store, tmp_path, demo_rows, write_manifest, clip_names):
    rows = [{**demo_rows[clip], "label": ""} for clip in clip_names.labelled]
    manifest = write_manifest(tmp_path / "m.csv", rows)
    assert "has no labelled training clip" in fails(stage, audio_store, "-m", manifest, "-o", tmp_path / "run")


@pytest.mark.parametrize("stage", ["probe-layers", "fuse"])
def test_fewer_clips_than_folds(stage, fails, audio_store, tmp_path, demo_rows, write_manifest):
    rows = [{**demo_rows[clip], "speaker": ""} for clip in ("spk01_001", "spk01_005", "spk01_012")]
    manifest = write_manifest(tmp_path / "m.csv", rows)
    message = fails(stage, audio_store, "-m", manifest, "-o", tmp_path / "run", "--folds", 5)
    assert "3 labelled clips with features are fewer than 5 folds" in message


def test_fewer_clips_than_folds_in_finetune(fails, tmp_path, demo_rows, write_manifest, tiny_encoders):
    manifest = write_manifest(tmp_path / "m.csv", [demo_rows[clip] for clip in ("spk01_001", "spk01_005")])
    options = ["--layers", "2", "--encoder", tiny_encoders["hubert"]]
    assert "fewer than 5 folds" in fails("finetune", manifest, "-o", tmp_path / "run", *options)


# ---------------------------------------------------------------- outputs


@pytest.fixture
def blocker(tmp_path):
    path = tmp_path / "blocker"
    path.write_text("a file, not a folder")
    return path


def test_a_store_below_a_file(fails, blocker, manifest, tiny_encoders):
    for modality, encoder in (("audio", "hubert"), ("video", "clip"), ("text", "bert")):
        message = fails("extract", modality, manifest, "-o", blocker / "s.h5", "--encoder", tiny_encoders[encoder])
        assert "cannot write" in message
        assert "blocker" in message
    assert "cannot write" in fails("extract", "faces", manifest, "-o", blocker / "s.h5")


def test_a_run_below_a_file(fails, blocker, manifest, audio_store, frames_store, acoustic_store, tiny_encoders):
    probe = ["probe-layers", audio_store, "-m", manifest, "--folds", 3]
    fuse = ["fuse", audio_store, "-m", manifest, "--folds", 3, "--epochs", 1, "--seeds", 1]
    tune = ["finetune", manifest, "--layers", 2, "--encoder", tiny_encoders["hubert"], "--folds", 3, "--epochs", 1]
    join = ["align", "--audio", acoustic_store, "--video", frames_store, "--aligned", blocker.parent / "a.h5"]
    for command in (probe, fuse, [*join, "--epochs", 1], tune):
        assert "cannot write" in fails(*command, "-o", blocker / "run")


def test_a_run_that_cannot_be_written_is_refused_before_the_work(blocker, manifest, audio_store, fails, monkeypatch):
    import mertool.probe_layers

    monkeypatch.setattr(mertool.probe_layers, "probe_all", lambda *_: pytest.fail("began to work"))
    fails("probe-layers", audio_store, "-m", manifest, "--folds", 3, "-o", blocker / "run")


def test_predictions_and_scores_below_a_file(fails, blocker, manifest, fuse_run, tmp_path):
    assert "cannot write" in fails("predict", fuse_run, manifest, "-o", blocker / "p.csv")
    predictions = tmp_path / "p.csv"
    predictions.write_text("clip,label,p_a,p_b,modalities\nx,a,0.9,0.1,audio\n")
    assert "cannot write" in fails("evaluate", predictions, "-l", manifest, "-o", blocker / "m.json")


def test_a_store_in_place_of_a_folder(fails, manifest, tmp_path, tiny_encoders):
    message = fails("extract", "audio", manifest, "-o", tmp_path, "--encoder", tiny_encoders["hubert"])
    assert "it is a folder" in message


def test_a_run_in_a_folder_of_something_else(fails, audio_store, manifest, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    message = fails("probe-layers", audio_store, "-m", manifest, "-o", tmp_path / "mine", "--overwrite")
    assert "not empty and not a run of mertool" in message
    assert (tmp_path / "mine" / "thesis.tex").exists()


def test_a_run_in_place_of_a_run_of_another_stage(fails, fuse_run, audio_store, manifest, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(fuse_run, other)
    message = fails("probe-layers", audio_store, "-m", manifest, "-o", other, "--overwrite")
    assert "holds a run of fuse: give another -o" in message


# ---------------------------------------------------------------- names and choices


def test_a_misspelt_method(fails, manifest, tmp_path, tiny_encoders):
    options = ["--layers", 2, "--encoder", tiny_encoders["hubert"], "--method", "botleneck"]
    message = fails("finetune", manifest, "-o", tmp_path / "run", *options)
    assert "unknown PEFT method 'botleneck': did you mean 'bottleneck'? valid: bitfit, bottleneck," in message


def test_a_misspelt_head(fails, manifest, audio_store, tmp_path):
    message = fails("fuse", audio_store, "-m", manifest, "-o", tmp_path / "run", "--head", "atention")
    assert "unknown fusion head 'atention': did you mean 'attention'? valid: attention, attention-mer" in message


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--encoder", "bert-bse", "did you mean 'bert-base'?"),
        ("--pool", "maen", "unknown pooling 'maen': did you mean 'mean'? valid: mean, mean-std, none"),
        ("--storage", "float61", "unknown storage 'float61': did you mean 'float16'?"),
        ("--dtype", "flot32", "unknown dtype 'flot32': did you mean 'float32'?"),
        ("--device", "gpu", "unknown device 'gpu': valid: auto, cpu, cuda, cuda:N, mps"),
        ("--device", "cuda:99", "device 'cuda:99' is not there"),
        ("--layers", "2-9", "are not in this encoder; valid: all, last"),
        ("--layers", "two", "layers 'two' cannot be read"),
    ],
)
def test_a_wrong_choice_names_the_valid_ones(option, value, words, fails, manifest, tmp_path, tiny_encoders):
    encoder = [] if option == "--encoder" else ["--encoder", tiny_encoders["bert"]]
    message = fails("extract", "text", manifest, "-o", tmp_path / "t.h5", *encoder, option, value)
    assert words in message
    assert not (tmp_path / "t.h5").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--engine", "lokal"], "unknown engine 'lokal': did you mean 'local'? valid: local, ray"),
        (["--engine", "nonsense"], "unknown engine 'nonsense': valid: local, ray"),
        (["--ray-address", "auto"], "--ray-address belongs to --engine ray"),
        (["--engine", "ray", "--device", "cuda:0"], "each worker gets a GPU of its own, give cuda"),
        (["--batch-seconds", -1], "--batch-seconds -1: give at least 0 seconds"),
        (["--clip-timeout", 0], "--clip-timeout 0: give more than 0 seconds"),
    ],
)
@pytest.mark.parametrize("modality", ["audio", "video"])
def test_options_of_the_engine_that_do_not_fit(modality, options, words, fails, manifest, tmp_path, tiny_encoders):
    encoder = tiny_encoders[{"audio": "hubert", "video": "clip"}[modality]]
    assert words in fails("extract", modality, manifest, "-o", tmp_path / "s.h5", "--encoder", encoder, *options)
    assert [path.name for path in tmp_path.iterdir()] == ["clips.csv"]


def test_models_of_a_misspelt_modality(fails):
    assert "unknown modality 'audoi': did you mean 'audio'?" in fails("models", "--modality", "audoi")


@pytest.mark.parametrize("classes", ["neutral", "a,a", ""])
def test_classes_that_are_no_set(classes, fails, manifest, audio_store, tmp_path):
    message = fails("fuse", audio_store, "-m", manifest, "-o", tmp_path / "run", "--classes", classes)
    assert "give at least two different names" in message


def test_finetune_needs_layers_or_a_probe(fails, manifest, tmp_path):
    assert "Give --probe RUN" in fails("finetune", manifest, "-o", tmp_path / "run")


@pytest.mark.parametrize("layers", ["0", "0-2", "9"])
def test_finetune_of_layers_that_are_no_blocks(layers, fails, manifest, tmp_path, tiny_encoders):
    options = ["--layers", layers, "--encoder", tiny_encoders["hubert"], "--folds", 3, "--epochs", 1]
    message = fails("finetune", manifest, "-o", tmp_path / "run", *options)
    assert "8" in message
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------- inputs of the wrong kind


@pytest.mark.parametrize("stage", ["probe-layers", "fuse"])
def test_a_store_that_is_not_there(stage, fails, manifest, tmp_path):
    message = fails(stage, tmp_path / "no.h5", "-m", manifest, "-o", tmp_path / "run")
    assert "no.h5 does not exist" in message
    assert "mertool extract" in message


def test_a_text_file_is_no_store(fails, manifest, tmp_path):
    (tmp_path / "s.h5").write_text("not HDF5")
    message = fails("fuse", tmp_path / "s.h5", "-m", manifest, "-o", tmp_path / "run")
    assert "s.h5 is not a readable HDF5 file" in message


def test_a_folder_that_is_no_run(fails, manifest, tmp_path):
    (tmp_path / "run").mkdir()
    assert "there is no run.json" in fails("predict", tmp_path / "run", manifest, "-o", tmp_path / "p.csv")
    assert "there is no run.json" in fails("finetune", manifest, "--probe", tmp_path / "run", "-o", tmp_path / "f")


def test_a_run_of_another_stage(fails, manifest, probe_run, tmp_path):
    message = fails("predict", probe_run, manifest, "-o", tmp_path / "p.csv")
    assert "is a run of probe-layers, one of fuse is needed" in message


def test_a_damaged_run(fails, manifest, probe_run, tmp_path):
    shutil.copytree(probe_run, tmp_path / "probe")
    (tmp_path / "probe" / "run.json").write_text('{"stage": ')
    message = fails("finetune", manifest, "--probe", tmp_path / "probe", "-o", tmp_path / "f")
    assert "run.json cannot be read" in message


def test_two_stores_of_one_name(fails, audio_store, manifest, tmp_path):
    (tmp_path / "more").mkdir()
    shutil.copy(audio_store, tmp_path / "more" / "audio.h5")
    message = fails("fuse", audio_store, tmp_path / "more" / "audio.h5", "-m", manifest, "-o", tmp_path / "run")
    assert "two stores are named 'audio'" in message


def test_three_predictions_files(fails, manifest, tmp_path):
    message = fails("evaluate", "a.csv", "b.csv", "c.csv", "-l", manifest)
    assert "3 predictions files: give one, or two" in message


def test_a_manifest_is_no_predictions_file(fails, manifest):
    assert "is not a predictions file" in fails("evaluate", manifest, "-l", manifest)


def test_json_has_nothing_else_on_standard_output(invoke, manifest, tmp_path, tiny_encoders):
    result = invoke(
        *("extract", "text", manifest, "-o", tmp_path / "t.h5", "--encoder", tiny_encoders["bert"], "--json")
    )
    assert json.loads(result.stdout)["clips"] == 24
