"""`mertool finetune`: an adapter per fold and one on all clips."""

import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from fixtures.run_files import files_of

from mertool.adapters.blocks import AdaptableBlocks
from mertool.adapters.methods import load_mean_offsets
from mertool.errors import MertoolError
from mertool.predictions import Predictions
from mertool.runs import load_tensors
from mertool.store import FeatureStore

HELD_OUT = {
    "frozen": "held_out-frozen.csv",
    "adapted": "held_out.csv",
    "adapted_probe": "held_out-probe.csv",
    "averaged": "held_out-averaged.csv",
}
CLIPS = ("spk01_001", "spk01_005", "spk02_003", "spk02_004", "spk03_002", "spk03_003", "spk04_002", "spk04_005")


@pytest.fixture
def manifest(tmp_path, demo_rows, write_manifest):
    """A function (rows by clip) that writes a manifest of eight clips of four speakers, two classes."""

    def write(**changes):
        rows = []
        for number, clip in enumerate(CLIPS):
            label = ("sad", "happy")[number % 2]
            rows.append({**demo_rows[clip], "label": label, "end": "0.8", **changes.get(clip, {})})
        return write_manifest(tmp_path / "clips.csv", rows)

    return write


@pytest.fixture
def finetune(invoke, tiny_encoders, tmp_path):
    """A function (manifest, run, *options) that trains for three epochs in two folds; its JSON object."""

    def run(source, name="run", *options, encoder="hubert_group"):
        size = [] if {"ia3", "bitfit", "full"} & set(options) else ["--size", 4]
        arguments = ["--encoder", tiny_encoders[encoder], "--layers", "2-3", *size, "--folds", 2, "--epochs", 3]
        result = invoke("finetune", source, "-o", tmp_path / name, *arguments, "--json", *options)
        assert result.exit_code == 0, (result.exception, result.stderr)
        return json.loads(result.stdout)

    return run


def info(run):
    return json.loads((run / "run.json").read_text())


def adapter(run, name):
    return load_tensors(run / "adapters" / name / "adapter_model.safetensors")


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# ---------------------------------------------------------------- the run


def test_finetune_trains_an_adapter_per_fold_and_one_on_all_clips(finetune_run):
    names = {folder.name for folder in (finetune_run / "adapters").iterdir()}
    assert names == {"fold0", "fold1", "fold2", "final"}
    adapters = [adapter(finetune_run, name) for name in sorted(names)]
    assert not any(same(a, b) for a, b in pairwise(adapters))


def test_each_clip_has_the_adapter_of_the_fold_that_held_it_out(finetune_run, clip_names):
    facts = info(finetune_run)
    assert facts["adapter_of_clip"] == {clip: f"fold{fold}" for clip, fold in facts["folds"].items()}
    assert set(facts["folds"]) == set(clip_names.labelled) - {clip_names.no_sound}
    speakers = {}
    for clip, fold in facts["folds"].items():
        speakers.setdefault(clip[:5], set()).add(fold)
    assert all(len(folds) == 1 for folds in speakers.values())


def test_window_and_encoder_are_those_of_the_probe(finetune_run, probe_run):
    first, last = info(probe_run)["window"]
    assert info(finetune_run)["layers"] == list(range(first, last + 1))
    assert info(finetune_run)["encoder"]["name"] == "tiny-random-hubert"
    blocks = {int(name.split("layers.")[1].split(".")[0]) + 1 for name in adapter(finetune_run, "final")}
    assert blocks == set(range(first, last + 1))


def test_metrics_and_plots(finetune_run, clip_names):
    metrics = json.loads((finetune_run / "metrics.json").read_text())
    assert metrics["skipped"] == {clip_names.no_sound: "no_audio"}
    assert metrics["clips"] == len(clip_names.labelled) - 1
    assert 0 < metrics["trainable"] < 0.1 * metrics["parameters"]
    assert set(metrics["history"]) == {"fold0", "fold1", "fold2", "final"}
    assert all(len(history["label_loss"]) == 4 for history in metrics["history"].values())
    first, last = info(finetune_run)["layers"][0], info(finetune_run)["layers"][-1]
    assert set(metrics["probes"]) == {str(layer) for layer in range(first, last + 1)}
    for probe in metrics["probes"].values():
        assert 0 <= probe["cka"] <= 1.0001
        difference = probe["adapted"]["waf"]["value"] - probe["frozen"]["waf"]["value"]
        assert probe["gain"]["difference"] == pytest.approx(difference)
    assert set(metrics["gains"]) == {"adapted", "adapted_probe", "averaged"}
    for system, gain in metrics["gains"].items():
        difference = metrics[system]["waf"]["value"] - metrics["frozen"]["waf"]["value"]
        assert gain["difference"] == pytest.approx(difference)
    assert metrics["interval"] == "speakers"
    files = {"losses.png", "losses.svg", "layers.png", "layers.svg", "folds.csv", *HELD_OUT.values()}
    assert files <= {file.name for file in finetune_run.iterdir()}


