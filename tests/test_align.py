"""`mertool align`: the visual encoder into the acoustic space."""

import json
import shutil

import numpy as np
import pytest
import torch

from mertool.align import info_nce, retrieval
from mertool.errors import MertoolError
from mertool.store import FeatureStore


@pytest.fixture(scope="module")
def paired(tmp_path_factory, make_store):
    """Sixty clips whose frames and sound share a hidden cause, five with sound alone and five with frames alone."""
    folder, rng = tmp_path_factory.mktemp("paired"), np.random.default_rng(0)
    to_sound, to_sight = rng.normal(0, 1, (4, 2, 10)), rng.normal(0, 1, (4, 8))
    sound, sight = {}, {}
    for number in range(70):
        cause = rng.normal(0, 1, 4)
        if number < 65:
            sound[f"c{number}"] = (np.einsum("k,kld->ld", cause, to_sound)).astype(np.float32)
        if number < 60 or number >= 65:
            frames = cause @ to_sight + 0.1 * rng.normal(0, 1, (rng.integers(2, 7), 8))
            sight[f"c{number}"] = frames.astype(np.float32)
    audio = make_store(folder / "audio.h5", "audio", sound)
    return audio, make_store(folder / "frames.h5", "frames", sight, {"c64": "no_face"})


@pytest.fixture(scope="module")
def aligned(paired, invoke, tmp_path_factory):
    """The run, the aligned store and the JSON object of the command."""
    folder = tmp_path_factory.mktemp("align")
    given = ["-o", folder / "run", "--aligned", folder / "aligned.h5", "--width", 32, "--epochs", 80, "--json"]
    result = invoke("align", "--audio", paired[0], "--video", paired[1], *given)
    assert result.exit_code == 0, result.exception
    return folder / "run", folder / "aligned.h5", json.loads(result.stdout)


def test_retrieval_beats_chance_where_there_is_something_to_find(aligned):
    held_out = aligned[2]["held_out"]
    assert held_out["clips"] == 12
    for way in ("video_to_audio", "audio_to_video"):
        assert held_out[way]["recall@5"]["value"] > held_out["chance"]["recall@5"] + 0.2
        assert held_out[way]["median_rank"] < 6
    assert held_out["chance"]["recall@1"] == pytest.approx(1 / 12)


def test_held_out_clips_are_named_and_not_trained_on(aligned):
    facts = json.loads((aligned[0] / "run.json").read_text())
    assert len(facts["held_out_clips"]) == 12
    assert aligned[2]["train_clips"] == 48


def test_every_clip_with_frames_gets_an_aligned_vector(aligned, paired):
    with FeatureStore(aligned[1]) as store, FeatureStore(paired[1]) as frames:
        assert store.ids == frames.ids
        assert store.read(store.ids).shape == (65, 1, 10)
        assert [failure.clip for failure in store.failures()] == ["c64"]
        assert store.recipe.modality == "video"
        assert store.faults() == []


def test_a_second_run_is_reused_and_a_lost_store_is_written_again(aligned, paired, invoke):
    run, store, _ = aligned
    given = ["-o", run, "--aligned", store, "--width", 32, "--epochs", 80, "--json"]
    command = ["align", "--audio", paired[0], "--video", paired[1], *given]
    before = store.stat().st_mtime_ns
    assert json.loads(invoke(*command).stdout)["reused"] is True
    assert store.stat().st_mtime_ns == before
    with FeatureStore(store) as found:
        values = found.read(found.ids)
    store.unlink()
    assert json.loads(invoke(*command).stdout)["reused"] is True
    with FeatureStore(store) as found:
        np.testing.assert_array_equal(found.read(found.ids), values)


