"""Stores from and for other toolkits: MERTools' feature folders and faces, MMSA's pickles, and fusion without media."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from fixtures.stores import FACES, FRAMES, POOLED, features

from mertool.errors import MertoolError
from mertool.exchange import export_store, import_store
from mertool.store import ClipFeatures, Failure, FeatureStore, StoreWriter

RNG = np.random.default_rng(0)


def save_as_mertools(folder: Path, clip: str, frames: np.ndarray, level: str) -> np.ndarray:
    """Save frames (T, D) by the rules of MERTools' extraction, and return what a reader should get."""
    folder.mkdir(parents=True, exist_ok=True)
    values = frames.squeeze()  # a clip of one frame is (D,)
    if level == "UTT":
        values = values.mean(0) if values.ndim == 2 else values
    elif values.ndim == 1:
        values = values[np.newaxis, :]
    np.save(folder / f"{clip}.npy", values)
    return values.astype(np.float32)


def read_as_mertools(folder: Path, clip: str) -> np.ndarray:
    """Read a feature by the rules of MERTools' `read_data.py`: squeezed, then (T, D)."""
    values = np.load(folder / f"{clip}.npy").squeeze()
    return values[np.newaxis, :] if values.ndim == 1 else values


def failures(path: Path) -> dict[str, str]:
    with FeatureStore(path) as store:
        return {failure.clip: failure.reason for failure in store.failures()}


def test_vectors_of_mertools(tmp_path):
    folder = tmp_path / "features" / "chinese-hubert-large-UTT"
    expected = {
        clip: save_as_mertools(folder, clip, RNG.normal(size=(length, 6)), "UTT")
        for clip, length in {"sample_00000001": 4, "sample_00000002": 1}.items()
    }
    np.save(folder / "no_words.npy", np.zeros(6))  # float64, as for an empty transcript
    np.save(folder / "odd.npy", np.zeros(5) + 1)
    np.save(folder / "two.npy", np.ones((2, 6)))
    np.save(folder / "nan.npy", np.full(6, np.nan))
    (folder / "cut.npy").write_bytes((folder / "odd.npy").read_bytes()[:90])
    result = import_store(folder, tmp_path / "a.h5", modality="text")
    assert (result.features, result.failed) == (2, {"unreadable": 3, "no_text": 1, "not_finite": 1})
    with FeatureStore(tmp_path / "a.h5") as store:
        assert (store.pooled, store.channels, store.dtype) == (True, 6, np.float32)
        assert store.recipe.encoder == "chinese-hubert-large-UTT"
        for clip, values in expected.items():
            np.testing.assert_array_equal(store.read([clip])[0, 0], values)
        messages = {failure.clip: failure.message for failure in store.failures()}
    assert "5 channels, other clips have 6" in messages["odd"]
    assert "2 rows in a folder of one vector per clip" in messages["two"]


@pytest.mark.parametrize("mean", [False, True])
def test_frames_of_mertools(mean, tmp_path):
    folder = tmp_path / "clip-vit-large-patch14_FRA"
    lengths = {"a": 4, "b": 1, "c": 2}
    expected = {clip: save_as_mertools(folder, clip, RNG.normal(size=(n, 6)), "FRA") for clip, n in lengths.items()}
    (folder / "d").mkdir()  # one file per frame
    expected["d"] = RNG.normal(size=(3, 6)).astype(np.float32)
    for number, frame in enumerate(expected["d"]):
        np.save(folder / "d" / f"{number:04}.npy", frame)
    np.save(folder / "e.npy", np.zeros((1, 6)))
    assert import_store(folder, tmp_path / "v.h5", modality="video", mean=mean).features == 4
    assert failures(tmp_path / "v.h5") == {"e": "no_face"}
    with FeatureStore(tmp_path / "v.h5") as store:
        for clip, frames in expected.items():
            if mean:
                np.testing.assert_allclose(store.read([clip])[0, 0], frames.mean(0), rtol=1e-6, atol=1e-7)
            else:
                np.testing.assert_array_equal(store.frames(clip), frames)


def test_faces_of_mertools_become_rgb(tmp_path):
    blue_first = RNG.integers(0, 256, (3, 112, 112, 3)).astype(np.uint8)
    for clip, crops in {"a": np.zeros((0, 112, 112, 3), np.uint8), "b": blue_first}.items():
        (tmp_path / "openface_face" / clip).mkdir(parents=True)
        np.save(tmp_path / "openface_face" / clip / f"{clip}.npy", crops)
    (tmp_path / "openface_face" / "c").mkdir()  # the file of a clip may be missing
    assert import_store(tmp_path / "openface_face", tmp_path / "f.h5", modality="faces").features == 1
    assert failures(tmp_path / "f.h5") == {"a": "no_face"}
    with FeatureStore(tmp_path / "f.h5") as store:
        red, green, blue = np.moveaxis(store.frames("b"), -1, 0)
    np.testing.assert_array_equal(np.stack([blue, green, red], -1), blue_first)


def test_mmsa_into_a_store(tmp_path):
    audio = RNG.normal(size=(2, 5, 4)).astype(np.float32)
    audio[0, 3:] = 0
    split = {"id": ["v$_$1", "v$_$2"], "audio": audio, "audio_lengths": [3, 5], "vision": np.zeros((2, 5, 2))}
    (tmp_path / "mosi.pkl").write_bytes(pickle.dumps({"train": split}))
    import_store(tmp_path / "mosi.pkl", tmp_path / "a.h5", modality="audio")
    with FeatureStore(tmp_path / "a.h5") as store:
        np.testing.assert_array_equal(store.frames("v_1"), audio[0, :3])
        np.testing.assert_array_equal(store.frames("v_2"), audio[1])
    with pytest.raises(MertoolError, match=r"features of none of its 2 clips \(2 no_face\)"):
        import_store(tmp_path / "mosi.pkl", tmp_path / "v.h5", modality="video")