def test_held_out_predictions_are_those_that_are_scored(finetune_run, clip_names, demo_rows):
    facts, metrics = info(finetune_run), json.loads((finetune_run / "metrics.json").read_text())
    probabilities = {}
    for system, file in HELD_OUT.items():
        predictions = Predictions.read(finetune_run / file)
        assert set(predictions.clips) == set(facts["folds"])
        pairs = zip(predictions.clips, predictions.labels, strict=True)
        right = [demo_rows[clip]["label"] == label for clip, label in pairs]
        assert np.mean(right) == pytest.approx(metrics[system]["accuracy"]["value"])
        probabilities[system] = predictions.probabilities
    mean = (probabilities["frozen"] + probabilities["adapted"]) / 2
    np.testing.assert_allclose(probabilities["averaged"], mean, atol=2e-6)


def test_nothing_of_an_unfinished_run_is_left(finetune_run):
    assert not list(finetune_run.parent.glob(".*"))


def test_the_adapter_of_a_fold_does_not_depend_on_the_labels_of_its_clips(manifest, finetune, tmp_path):
    """Two clips of one speaker change labels; the adapter of the fold that holds them out stays the same."""
    finetune(manifest(), "before")
    folds = info(tmp_path / "before")["folds"]
    swapped = {"spk01_001": {"label": "happy"}, "spk01_005": {"label": "sad"}}
    finetune(manifest(**swapped), "after")
    assert info(tmp_path / "after")["folds"] == folds
    held_out = f"fold{folds['spk01_001']}"
    trained_on = f"fold{1 - folds['spk01_001']}"
    assert same(adapter(tmp_path / "before", held_out), adapter(tmp_path / "after", held_out))
    for name in (trained_on, "final"):
        assert not same(adapter(tmp_path / "before", name), adapter(tmp_path / "after", name))


def test_the_adapter_of_a_fold_does_not_depend_on_the_audio_of_its_clips(manifest, finetune, tmp_path, demo_rows):
    """Up to rounding: clips are pooled in batches by length, and these change with the audio."""
    finetune(manifest(), "before")
    folds = info(tmp_path / "before")["folds"]
    finetune(manifest(spk01_001={"path": demo_rows["spk05_005"]["path"]}), "after")
    held_out = f"fold{folds['spk01_001']}"

    def change(name):
        old, new = (adapter(tmp_path / run, name) for run in ("before", "after"))
        return max(float((old[key] - new[key]).abs().max()) for key in old)

    # Adam's first steps are of one size, however small the gradient: rounding may move a parameter by a little more.
    assert 20 * change(held_out) < change("final")


