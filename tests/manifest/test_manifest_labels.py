"""Labels of a manifest: classes, aliases in English and Chinese, numbers, and labels that are none."""

from pathlib import Path

import pytest

from mertool.errors import MertoolError
from mertool.manifest import EMOTIONS, Clip, Manifest, canonical_label, parse_classes


def labelled(*labels: tuple[str | None, str | None]) -> Manifest:
    clips = [
        Clip(clip=f"c{n}", path=Path("x.mp4"), label=label, split=split) for n, (label, split) in enumerate(labels)
    ]
    return Manifest(tuple(clips), Path("clips.csv"))


def test_labels_of_training_clips_are_canonical():
    manifest = labelled(
        ("Happy", None),
        ("anger", "train"),
        ("worry", "train"),
        ("sad", "test"),
        ("neutral", "unlabelled"),
        (None, None),
    )
    assert manifest.training_labels() == {"c0": "happy", "c1": "angry", "c2": "worried"}
    assert manifest.known_labels() == {"c0": "happy", "c1": "angry", "c2": "worried", "c3": "sad"}


@pytest.mark.parametrize(
    ("label", "name"),
    [
        *(("anger", "angry"), ("happiness", "happy"), ("joy", "happy"), ("sadness", "sad"), ("worry", "worried")),
        *(("surprised", "surprise"), ("neu", "neutral"), ("hap", "happy"), ("ang", "angry")),
        *(("高兴", "happy"), ("开心", "happy"), ("愤怒", "angry"), ("生气", "angry"), ("中性", "neutral")),
        *(("悲伤", "sad"), ("难过", "sad"), ("伤心", "sad"), ("担忧", "worried"), ("担心", "worried")),
        *(("惊讶", "surprise"), ("高興", "happy")),
    ],
)
def test_the_aliases_of_the_field(label, name):
    assert canonical_label(f" {label.upper()} ", EMOTIONS) == name


def test_an_alias_is_no_label_of_another_set():
    assert canonical_label("worry", ("happy", "sad")) is None
    assert canonical_label("fear", EMOTIONS) is None
    assert canonical_label("害怕", EMOTIONS) is None


def test_an_alias_means_the_class_of_the_label_set():
    assert canonical_label("angry", ("anger", "joy")) == "anger"
    assert canonical_label("开心", ("anger", "joy")) == "joy"
    assert canonical_label("害怕", ("calm", "fearful")) == "fearful"
    assert canonical_label("happiness", ("happy", "joy")) is None  # it could be either


def test_labels_and_classes_are_compared_in_composed_form():
    classes = parse_classes("ge\u0301ne\u0301,calme")
    assert classes[0] == "g\u00e9n\u00e9"
    assert canonical_label("G\u00e9ne\u0301", classes) == classes[0]


@pytest.mark.parametrize(("label", "name"), [("0", "calm"), ("1", "tense"), ("01", "tense"), ("1.0", "tense")])
def test_numbers_are_indices_of_the_classes_that_are_given(label, name):
    assert canonical_label(label, ("calm", "tense")) == name


def test_numbers_are_no_labels_without_classes():
    assert canonical_label("2", ("calm", "tense")) is None
    assert canonical_label("0", EMOTIONS) is None
    assert canonical_label("0", EMOTIONS, allow_index=True) == "neutral"
    assert canonical_label("7", ("7", "8")) == "7"
    with pytest.raises(
        MertoolError,
        match="these are numbers, name their classes in index order with `mertool manifest --labels --classes",
    ):
        labelled(("3", "train"), ("0", "train")).training_labels()


def test_the_split_dev_is_of_the_training_clips():
    manifest = labelled(("sad", "dev"), ("sad", "test"))
    assert manifest.training_labels() == {"c0": "sad"}
    assert manifest.known_labels() == {"c0": "sad", "c1": "sad"}


def test_unknown_labels_are_counted_with_a_way_out():
    manifest = labelled(("hapy", None), ("hapy", None), ("bored", None), ("sad", None))
    with pytest.raises(MertoolError) as caught:
        manifest.training_labels()
    for words in ("clips.csv", "'hapy' (2 clips), 'bored' (1 clip)", "did you mean 'happy'?", "--classes a,b,c"):
        assert words in str(caught.value)
    assert "'hapy' (2 clips)" in manifest.describe_unknown_labels()
    assert labelled(("sad", None)).describe_unknown_labels() == ""


def test_another_set_of_classes():
    assert labelled(("Calm", None)).training_labels(("calm", "tense")) == {"c0": "calm"}


def test_classes_are_parsed():
    assert parse_classes(" Calm, tense ,") == ("calm", "tense")


@pytest.mark.parametrize("text", ["", "calm", "calm,calm"])
def test_too_few_or_repeated_classes(text):
    with pytest.raises(MertoolError, match="at least two different names"):
        parse_classes(text)