def test_the_aligned_store_equals_extract_with_the_aligner(
    align_run, workspace, faces_store, tiny_encoders, call, tmp_path
):
    given = ["--encoder", tiny_encoders["clip"], "--faces", faces_store, "--fps", 1, "--aligner", align_run, "-q"]
    call("extract", "video", workspace.manifest, "-o", tmp_path / "v.h5", *given)
    with FeatureStore(workspace.store("aligned")) as a, FeatureStore(tmp_path / "v.h5") as b:
        assert a.fingerprint == b.fingerprint
        assert a.ids == b.ids
        x, y = a.read(a.ids), b.read(b.ids)
    np.testing.assert_allclose(x, y, rtol=2e-3, atol=1e-4)
    assert np.abs(x).max() > 1e-2


def test_the_plots(align_run):
    assert {"run.json", "metrics.json", "aligner.safetensors", "loss.png", "loss.svg"} == {
        file.name for file in align_run.iterdir()
    }


def test_an_aligner_of_other_video_settings_is_refused(align_run, workspace, tiny_encoders, invoke, tmp_path):
    given = ["--encoder", tiny_encoders["clip"], "--fps", 7, "--aligner", align_run]
    result = invoke("extract", "video", workspace.manifest, "-o", tmp_path / "v.h5", *given)
    assert isinstance(result.exception, MertoolError)
    assert "was trained on other video features" in str(result.exception)


def align(invoke, audio, video, tmp_path):
    result = invoke("align", "--audio", audio, "--video", video, "-o", tmp_path / "run", "--aligned", tmp_path / "a.h5")
    assert isinstance(result.exception, MertoolError), result.exception
    assert not (tmp_path / "run").exists()
    return str(result.exception)


def test_a_pooled_video_store_is_refused(invoke, paired, video_store, tmp_path):
    assert "frames are needed, from `extract video --pool none`" in align(invoke, paired[0], video_store, tmp_path)


def test_the_stores_the_wrong_way_round(invoke, paired, tmp_path):
    assert "a pooled store of `extract audio` is needed" in align(invoke, paired[1], paired[0], tmp_path)


def test_too_few_clips_in_common(invoke, paired, make_store, tmp_path):
    other = make_store(tmp_path / "o.h5", "audio", {f"c{n}": np.ones((1, 3), np.float32) * n for n in range(5)})
    assert "have 5 clips in common, at least 8 are needed" in align(invoke, other, paired[1], tmp_path)


def test_an_aligned_store_is_not_written_over_its_own_frames(invoke, paired, tmp_path):
    """`--aligned` may not name an input."""
    for name, path in zip(("audio.h5", "frames.h5"), paired, strict=True):
        shutil.copy(path, tmp_path / name)
    before = (tmp_path / "frames.h5").read_bytes()
    given = ["--audio", tmp_path / "audio.h5", "--video", tmp_path / "frames.h5", "--aligned", tmp_path / "frames.h5"]
    result = invoke("align", *given, "-o", tmp_path / "run", "--epochs", 1)
    assert isinstance(result.exception, MertoolError)
    assert (tmp_path / "frames.h5").read_bytes() == before


def test_the_loss_is_symmetric_info_nce():
    torch.manual_seed(0)
    visual, acoustic, scale = torch.randn(5, 4), torch.randn(5, 4), torch.tensor(1.3)
    v, a = (x / x.norm(dim=1, keepdim=True) for x in (visual, acoustic))
    similar = (v @ a.T * scale.exp()).double()
    rows = -similar.log_softmax(1).diagonal().mean()
    columns = -similar.log_softmax(0).diagonal().mean()
    assert float(info_nce(visual, acoustic, scale)) == pytest.approx(float((rows + columns) / 2), rel=1e-5)
    assert float(info_nce(visual, visual, torch.tensor(4.0))) < 1e-2


def test_retrieval_of_equal_and_of_unrelated_vectors():
    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 1, (40, 6)), rng.normal(0, 1, (40, 6))
    perfect, none = retrieval(a, 5 * a), retrieval(a, b)
    assert perfect["video_to_audio"]["recall@1"]["value"] == 1.0
    assert perfect["audio_to_video"]["median_rank"] == 1.0
    assert none["video_to_audio"]["recall@1"]["value"] < 0.2