def test_the_same_seed_gives_the_same_adapters(manifest, finetune, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        finetune(manifest(), name, "--seed", seed)
    assert same(adapter(tmp_path / "a", "final"), adapter(tmp_path / "b", "final"))
    assert not same(adapter(tmp_path / "a", "final"), adapter(tmp_path / "c", "final"))


def test_a_second_run_is_reused_until_a_file_changes(manifest, finetune, demo_rows, tmp_path):
    shutil.copy(demo_rows["spk01_001"]["path"], tmp_path / "own.mp4")
    source = manifest(spk01_001={"path": "own.mp4"})
    assert finetune(source)["reused"] is False
    assert finetune(source)["reused"] is True
    shutil.copy(demo_rows["spk05_005"]["path"], tmp_path / "own.mp4")
    assert finetune(source)["reused"] is False


@pytest.mark.parametrize("method", ["bottleneck", "lora"])
@pytest.mark.parametrize("encoder", ["hubert", "wavlm", "data2vec", "whisper"])
def test_methods_and_encoders(method, encoder, manifest, finetune, tmp_path):
    result = finetune(manifest(), "run", "--method", method, encoder=encoder)
    assert result["method"] == method
    assert np.isfinite(result["history"]["final"]["label_loss"]).all()
    assert (tmp_path / "run" / "adapters" / "final" / "adapter_model.safetensors").exists()


# ---------------------------------------------------------------- losses, prefix, folds, sizes


@pytest.mark.parametrize("exact", [(), ("--no-prefix-cache",)])
@pytest.mark.parametrize("target", ["units", "features", "logmel"])
def test_every_reconstruction_target(target, exact, manifest, finetune):
    source = manifest(spk01_001={"label": "", "split": "unlabelled"})
    result = finetune(
        source,
        "run",
        "--mask-target",
        target,
        "--learning-rate",
        0.02,
        "--mask-weight",
        1,
        "--epochs",
        8,
        *exact,
    )
    assert (result["clips"], result["unlabelled"]) == (7, 1)
    losses = result["history"]["final"]["mask_loss"]
    assert np.mean(losses[-2:]) < np.mean(losses[:2])
    assert finetune(source, "none", "--mask-weight", 1, "--unlabelled", 0)["unlabelled"] == 0


@pytest.mark.parametrize(("target", "exact"), [("units", ()), ("features", ()), ("logmel", ("--no-prefix-cache",))])
def test_every_reconstruction_target_of_a_whisper(target, exact, manifest, finetune):
    """Standardized values, of which random heads explain nothing, or as many units as fit the frames of the clips."""
    losses = finetune(manifest(), "run", "--mask-weight", 1, "--mask-target", target, *exact, encoder="whisper")[
        "history"
    ]["final"]
    at_chance = np.log(6) if target == "units" else 1.0  # 40 frames of each of 7 training clips make 7 units
    assert losses["mask_loss"][0] == pytest.approx(at_chance, rel=0.5)


def test_mixed_precision_trains_float32_adapters(manifest, finetune, tmp_path):
    masked = ["--mask-weight", 0.1, "--epochs", 2]
    mixed = finetune(manifest(), "mixed", *masked, "--dtype", "bfloat16")
    plain = finetune(manifest(), "plain", *masked, "--dtype", "float32")
    assert {str(value.dtype) for value in adapter(tmp_path / "mixed", "final").values()} == {"torch.float32"}
    losses = [result["history"]["final"]["mask_loss"] for result in (mixed, plain)]
    np.testing.assert_allclose(*losses, rtol=0.02)
    assert losses[0] != losses[1]


def test_the_prefix_is_stored_once_for_all_runs_beside_each_other(manifest, finetune, tmp_path):
    finetune(manifest(), "a")
    store = next((tmp_path / "frozen-layers").glob("*.h5"))
    made = store.stat().st_mtime_ns
    finetune(manifest(), "b", "--method", "lora")
    assert [file.name for file in (tmp_path / "frozen-layers").glob("*.h5")] == [store.name]
    assert store.stat().st_mtime_ns == made


def test_folds_of_a_file(manifest, finetune, tmp_path):
    fold_of_clip = {clip: number % 2 for number, clip in enumerate(sorted(CLIPS, reverse=True))}
    lines = [f"{clip},{fold}\n" for clip, fold in fold_of_clip.items()]
    (tmp_path / "folds.csv").write_text("clip,fold\n" + "".join(lines))
    source = manifest(**{clip: {"speaker": ""} for clip in CLIPS})
    labels = {clip: ("sad", "happy")[number // 2 % 2] for number, clip in enumerate(sorted(CLIPS, reverse=True))}
    source = manifest(**{clip: {"speaker": "", "label": label} for clip, label in labels.items()})
    result = finetune(source, "run", "--folds", tmp_path / "folds.csv")
    assert info(tmp_path / "run")["folds"] == fold_of_clip
    assert result["interval"] == "clips"


def test_a_budget_sets_the_size(manifest, invoke, tiny_encoders, tmp_path):
    each = 2 * (
        32 * 2 + 1
    )  # weights of a bottleneck one wide, in two blocks; the second bias has 32 whatever the width
    arguments = ["--encoder", tiny_encoders["hubert_group"], "--layers", "2-3", "--folds", 2, "--epochs", 1, "--json"]
    arguments += ["--method", "bottleneck"]
    result = invoke("finetune", manifest(), "-o", tmp_path / "run", *arguments, "--budget", 64 + 5 * each + 7)
    assert result.exit_code == 0, (result.exception, result.stderr)
    metrics = json.loads(result.stdout)
    assert (metrics["size"], metrics["trainable"]) == (5, 64 + 5 * each)


def test_a_comparison_of_methods(manifest, invoke, tiny_encoders, tmp_path):
    folds = tmp_path / "folds.csv"
    folds.write_text("clip,fold\n" + "".join(f"{clip},{clip[4] in '12'}\n" for clip in CLIPS))
    arguments = ["--encoder", tiny_encoders["hubert_group"], "--layers", "2-3", "--folds", folds, "--epochs", 1]
    result = invoke(
        *("finetune", manifest(), "-o", tmp_path / "all", *arguments, "--compare", "bottleneck,lora,bitfit"),
        *("--budget", "2k", "--json"),
    )
    assert result.exit_code == 0, (result.exception, result.stderr)
    metrics = json.loads(result.stdout)
    assert list(metrics["methods"]) == ["bottleneck", "lora", "bitfit"]
    assert all(0 < metrics["methods"][name]["trainable"] <= 2000 for name in ("bottleneck", "lora"))
    rest = [scores for name, scores in metrics["methods"].items() if name != metrics["best"]]
    assert all(0 < row["against_best"]["p"] <= row["against_best"]["p_holm"] <= 1 for row in rest)
    assert (tmp_path / "all" / "methods.png").exists()
    assert (tmp_path / "all-lora" / "adapters" / "final" / "adapter_config.json").exists()
    printed = invoke(
        "finetune", manifest(), "-o", tmp_path / "all", *arguments, "--compare", "bottleneck,lora", "--budget", 2000
    )
    assert "against the best" in printed.stdout
    assert "all-" in printed.stdout.split("--adapter")[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--size", 4, "--budget", "1k"], "give one of them"),
        (["--compare", "lora"], "two methods or more"),
        (
            ["--compare", "lora,bitfit", "--method", "bottleneck"],
            "--compare names the methods to train: leave out --method",
        ),
        (["--mask-weight", 0.1, "--mask-target", "logmel", "--target-layer", 2], "--mask-target logmel reads no layer"),
        (["--target-layer", 2], "--target-layer: --mask-weight 0 masks nothing"),
        (["--mask-target", "features"], "--mask-target: --mask-weight 0 masks nothing"),
        (["--compare", "lora,adapters"], "unknown PEFT method 'adapters'"),
        (["--budget", "lots"], "lots"),
        (["--budget", "900M"], "more than the"),
        (["--method", "bitfit", "--size", 8], "--method bitfit has no size"),
        (["--mask-target", "pixels"], "units"),
        (["--class-weights", "some"], "balanced"),
        (["--mask-weight", 0.1, "--target-layer", 9], "layers 0 to 4"),
        (["--folds", "nowhere.csv"], "does not exist"),
        (["--layers", "0-2"], "layer 0 is the embedding"),
        (["--dtype", "float16", "--device", "cpu"], "float16"),
    ],
)
def test_wrong_options(options, message, manifest, invoke, tiny_encoders, tmp_path):
    arguments = ["--encoder", tiny_encoders["hubert_group"], "--layers", "2-3", "--folds", 2, *options]
    result = invoke("finetune", manifest(), "-o", tmp_path / "run", *arguments)
    assert isinstance(result.exception, MertoolError), (result.exception, result.stderr)
    assert message in str(result.exception)
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------- killed, and on several devices


def test_a_killed_run_resumes_and_equals_an_undisturbed_one(manifest, finetune, tmp_path, monkeypatch):
    """Finished adapters are reused; the one that was in training is trained again from the start."""
    from mertool import finetune as stage

    undisturbed = finetune(manifest(), "whole", "--epochs", 3)
    train_adapter, trained = stage.train_adapter, []

    def train_until_killed(setup, split, progress):
        trained.append(split.name)

        def kill(step):
            progress(step)
            if len(trained) == 2 and step == 2:
                raise KeyboardInterrupt

        return train_adapter(setup, split, kill)

    monkeypatch.setattr(stage, "train_adapter", train_until_killed)
    with pytest.raises((KeyboardInterrupt, AssertionError)):
        finetune(manifest(), "killed", "--epochs", 3)
    assert not (tmp_path / "killed").exists()
    assert (tmp_path / ".killed.unfinished" / "adapters" / "fold0").is_dir()
    titles = []

    def record_title(title, *_):
        titles.append(title)
        return nullcontext(lambda *_: None)

    monkeypatch.setattr("mertool.cli.finetune.progress", record_title)
    resumed = finetune(manifest(), "killed", "--epochs", 3)
    assert titles[-1] == "adapters (1 of 3 were trained before)"
    assert trained == ["fold0", "fold1", "fold1", "final"]
    assert resumed["history"] == undisturbed["history"]
    for name in ("fold0", "fold1", "final"):
        assert same(adapter(tmp_path / "whole", name), adapter(tmp_path / "killed", name))
    assert (tmp_path / "whole" / "held_out.csv").read_text() == (tmp_path / "killed" / "held_out.csv").read_text()
    assert not (tmp_path / ".killed.unfinished").exists()


@pytest.fixture
def first_run(manifest, finetune, tmp_path):
    """All files of a run that found no cache of frozen layers, by name; the run is removed, its cache stays."""
    finetune(manifest(), "run", "--epochs", 2)
    files = files_of(tmp_path / "run")
    shutil.rmtree(tmp_path / "run")
    return files


@pytest.mark.parametrize("cache", ["kept", "removed"])
def test_the_same_command_gives_the_same_files_with_and_without_the_cache(
    cache, first_run, manifest, finetune, tmp_path
):
    torch.rand(5)  # what was drawn before has no influence
    if cache == "removed":
        shutil.rmtree(tmp_path / "frozen-layers")
    finetune(manifest(), "run", "--epochs", 2)
    assert files_of(tmp_path / "run") == first_run


def test_a_mask_embedding_that_the_checkpoint_lacks_is_drawn_from_the_seed(manifest, tiny_encoders, invoke, tmp_path):
    from safetensors.torch import load_file, save_file

    encoder = tmp_path / "encoder"
    shutil.copytree(tiny_encoders["hubert_group"], encoder)
    tensors = load_file(encoder / "model.safetensors")
    del tensors["masked_spec_embed"]
    save_file(tensors, encoder / "model.safetensors", {"format": "pt"})
    arguments = ["--encoder", encoder, "--layers", "2-3", "--size", 4, "--folds", 2, "--epochs", 1, "--mask-weight", 1]
    runs = []
    for number in range(2):
        torch.rand(5 * number + 1)
        run = tmp_path / f"run{number}"
        result = invoke("finetune", manifest(), "-o", run, *arguments, "--no-prefix-cache", "-q")
        assert result.exit_code == 0, (result.exception, result.stderr)
        runs.append({name: content for name, content in files_of(run).items() if name != "run.json"})
    assert runs[0] == runs[1]


def test_the_same_command_gives_the_same_files_after_an_interrupted_extraction(
    first_run, manifest, finetune, monkeypatch, tmp_path
):
    from mertool.extraction.clip_encoder import ClipEncoder

    shutil.rmtree(tmp_path / "frozen-layers")
    encode, encoded = ClipEncoder.encode, []

    def encode_some(self, clips):
        encoded.append(clips)
        if len(encoded) == 4:
            raise KeyboardInterrupt
        return encode(self, clips)

    with monkeypatch.context() as patch, pytest.raises((KeyboardInterrupt, AssertionError)):
        patch.setattr(ClipEncoder, "encode", encode_some)
        finetune(manifest(), "run", "--epochs", 2)
    assert not (tmp_path / "run").exists()
    finetune(manifest(), "run", "--epochs", 2)
    assert all(len(clips) == 1 for clips in encoded)
    assert files_of(tmp_path / "run") == first_run


def test_the_order_of_the_manifest_changes_no_adapter(first_run, manifest, finetune, reorder_rows, tmp_path):
    finetune(reorder_rows(manifest(), tmp_path / "clips.csv", "reversed"), "run", "--epochs", 2)
    assert files_of(tmp_path / "run") == first_run


def test_a_class_of_one_speaker_is_named_before_media_are_read(manifest, invoke, tiny_encoders, tmp_path, monkeypatch):
    monkeypatch.setattr("mertool.finetune.read_adaptation_data", lambda *_, **__: 1 / 0)
    source = manifest(spk01_001={"label": "angry"})
    arguments = ["--encoder", tiny_encoders["hubert_group"], "--layers", "2-3", "--folds", 2]
    result = invoke("finetune", source, "-o", tmp_path / "run", *arguments)
    assert isinstance(result.exception, ZeroDivisionError)
    assert "note: angry (1 clip of speaker spk01 alone) is never in training when it is held out" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("leftover", ["frozen-layers/*.parts/*", ".run.unfinished/adapters/fold0/adapter_model.*"])
def test_a_run_killed_at_any_point_ends_with_the_same_files(leftover, manifest, tiny_encoders, tmp_path):
    """SIGKILL as soon as the cache is begun, and as soon as an adapter is saved; a rerun and an undisturbed run."""
    arguments = ["finetune", manifest(), "--encoder", tiny_encoders["hubert_group"], "--layers", "2-3"]
    arguments += ["--size", 4, "--mask-weight", 0.1, "--folds", 2, "--epochs", 2]
    arguments += ["--device", "cpu", "--dtype", "float32", "-q", "-o", "run"]
    command = [sys.executable, "-m", "mertool", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment)
    while process.poll() is None and not list(tmp_path.glob(leftover)):
        time.sleep(0.01)
    process.kill()
    process.wait()
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, timeout=300)
    resumed = files_of(tmp_path / "run")
    for name in ("run", "frozen-layers"):
        shutil.rmtree(tmp_path / name)
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, timeout=300)
    assert files_of(tmp_path / "run") == resumed


