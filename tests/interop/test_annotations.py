"""Rows of label files find their clips, whatever the row calls them, and contradictions are told at once."""

from pathlib import Path

import pytest

from mertool.errors import MertoolError
from mertool.interop.annotations import Annotation, Annotations, annotate, fill_splits
from mertool.interop.labels import label_clips, read_labels
from mertool.manifest import Clip, Manifest

DATA = Path("/data/corpus")


def manifest(*paths: str) -> Manifest:
    """Clips named by the stems of their files."""
    return Manifest(tuple(Clip(clip=Path(path).stem, path=DATA / path) for path in paths), DATA)


def join(clips: Manifest, *rows: Annotation) -> dict[str, str | None]:
    """Label by clip."""
    joined = annotate(clips, Annotations(path=Path("l.csv"), rows=rows))
    return {clip.clip: clip.label for clip in joined.manifest.clips}


@pytest.mark.parametrize(
    "name",
    [
        *("a", "a.mp4", "a.wav", "x/a", "./x/a.wav", "/abs/x/a.mp4", "/data/corpus/x/a.mp4"),
        *("x\\a.mp4", "C:\\clips\\x\\a.wav", ".\\a", " a ", "other/folder/a.flac"),
    ],
)
def test_a_name_finds_its_clip(name):
    clips = Manifest((Clip(clip="a", path=DATA / "x/a.mp4", audio=DATA / "x/a.wav"),), DATA)
    assert join(clips, Annotation(name=name, label="sad")) == {"a": "sad"}


def test_names_are_compared_in_composed_form():
    clips = Manifest((Clip(clip="caf\u00e9", path=DATA / "cafe\u0301.mp4"),), DATA)
    for name in ("cafe\u0301", "caf\u00e9.mp4"):
        assert join(clips, Annotation(name=name, label="sad")) == {"caf\u00e9": "sad"}


def test_folders_tell_files_of_one_name_apart():
    clips = Manifest((Clip(clip="one__a", path=DATA / "one/a.mp4"), Clip(clip="two__a", path=DATA / "two/a.mp4")), DATA)
    rows = (Annotation(name="/elsewhere/one/a.mp4", label="sad"), Annotation(name="two\\a.mp4", label="happy"))
    assert join(clips, *rows) == {"one__a": "sad", "two__a": "happy"}
    assert join(clips, Annotation(name="one__a", label="sad")) == {"one__a": "sad", "two__a": None}
    with pytest.raises(MertoolError, match="'a' may be 'one__a' or 'two__a': name it with its folder"):
        join(clips, Annotation(name="a", label="sad"))


def test_rows_of_other_folders_do_not_label_a_file_of_the_same_name():
    clips = manifest("train/dia0.mp4")
    rows = (Annotation(name="dev/dia0.mp4", label="sad"), Annotation(name="train/dia0.mp4", label="happy"))
    joined = annotate(clips, Annotations(path=Path("l.csv"), rows=rows))
    assert [clip.label for clip in joined.manifest.clips] == ["happy"]
    assert joined.unmatched == ["dev/dia0.mp4"]


def test_suffixes_tell_files_of_one_folder_apart():
    clips = Manifest((Clip(clip="a.mp4", path=DATA / "a.mp4"), Clip(clip="a.mkv", path=DATA / "a.mkv")), DATA)
    assert join(clips, Annotation(name="x/a.mkv", label="sad")) == {"a.mp4": None, "a.mkv": "sad"}


def test_dots_inside_a_name_stay():
    assert join(manifest("v1.2.mp4"), Annotation(name="v1.2", label="sad")) == {"v1.2": "sad"}


def test_two_values_of_one_clip_are_faults():
    rows = (
        Annotation(name="a", label="sad", speaker="s1"),
        Annotation(name="a.mp4", label="happy", speaker="s2"),
        Annotation(name="b", label="sad"),
    )
    with pytest.raises(MertoolError) as caught:
        join(manifest("a.mp4", "b.mp4"), *rows)
    assert "l.csv: 2 faults" in str(caught.value)
    assert "'a' has the label 'sad' and 'happy'" in str(caught.value)
    assert "'a' has the speaker 's1' and 's2'" in str(caught.value)


