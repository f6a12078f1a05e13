"""`mertool finetune`: an adapter per fold and one on all clips."""

import json
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from mertool.errors import MertoolError
from mertool.runs import load_tensors
from mertool.store import FeatureStore

TRIO = ("spk01_001", "spk01_005", "spk02_003", "spk02_004", "spk03_002", "spk03_003", "spk04_002", "spk04_005")


@pytest.fixture
def manifest(tmp_path, demo_rows, write_manifest):
    """A function (rows by clip) that writes a manifest of eight clips of four speakers, two classes."""

    def write(**changes):
        rows = []
        for number, clip in enumerate(TRIO):
            label = ("sad", "happy")[number % 2]
            rows.append({**demo_rows[clip], "label": label, "end": "0.8", **changes.get(clip, {})})
        return write_manifest(tmp_path / "clips.csv", rows)

    return write


@pytest.fixture
def finetune(invoke, tiny_encoders, tmp_path):
    """A function (manifest, run, *options) that trains for one epoch in two folds; its JSON object."""

    def run(source, name="run", *options, encoder="hubert_group"):
        given = ["--encoder", tiny_encoders[encoder], "--layers", "2-3", "--size", 4, "--folds", 2, "--epochs", 1]
        result = invoke("finetune", source, "-o", tmp_path / name, *given, "--json", *options)
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


def test_an_adapter_per_fold_and_one_on_all(finetune_run):
    names = {folder.name for folder in (finetune_run / "adapters").iterdir()}
    assert names == {"fold0", "fold1", "fold2", "final"}
    adapters = [adapter(finetune_run, name) for name in sorted(names)]
    assert not any(same(a, b) for a, b in pairwise(adapters))


def test_each_clip_is_given_the_adapter_of_the_fold_that_held_it_out(finetune_run, clip_names):
    facts = info(finetune_run)
    assert facts["adapter_of_clip"] == {clip: f"fold{fold}" for clip, fold in facts["folds"].items()}
    assert set(facts["folds"]) == set(clip_names.labelled) - {clip_names.no_sound}
    speakers = {}
    for clip, fold in facts["folds"].items():
        speakers.setdefault(clip[:5], set()).add(fold)
    assert all(len(folds) == 1 for folds in speakers.values())


def test_the_probes_window_and_encoder_are_taken(finetune_run, probe_run):
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
    assert set(metrics["losses"]) == {"fold0", "fold1", "fold2", "final"}
    assert {"losses.png", "losses.svg"} <= {file.name for file in finetune_run.iterdir()}


def test_a_folds_adapter_never_saw_the_labels_of_its_clips(manifest, finetune, tmp_path):
    """Two clips of one speaker change labels: the fold that holds them out must not notice."""
    finetune(manifest(), "before")
    folds = info(tmp_path / "before")["folds"]
    swapped = {"spk01_001": {"label": "happy"}, "spk01_005": {"label": "sad"}}
    finetune(manifest(**swapped), "after")
    assert info(tmp_path / "after")["folds"] == folds
    apart = f"fold{folds['spk01_001']}"
    other = f"fold{1 - folds['spk01_001']}"
    assert same(adapter(tmp_path / "before", apart), adapter(tmp_path / "after", apart))
    for name in (other, "final"):
        assert not same(adapter(tmp_path / "before", name), adapter(tmp_path / "after", name))


def test_a_folds_adapter_never_saw_the_sound_of_its_clips(manifest, finetune, tmp_path, demo_rows):
    finetune(manifest(), "before")
    folds = info(tmp_path / "before")["folds"]
    finetune(manifest(spk01_001={"path": demo_rows["spk05_005"]["path"]}), "after")
    apart = f"fold{folds['spk01_001']}"
    assert same(adapter(tmp_path / "before", apart), adapter(tmp_path / "after", apart))
    assert not same(adapter(tmp_path / "before", "final"), adapter(tmp_path / "after", "final"))


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
@pytest.mark.parametrize("encoder", ["hubert", "wavlm", "data2vec"])
def test_methods_and_encoders(method, encoder, manifest, finetune, tmp_path):
    result = finetune(manifest(), "run", "--method", method, encoder=encoder)
    assert result["method"] == method
    assert np.isfinite(sum(result["losses"]["final"]))
    assert (tmp_path / "run" / "adapters" / "final" / "adapter_model.safetensors").exists()


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
    """Mean hidden states of all layers by transformers and PEFT alone, with adapter `name`."""
    import peft
    from transformers import AutoFeatureExtractor, AutoModel

    import mertool.peft_methods.bottleneck  # noqa: F401

    model = AutoModel.from_pretrained(tiny_encoders["hubert"])
    model = peft.PeftModel.from_pretrained(model, str(folder / "adapters" / name)).eval()
    prepare = AutoFeatureExtractor.from_pretrained(tiny_encoders["hubert"])
    inputs = prepare(wave, sampling_rate=16_000, return_tensors="pt").input_values
    with torch.no_grad():
        states = model(inputs, output_hidden_states=True).hidden_states
    return torch.stack([state[0].mean(0) for state in states[:-1]]).numpy()