@pytest.mark.slow
def test_two_processes_train_what_one_does(manifest, tiny_encoders, tmp_path):
    """By torchrun on two CPU processes; batches of five leave one of them with less."""
    source = manifest()
    arguments = ["finetune", source, "--encoder", tiny_encoders["hubert_group"], "--layers", "2-3"]
    arguments += ["--size", 4, "--mask-weight", 0.1, "--folds", 2, "--epochs", 2]
    arguments += ["--batch", 3, "--device", "cpu", "--dtype", "float32", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    results = []
    for processes in (1, 2):
        run = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", processes, "--standalone"]
        command = [*run, "-m", "mertool", *arguments, "-o", tmp_path / f"run{processes}"]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment, timeout=300)
        assert done.returncode == 0, done.stderr
        results.append(json.loads(done.stdout))  # one process alone reports
    single, double = (adapter(tmp_path / f"run{processes}", "final") for processes in (1, 2))
    assert max(float((single[key] - double[key]).abs().max()) for key in single) < 1e-5
    losses = [result["history"]["final"]["label_loss"] for result in results]
    np.testing.assert_allclose(*losses, rtol=1e-4)


def test_a_clip_too_short_for_a_frame_is_skipped(manifest, finetune, tmp_path):
    soundfile.write(tmp_path / "blip.wav", np.zeros(50, np.float32), 16_000)
    result = finetune(manifest(spk01_001={"path": "blip.wav", "end": ""}))
    assert result["skipped"] == {"spk01_001": "too_short"}
    assert result["clips"] == 7