def test_names_that_are_of_no_clip_are_counted():
    joined = annotate(
        manifest("a.mp4"),
        Annotations(path=Path("l.csv"), rows=(Annotation(name="a", label="sad"), Annotation(name="b", label="sad"))),
    )
    assert joined.unmatched == ["b"]
    with pytest.raises(MertoolError, match=r"l\.csv names 1 clip, none of which is in /data/corpus \(there: a, "):
        join(manifest("a.mp4"), Annotation(name="b", label="sad"))


def test_segments_become_clips_of_their_own():
    rows = (
        Annotation(name="long", label="sad", start=0.0, end=1.5),
        Annotation(name="long.mp4", label="happy", start=1.5, end=3.0, clip="second"),
        Annotation(name="short.mp4", label="angry", end=2.0),
    )
    joined = annotate(manifest("long.mp4", "short.mp4"), Annotations(path=Path("l.csv"), rows=rows)).manifest
    assert [(c.clip, c.path.name, c.label, c.start, c.end) for c in joined.clips] == [
        ("long@0-1.5", "long.mp4", "sad", 0.0, 1.5),
        ("second", "long.mp4", "happy", 1.5, 3.0),
        ("short", "short.mp4", "angry", None, 2.0),
    ]


def test_a_row_can_name_its_clip():
    joined = annotate(
        manifest("x/a.mp4"),
        Annotations(path=Path("l.csv"), rows=(Annotation(name="x/a.mp4", clip="utterance", label="sad"),)),
    )
    assert [clip.clip for clip in joined.manifest.clips] == ["utterance"]


def test_the_file_of_a_row_counts_more_than_its_name():
    clips = Manifest(
        (*manifest("a.mp4", "b.mp4").clips, *(Clip(clip=f"{p}__c", path=DATA / p / "c.mp4") for p in "xy")), DATA
    )
    rows = (Annotation(name="old/a.mp4", clip="b", label="sad"), Annotation(name="old/b.mp4", clip="a", label="happy"))
    assert join(clips, *rows) == {"b": "sad", "a": "happy", "x__c": None, "y__c": None}
    # A file that may be one of two is told by the id.
    assert join(clips, Annotation(name="c.mp4", clip="y__c", label="sad"))["y__c"] == "sad"


def test_two_clips_cannot_have_one_id():
    rows = (Annotation(name="a.mp4", clip="c", label="sad"), Annotation(name="b.mp4", clip="c", label="sad"))
    with pytest.raises(MertoolError, match="two clips have the id 'c'"):
        join(manifest("a.mp4", "b.mp4"), *rows)


def test_labelled_clips_train_and_others_are_unlabelled():
    rows = (
        Annotation(name="a", label="sad"),
        Annotation(name="b", label="happy", split="test"),
        Annotation(name="c", text="Oh.", speaker="s1", gender="female"),
    )
    joined = annotate(manifest("a.mp4", "b.mp4", "c.mp4"), Annotations(path=Path("l.csv"), rows=rows)).manifest
    assert [(c.label, c.split, c.text, c.speaker, c.gender) for c in fill_splits(joined).clips] == [
        ("sad", "train", None, None, None),
        ("happy", "test", None, None, None),
        (None, "unlabelled", "Oh.", "s1", "female"),
    ]
    assert [clip.split for clip in joined.clips] == [None, "test", None]


def test_numbers_of_a_label_file(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("name,val,sentiment\na,0,-2.5\nb,1.5,\nc,NaN,1\n")
    labelled = annotate(Manifest((Clip(clip="a"), Clip(clip="d")), tmp_path), read_labels(path)).manifest
    assert [clip.numbers for clip in labelled.clips] == [{"valence": 0.0, "sentiment": -2.5}, {}]
    assert [clip.split for clip in fill_splits(labelled).clips] == ["train", "unlabelled"]
    joined = label_clips((Clip(clip="a"),), path)
    assert {clip.clip: clip.numbers.get("sentiment") for clip in joined.clips} == {"a": -2.5, "b": None, "c": 1.0}