def test_training_clips_get_the_adapter_that_did_not_see_them(
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
            for other in {"fold0", "fold1", "fold2", "final"} - {name}:
                elsewhere = manual(finetune_run, other, tiny_encoders, wave)
                assert np.abs(value[:-1] - elsewhere).max() > 1e-3


def test_layers_below_the_adapters_are_those_of_the_frozen_encoder(acoustic_store, audio_store, finetune_run):
    first = info(finetune_run)["layers"][0]
    with FeatureStore(acoustic_store) as store, FeatureStore(audio_store) as plain:
        adapted, frozen = store.read(store.ids), plain.read(store.ids)
    np.testing.assert_allclose(adapted[:, :first], frozen[:, :first], atol=1e-3, rtol=1e-3)
    below, above = (np.abs(adapted - frozen).mean(axis=(0, 2))[part] for part in (slice(1, first), slice(first, None)))
    assert above.min() > 2 * below.max()


def test_an_adapter_of_another_encoder_is_refused(invoke, workspace, finetune_run, tiny_encoders, tmp_path):
    given = ["--encoder", tiny_encoders["hubert_group"], "--adapter", finetune_run]
    result = invoke("extract", "audio", workspace.manifest, "-o", tmp_path / "a.h5", *given)
    assert isinstance(result.exception, MertoolError)
    assert "adapts encoder 'tiny-random-hubert'" in str(result.exception)
    assert "not 'hubert_group'" in str(result.exception)


def test_a_probe_of_another_encoder_is_refused(invoke, workspace, probe_run, tiny_encoders, tmp_path):
    given = ["--probe", probe_run, "--encoder", tiny_encoders["wavlm"]]
    result = invoke("finetune", workspace.manifest, "-o", tmp_path / "run", *given)
    assert isinstance(result.exception, MertoolError)
    assert "probed encoder 'tiny-random-hubert'" in str(result.exception)


def test_whisper_cannot_be_adapted(invoke, manifest, tiny_encoders, tmp_path):
    given = ["--encoder", tiny_encoders["whisper"], "--layers", 2, "--folds", 2, "--epochs", 1]
    result = invoke("finetune", manifest(), "-o", tmp_path / "run", *given)
    assert isinstance(result.exception, MertoolError)
    assert "spectrograms" in str(result.exception)
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------- no leak


def test_adapted_features_of_a_clip_do_not_depend_on_its_label(manifest, finetune, call, tiny_encoders, tmp_path):
    """Exactly, not by chance level: random labels could not be read from features that ignore them."""
    swapped = {"spk01_001": {"label": "happy"}, "spk01_005": {"label": "sad"}}
    values = {}
    for name, changes in (("before", {}), ("after", swapped)):
        source = manifest(**changes)
        finetune(source, name, "--learning-rate", 0.02)
        given = ["--encoder", tiny_encoders["hubert_group"], "--adapter", tmp_path / name, "--storage", "float32", "-q"]
        call("extract", "audio", source, "-o", tmp_path / f"{name}.h5", *given)
        with FeatureStore(tmp_path / f"{name}.h5") as store:
            values[name] = dict(zip(store.ids, store.read(store.ids), strict=True))
    folds = info(tmp_path / "after")["folds"]
    for clip in TRIO:  # the two, and who shares their fold, whose adapter read neither label
        apart = folds[clip] == folds["spk01_001"]
        assert np.array_equal(values["before"][clip], values["after"][clip]) == apart, clip