def test_clips_of_very_different_length_train_together(manifest, finetune, tmp_path):
    soundfile.write(tmp_path / "short.wav", np.random.default_rng(0).normal(0, 0.1, 2000), 16_000)
    result = finetune(manifest(spk01_001={"path": "short.wav", "end": ""}), encoder="hubert")
    assert result["clips"] == 8


# ---------------------------------------------------------------- features through it


def manual(folder, name, tiny_encoders, wave):
    """Mean hidden states of all layers by transformers and PEFT alone, with adapter `name`, less its mean offset."""
    import peft
    from transformers import AutoFeatureExtractor, AutoModel

    import mertool.adapters.methods.bottleneck  # noqa: F401

    model = AutoModel.from_pretrained(tiny_encoders["hubert"])
    model = peft.PeftModel.from_pretrained(model, str(folder / "adapters" / name)).eval()
    prepare = AutoFeatureExtractor.from_pretrained(tiny_encoders["hubert"])
    inputs = prepare(wave, sampling_rate=16_000, return_tensors="pt").input_values
    with torch.no_grad():
        states = model(inputs, output_hidden_states=True).hidden_states
    offset = load_tensors(folder / "adapters" / name / "mean_offset.safetensors")["mean_offset"]
    return (torch.stack([state[0].mean(0) for state in states[:-1]]) - offset[:-1]).numpy()


