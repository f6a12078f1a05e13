"""MMSA's pickles: labels, texts and features of MOSI, MOSEI and SIMS, and files that want to run code."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from mertool.errors import MertoolError
from mertool.interop.annotations import annotate
from mertool.interop.formats import mmsa
from mertool.interop.labels import read_clips, read_labels
from mertool.manifest import Clip, Manifest

LENGTHS = {"train": (4, 2, 3), "valid": (1,), "test": (2, 4)}
FRAMES, CHANNELS = 4, {"text": 6, "audio": 5, "vision": 3}


def frames_of(name: str, key: str, length: int) -> np.ndarray:
    return np.random.default_rng(list(f"{name}{key}".encode())).normal(1, 0.1, (length, CHANNELS[key]))


def content(*, aligned: bool = False, front: bool = False) -> dict:
    """As the README of MMSA describes its files; features are padded with zeros to FRAMES."""
    splits = {}
    for split, lengths in LENGTHS.items():
        ids = [f"vid{split}$_${number}" for number in range(len(lengths))]
        values = {
            "raw_text": [f"words of {name}" for name in ids],
            "id": ids,
            "text_bert": np.zeros((len(ids), 3, FRAMES), np.float32),
            "annotations": [("Negative", "Neutral", "Positive")[number % 3] for number in range(len(ids))],
            "regression_labels": np.array([number / 2 for number in range(len(ids))], np.float32),
        }
        for key, width in CHANNELS.items():
            array = np.zeros((len(ids), FRAMES, width), np.float32)
            for row, (name, length) in enumerate(zip(ids, lengths, strict=True)):
                where = slice(FRAMES - length, None) if front else slice(length)
                array[row, where] = frames_of(name, key, length)
            values[key] = array
            if not aligned and key != "text":
                values[f"{key}_lengths"] = list(lengths)
        splits[split] = values
    return splits


def write(path: Path, value: object, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(value, protocol))
    return path


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_labels_texts_and_splits(protocol, tmp_path):
    rows = read_labels(write(tmp_path / "mosi.pkl", content(), protocol)).rows
    assert [(row.clip, row.label, row.split, row.speaker) for row in rows[:4]] == [
        ("vidtrain_0", "Negative", "train", "vidtrain"),
        ("vidtrain_1", "Neutral", "train", "vidtrain"),
        ("vidtrain_2", "Positive", "train", "vidtrain"),
        ("vidvalid_0", "Negative", "dev", "vidvalid"),
    ]
    assert rows[0].text == "words of vidtrain$_$0"
    assert [row.split for row in rows[4:]] == ["test", "test"]
    assert [row.sentiment for row in rows[:4]] == [0.0, 0.5, 1.0, 0.0]


def test_clips_without_media(tmp_path):
    clips = read_clips(write(tmp_path / "mosi.pkl", content()))
    assert [clip.clip for clip in clips.clips][:2] == ["vidtrain_0", "vidtrain_1"]
    assert clips.clips[0].path is None
    assert "names no media" in clips.notes[-1]


def test_clips_with_media_are_found_by_video_and_number(tmp_path):
    names = [(f"vid{split}", number) for split, lengths in LENGTHS.items() for number in range(len(lengths))]
    clips = [Clip(clip=f"{video}__{n}", path=tmp_path / "Raw" / video / f"{n}.mp4") for video, n in names]
    manifest = Manifest(tuple(clips), tmp_path)
    joined = annotate(manifest, read_labels(write(tmp_path / "mosi.pkl", content()))).manifest
    assert [clip.clip for clip in joined.clips] == [f"{video}_{number}" for video, number in names]
    assert [clip.split for clip in joined.clips] == ["train"] * 3 + ["dev"] + ["test"] * 2


@pytest.mark.parametrize("front", [False, True])
@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize(("modality", "key"), [("audio", "audio"), ("video", "vision"), ("text", "text")])
def test_features_are_those_of_the_clip_without_padding(modality, key, aligned, front, tmp_path):
    path = write(tmp_path / "mosi.pkl", content(aligned=aligned, front=front))
    source = mmsa.read_features(path, modality)
    assert (source.channels, source.pooled, source.modality) == (CHANNELS[key], False, modality)
    read = dict(source.clips())
    for split, lengths in LENGTHS.items():
        for number, length in enumerate(lengths):
            expected = frames_of(f"vid{split}$_${number}", key, length).astype(np.float32)
            np.testing.assert_array_equal(read[f"vid{split}_{number}"], expected)


def test_infinite_audio_is_zero_as_in_mmsa_and_a_clip_of_zeros_has_no_frames(tmp_path):
    value = content()
    value["train"]["audio"][0, 0, 1] = -np.inf
    value["train"]["vision"][0] = 0
    path = write(tmp_path / "mosi.pkl", value)
    assert dict(mmsa.read_features(path, "audio").clips())["vidtrain_0"][0, 1] == 0
    assert dict(mmsa.read_features(path, "video").clips())["vidtrain_0"].shape == (0, 3)


class Malice:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("reader", [read_labels, lambda path: mmsa.read_features(path, "audio")])
def test_a_pickle_that_runs_code_is_refused(reader, tmp_path):
    trace = tmp_path / "it ran"
    path = write(tmp_path / "mosi.pkl", {**content(), "more": Malice(os.system, f"touch '{trace}'")})
    with pytest.raises(MertoolError, match=r"not a feature file of MMSA \(it wants \w+.system, .*refused\)") as caught:
        reader(path)
    assert "\n" not in str(caught.value)
    assert not trace.exists()
    pickle.loads(path.read_bytes())  # the test means something only if the pickle would have run
    assert trace.exists()


def wrong(change) -> dict:
    value = content()
    change(value)
    return value


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (wrong(lambda v: v["train"]["raw_text"].pop()), "train has 2 raw_text for 3 id"),
        (wrong(lambda v: v["test"].update(audio=np.zeros((1, 4, 5)))), "test has 1 audio for 2 id"),
        (wrong(lambda v: v["valid"].pop("id")), "valid has no list of id"),
        (wrong(lambda v: v["test"].update(regression_labels=[1, 7.5])), "of 'vidtest.*1' is not a number from -3 to 3"),
        (wrong(lambda v: v["train"]["id"].__setitem__(0, "vidtrain$_$1")), "ids are repeated"),
        ([1, 2], "give a .pkl of MMSA with train, valid and test"),
        ({"other": 1}, "give a .pkl of MMSA with train, valid and test"),
    ],
)
def test_a_file_of_another_content_is_refused_in_one_line(value, message, tmp_path):
    with pytest.raises(MertoolError, match=message) as caught:
        read_labels(write(tmp_path / "mosi.pkl", value))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda v: v["train"].update(audio_lengths=[4, 9, 3]),
            "train has the audio length 9 of 'vidtrain.*1'",
        ),
        (lambda v: v["train"].update(audio_lengths=[4, 3]), "train has 2 audio_lengths for 3 id"),
        (lambda v: v["test"].pop("audio"), r"test has no audio of the shape \(clips, frames, channels\)"),
        (lambda v: v["test"].update(audio=np.zeros((2, 4, 7))), "audio has 5 and 7 channels"),
    ],
)
def test_wrong_lengths_are_told_in_one_line(change, message, tmp_path):
    with pytest.raises(MertoolError, match=message):
        mmsa.read_features(write(tmp_path / "mosi.pkl", wrong(change)), "audio")


@pytest.mark.parametrize("data", [b"", b"no pickle", pickle.dumps(content())[:-50]])
def test_a_damaged_pickle_is_refused_in_one_line(data, tmp_path):
    (tmp_path / "mosi.pkl").write_bytes(data)
    with pytest.raises(MertoolError, match="is not a feature file of MMSA") as caught:
        read_labels(tmp_path / "mosi.pkl")
    assert "\n" not in str(caught.value)