@pytest.mark.parametrize(
    ("source", "modality", "message"),
    [
        ("none", "audio", "none does not exist: give "),
        ("empty", "audio", "holds no features that mertool reads: give "),
        ("x-UTT", "sound", "unknown modality 'sound': valid: audio, video, text, faces"),
        ("x-UTT", "faces", "holds no face crops: give a folder openface_face of MERTools"),
        ("pickled-UTT", "audio", "holds no npy file with features"),
    ],
)
def test_sources_of_another_kind_are_refused_in_one_line(source, modality, message, tmp_path):
    (tmp_path / "empty").mkdir()
    save_as_mertools(tmp_path / "x-UTT", "a", np.ones((1, 4)), "UTT")
    (tmp_path / "pickled-UTT").mkdir()
    np.save(tmp_path / "pickled-UTT" / "a.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(MertoolError, match=message) as caught:
        import_store(tmp_path / source, tmp_path / "s.h5", modality=modality)
    assert "\n" not in str(caught.value)


def write_store(path: Path, recipe, clips: list[ClipFeatures]) -> None:
    lost = Failure(clip="lost", digest="", stage="decode", reason="no_face", message="no face")
    with StoreWriter(path, recipe, {}) as writer:
        for clip in clips:
            writer.add(clip)
        writer.fail(lost)
        writer.finish([])


@pytest.mark.parametrize("recipe", [POOLED, FRAMES], ids=["pooled", "frames"])
def test_exported_folders_are_read_by_the_rules_of_mertools(recipe, tmp_path):
    clips = [features(recipe, name, length) for length, name in enumerate("abc", start=1)]
    write_store(tmp_path / "s.h5", recipe, clips)
    folders = export_store(tmp_path / "s.h5", tmp_path / "out")
    names = ["s-layer0-UTT", "s-layer1-UTT", "s-layer2-UTT"] if recipe is POOLED else ["s-FRA"]
    assert folders == dict.fromkeys(names, 4)
    for number, name in enumerate(names):
        for clip in clips:
            read = read_as_mertools(tmp_path / "out" / name, clip.clip)
            assert np.load(tmp_path / "out" / name / f"{clip.clip}.npy").dtype == np.float32
            expected = clip.values[number][None] if recipe is POOLED else clip.values
            np.testing.assert_array_equal(read, expected.astype(np.float16).astype(np.float32))
        assert not read_as_mertools(tmp_path / "out" / name, "lost").any()
    with pytest.raises(MertoolError, match="exists: give another -o"):
        export_store(tmp_path / "s.h5", tmp_path / "out")


def test_exported_faces_come_back(tmp_path):
    clip = features(FACES, "a", 2)
    write_store(tmp_path / "f.h5", FACES, [clip])
    export_store(tmp_path / "f.h5", tmp_path / "out")
    crops = np.load(tmp_path / "out" / "openface_face" / "a" / "a.npy")
    np.testing.assert_array_equal(crops, clip.values[..., [2, 1, 0]])
    import_store(tmp_path / "out" / "openface_face", tmp_path / "g.h5", modality="faces")
    with FeatureStore(tmp_path / "g.h5") as store:
        np.testing.assert_array_equal(store.frames("a"), clip.values)


def release_without_media(tmp_path: Path) -> Path:
    """Features and labels of a release of MERTools: the class is in the features; test clips have true labels."""
    corpora: dict = {"train_corpus": {}, "test1_corpus": {}}
    for number in range(48):
        corpus = "train_corpus" if number < 36 else "test1_corpus"
        emotion = ("happy", "sad", "angry")[number % 3]
        clip = f"sample_{number:08}"
        corpora[corpus][clip] = {"emo": emotion}
        for name, width in {"hubert": 8, "clip": 5}.items():
            frames = RNG.normal(size=(3, width)) + 3 * np.eye(width)[number % 3]
            save_as_mertools(tmp_path / "features" / f"{name}-UTT", clip, frames, "UTT")
    labels = tmp_path / "label-6way.npz"
    np.savez_compressed(labels, **{name: np.array(value, dtype=object) for name, value in corpora.items()})
    return labels


def test_fusion_of_features_without_media_scores_the_test_split(tmp_path, invoke):
    labels = release_without_media(tmp_path)
    clips, run = tmp_path / "clips.csv", tmp_path / "run"
    assert invoke("manifest", labels, "-o", clips).exit_code == 0
    for name, modality in {"hubert": "audio", "clip": "video"}.items():
        folder = tmp_path / "features" / f"{name}-UTT"
        assert invoke("store", "import", folder, "-o", tmp_path / f"{name}.h5", "--modality", modality).exit_code == 0
    given = [
        "-m",
        clips,
        "-o",
        run,
        "--folds",
        "3",
        "--seeds",
        "1",
        "--epochs",
        "60",
        "--learning-rate",
        "0.01",
        "--width",
        "16",
    ]
    done = invoke("fuse", tmp_path / "hubert.h5", tmp_path / "clip.h5", *given, "--json")
    assert done.exit_code == 0, done.output
    test = json.loads(done.stdout)["test"]
    assert (test["clips"], test["labelled"], test["without_features"]) == (12, 12, 0)
    # The same scores come from the predictions that were written.
    scored = invoke("evaluate", run / "test.csv", "--labels", clips, "--json")
    assert json.loads(scored.stdout)["systems"][0]["waf"]["value"] == pytest.approx(test["scores"]["waf"]["value"])
    assert test["scores"]["waf"]["value"] > 0.9
    raw = invoke("predict", run, clips, "-o", tmp_path / "p.csv")
    assert raw.exit_code == 1