def test_training_clips_have_the_adapter_that_was_not_trained_on_them(
    acoustic_store, audio_store, finetune_run, demo_rows, tiny_encoders, clip_names
):
    from mertool.media import read_audio

    folds = info(finetune_run)["folds"]
    with FeatureStore(acoustic_store) as store, FeatureStore(audio_store) as plain:
        assert store.ids == plain.ids
        for clip in ("spk01_001", "spk06_009", "spk04_002", clip_names.unlabelled[0]):
            name = f"fold{folds[clip]}" if clip in folds else "final"
            wave = read_audio(Path(demo_rows[clip]["path"]))
            value = store.read([clip])[0]
            np.testing.assert_allclose(
                value[:-1], manual(finetune_run, name, tiny_encoders, wave), atol=1e-4, rtol=1e-4
            )
            for other_name in {"fold0", "fold1", "fold2", "final"} - {name}:
                elsewhere = manual(finetune_run, other_name, tiny_encoders, wave)
                assert np.abs(value[:-1] - elsewhere).max() > 1e-3


@pytest.mark.parametrize("exact", [(), ("--no-prefix-cache",)])
@pytest.mark.parametrize("encoder", ["hubert", "wavlm_group", "whisper"])
def test_the_mean_offset_of_an_adapter_is_subtracted(
    exact, encoder, manifest, finetune, demo_rows, load_tiny, tmp_path
):
    """In the layers of the adapters and in those above them, which training never runs."""
    from mertool.extraction.multi_adapter import MultiAdapterEncoder
    from mertool.media import read_audio

    finetune(manifest(), "run", "--learning-rate", 0.02, "--dtype", "float32", *exact, encoder=encoder)
    frozen, adapted_encoder = load_tiny(encoder, "audio"), load_tiny(encoder, "audio")
    if frozen.windows:
        frozen.set_window("clip")
        adapted_encoder.set_window("clip")
    folds = info(tmp_path / "run")["folds"]
    every = tuple(range(frozen.num_layers + 1))
    waves = {clip: read_audio(Path(demo_rows[clip]["path"]), 0, 0.8) for clip in CLIPS}
    before = {clip: frozen.encode([wave], every)[0].mean(1) for clip, wave in waves.items()}
    adapted = MultiAdapterEncoder.load(adapted_encoder, tmp_path / "run" / "adapters", torch.device("cpu"))
    for name in ("fold0", "fold1", "final"):
        adapted.select(name)
        trained_on = [clip for clip in CLIPS if name != f"fold{folds[clip]}"]
        outputs = adapted.encode_prepared([adapted.prepare(waves[clip]) for clip in trained_on], every)
        added = torch.stack([output.mean(1) - before[clip] for clip, output in zip(trained_on, outputs, strict=True)])
        spread, offset = added.std(0), adapted.mean_offsets[name]
        assert added[:, :2].abs().max() < 1e-3
        assert not offset[:2].any()
        assert (offset[2:].norm(dim=1) > 2 * spread[2:].norm(dim=1)).all()
        assert (added.mean(0)[2:].norm(dim=1) < 0.02 * offset[2:].norm(dim=1)).all()


def test_an_adapter_without_its_mean_offset_is_refused(finetune_run, tmp_path):
    shutil.copytree(finetune_run / "adapters", tmp_path / "adapters")
    (tmp_path / "adapters" / "fold1" / "mean_offset.safetensors").unlink()
    with pytest.raises(MertoolError, match=r"fold1 has no mean_offset.safetensors, it was made by an older version"):
        load_mean_offsets(tmp_path / "adapters", (9, 96))


def test_extraction_reports_which_adapters_it_used(
    acoustic_store, invoke, workspace, finetune_run, tiny_encoders, clip_names
):
    arguments = ["--encoder", tiny_encoders["hubert"], "--adapter", finetune_run, "--storage", "float32"]
    result = invoke("extract", "audio", workspace.manifest, "-o", acoustic_store, *arguments)
    trained_on = len(clip_names.labelled) - 1
    assert f"{trained_on} training clips got that of the fold which held them out, all others" in result.stdout


def test_layers_below_the_adapters_are_those_of_the_frozen_encoder(acoustic_store, audio_store, finetune_run):
    first = info(finetune_run)["layers"][0]
    with FeatureStore(acoustic_store) as store, FeatureStore(audio_store) as plain:
        adapted, frozen = store.read(store.ids), plain.read(store.ids)
    np.testing.assert_allclose(adapted[:, :first], frozen[:, :first], atol=1e-3, rtol=1e-3)
    below, above = (
        np.abs(adapted - frozen).mean(axis=(0, 2))[layers] for layers in (slice(0, first), slice(first, None))
    )
    assert above.max() > 2 * below.max()  # layers below differ by the rounding of float16 only


def test_an_adapter_of_another_encoder_is_refused(invoke, workspace, finetune_run, tiny_encoders, tmp_path):
    arguments = ["--encoder", tiny_encoders["hubert_group"], "--adapter", finetune_run]
    result = invoke("extract", "audio", workspace.manifest, "-o", tmp_path / "a.h5", *arguments)
    assert isinstance(result.exception, MertoolError)
    assert "adapts encoder 'tiny-random-hubert'" in str(result.exception)
    assert "not 'hubert_group'" in str(result.exception)


def test_a_probe_of_another_encoder_is_refused(invoke, workspace, probe_run, tiny_encoders, tmp_path):
    arguments = ["--probe", probe_run, "--encoder", tiny_encoders["wavlm"]]
    result = invoke("finetune", workspace.manifest, "-o", tmp_path / "run", *arguments)
    assert isinstance(result.exception, MertoolError)
    assert "probed encoder 'tiny-random-hubert'" in str(result.exception)


def test_the_adapters_of_a_whisper_carry_the_window_on_which_they_were_trained(
    manifest, finetune, invoke, call, tmp_path
):
    source = manifest()
    finetune(source, "run", encoder="whisper")
    assert info(tmp_path / "run")["encoder"]["window"] == "clip"
    arguments = ["extract", "audio", source, "--adapter", tmp_path / "run", "-q"]
    call(*arguments, "-o", tmp_path / "acoustic.h5")
    with FeatureStore(tmp_path / "acoustic.h5") as store:
        assert store.recipe.media["window"] == "clip"
    result = invoke(*arguments, "-o", tmp_path / "other.h5", "--whisper-window", "30")
    assert isinstance(result.exception, MertoolError)
    assert "was trained on the window 'clip': leave it out" in str(result.exception)


def test_a_clip_longer_than_the_window_is_named(manifest, finetune, invoke, tiny_encoders, tmp_path):
    source = manifest(spk01_001={"end": "1.3"})
    assert finetune(source, encoder="whisper_short")["cut"] == ["spk01_001"]
    arguments = ["--encoder", tiny_encoders["whisper_short"], "--layers", "2-3", "--size", 4, "--folds", 2]
    result = invoke("finetune", source, "-o", tmp_path / "run", *arguments, "--epochs", 3)
    assert "only the beginning of 1 clip longer than the encoder's window (first: spk01_001)" in result.stderr


# ---------------------------------------------------------------- no leak


def test_adapted_features_of_a_clip_do_not_depend_on_its_label(manifest, finetune, call, tiny_encoders, tmp_path):
    """The features are equal, not only as good as chance."""
    swapped = {"spk01_001": {"label": "happy"}, "spk01_005": {"label": "sad"}}
    values = {}
    for name, changes in (("before", {}), ("after", swapped)):
        source = manifest(**changes)
        finetune(source, name, "--learning-rate", 0.02)
        arguments = [
            "--encoder",
            tiny_encoders["hubert_group"],
            "--adapter",
            tmp_path / name,
            "--storage",
            "float32",
            "-q",
        ]
        call("extract", "audio", source, "-o", tmp_path / f"{name}.h5", *arguments)
        with FeatureStore(tmp_path / f"{name}.h5") as store:
            values[name] = dict(zip(store.ids, store.read(store.ids), strict=True))
    folds = info(tmp_path / "after")["folds"]
    for clip in CLIPS:  # the two, and who shares their fold, whose adapter read neither label
        apart = folds[clip] == folds["spk01_001"]
        assert np.array_equal(values["before"][clip], values["after"][clip]) == apart, clip


@pytest.fixture
def tones(tmp_path, write_manifest):
    """Sixty tones of twelve speakers with random labels: training can only memorize the clips."""
    random = np.random.default_rng(3)
    rows = []
    for number in range(60):
        size = int(16_000 * random.uniform(0.4, 0.6))
        times = np.arange(size) / 16_000
        wave = 0.3 * np.sin(2 * np.pi * random.uniform(100, 4000) * times) + 0.1 * random.standard_normal(size)
        soundfile.write(tmp_path / f"c{number}.wav", wave.astype(np.float32), 16_000)
        row = {"clip": f"c{number}", "path": str(tmp_path / f"c{number}.wav"), "speaker": f"s{number % 12}"}
        rows.append({**row, "label": ("sad", "happy")[random.integers(2)], "split": "train"})
    return write_manifest(tmp_path / "tones.csv", rows)


def test_without_masks_the_prefix_changes_nothing(tones, finetune, tmp_path, monkeypatch):
    # Frames are left out only where positions are stored with them.
    monkeypatch.setattr(AdaptableBlocks, "can_drop_frames", False)
    options = ["--mask-weight", 0, "--epochs", 2, "--dtype", "float32"]
    stored = finetune(tones, "stored", *options)
    exact = finetune(tones, "exact", *options, "--no-prefix-cache")
    for name, history in stored["history"].items():
        np.testing.assert_allclose(history["label_loss"], exact["history"][name]["label_loss"], rtol=2e-3)
    adapters = [adapter(tmp_path / run, "final") for run in ("stored", "exact")]
    assert max(float((adapters[0][key] - adapters[1][key]).abs().max()) for key in adapters[0]) < 2e-3


def test_with_random_labels_fusion_on_adapted_features_stays_at_chance(tones, call, invoke, tiny_encoders, tmp_path):
    """Also with overfitted adapters, whose own training clips score far above chance."""
    encoder = tiny_encoders["wav2vec2"]
    arguments = ["--encoder", encoder, "--layers", "1-4", "--method", "full", "--folds", 3, "--mask-weight", 0, "-q"]
    learn = ["--epochs", 40, "--learning-rate", 2e-3, "--batch", 20]
    call("finetune", tones, "-o", tmp_path / "honest", *arguments, *learn)
    shutil.copytree(tmp_path / "honest", tmp_path / "leaky")
    facts = info(tmp_path / "leaky")
    facts["adapter_of_clip"] = {}  # so all clips get the adapter that was trained on all of them
    (tmp_path / "leaky" / "run.json").write_text(json.dumps(facts))
    accuracy = {}
    for name in ("honest", "leaky"):
        store = tmp_path / f"{name}.h5"
        call(
            "extract",
            "audio",
            tones,
            "-o",
            store,
            "--encoder",
            encoder,
            "--adapter",
            tmp_path / name,
            "--layers",
            4,
            "-q",
        )
        result = invoke(
            "fuse", store, "-m", tones, "-o", tmp_path / f"fused-{name}", "--seeds", 2, "--width", 16, "--json"
        )
        assert result.exit_code == 0, result.exception
        accuracy[name] = json.loads(result.stdout)["cross_validation"][name]["accuracy"]
    assert accuracy["honest"]["low"] < 0.5 < accuracy["honest"]["high"]
    assert accuracy["leaky"]["low"] > 0.6


def test_fusion_uses_the_folds_of_the_adapters(acoustic_store, text_store, workspace, finetune_run, invoke, tmp_path):
    arguments = [
        "fuse",
        acoustic_store,
        text_store,
        "-m",
        workspace.manifest,
        "--epochs",
        1,
        "--seeds",
        1,
        "--width",
        4,
    ]
    result = invoke(*arguments, "-o", tmp_path / "fused", "--json")
    assert result.exit_code == 0, result.exception
    assert "those of the adapters" in json.loads(result.stdout)["folds"]
    folds = info(finetune_run)["folds"]
    assert folds.items() <= info(tmp_path / "fused")["folds"].items()
    fold_of_clip = {**info(tmp_path / "fused")["folds"]}
    for name, change in (("same", 0), ("mixed", 1)):
        first = next(iter(folds))
        fold_of_clip[first] = (fold_of_clip[first] + change) % 3
        (tmp_path / f"{name}.csv").write_text("clip,fold\n" + "".join(f"{c},{f}\n" for c, f in fold_of_clip.items()))
    assert invoke(*arguments, "-o", tmp_path / "same", "--folds", tmp_path / "same.csv").exit_code == 0
    mixed = invoke(*arguments, "-o", tmp_path / "mixed", "--folds", tmp_path / "mixed.csv")
    assert "leave out --folds" in str(mixed.exception)
    another = invoke(*arguments, "-o", tmp_path / "other", "--folds", 2)
    assert "leave out --folds" in str(another.exception)
