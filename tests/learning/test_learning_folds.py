"""Folds: disjoint in speakers, stratified by class, reproducible; and folds of files."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from mertool.errors import MertoolError, MertoolWarning
from mertool.learning.folds import Folds, describe_rare_classes, make_folds, speaker_groups, warn_of_rare_classes
from mertool.learning.folds_file import folds_key, get_folds, read_folds, write_folds
from mertool.learning.labelled_clips import LabelledClips
from mertool.options.shared import parse_folds


def examples(count=120, classes=4, speakers=12, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    speaker_of = tuple(f"s{n}" for n in rng.integers(0, speakers, count)) if speakers else (None,) * count
    return LabelledClips(tuple(f"c{n}" for n in range(count)), labels, speaker_of)


def test_folds_hold_out_every_clip_once():
    folds = make_folds(examples(), 5, 0)
    assert sorted(np.concatenate([folds.held_out(fold) for fold in range(5)])) == list(range(120))
    for fold in range(5):
        assert sorted([*folds.train(fold), *folds.held_out(fold)]) == list(range(120))


def test_folds_are_disjoint_in_speakers():
    data = examples()
    folds = make_folds(data, 5, 0)
    speakers = np.array(data.speakers)
    for fold in range(5):
        assert not set(speakers[folds.train(fold)]) & set(speakers[folds.held_out(fold)])
    assert "speaker-disjoint (12 speakers)" in folds.description


def test_folds_are_not_more_than_speakers():
    assert make_folds(examples(speakers=3), 5, 0).count == 3


@pytest.mark.parametrize("unknown", ["all", "one", "same"])
def test_folds_without_speakers_are_stratified(unknown):
    data = examples(speakers=0) if unknown == "all" else examples()
    if unknown == "one":
        data = LabelledClips(data.clips, data.labels, (None, *data.speakers[1:]))
    if unknown == "same":
        data = LabelledClips(data.clips, data.labels, ("s1",) * len(data))
    folds = make_folds(data, 5, 0)
    assert "not kept apart" in folds.description
    for fold in range(5):
        share = np.bincount(data.labels[folds.held_out(fold)], minlength=4)
        np.testing.assert_allclose(share, np.bincount(data.labels, minlength=4) / 5, atol=1)


def test_folds_follow_the_seed():
    data = examples(speakers=0)
    a, b, c = (make_folds(data, 5, seed).fold_of for seed in (1, 1, 2))
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


def test_folds_with_a_rare_class():
    data = examples(60, speakers=0)
    data.labels[:] = data.labels % 2
    data.labels[7] = 3
    assert make_folds(data, 5, 0).count == 5


def test_folds_of_fewer_clips_than_folds():
    with pytest.raises(MertoolError, match=r"4 labelled clips with features are fewer than 5 folds"):
        make_folds(examples(4, speakers=0), 5, 0)


def test_a_largest_class_smaller_than_the_folds():
    data = LabelledClips(tuple("abcdef"), np.array([0, 0, 1, 1, 2, 2]), (None,) * 6)
    with pytest.raises(MertoolError, match=r"the largest class has 2 clips, fewer than 5 folds"):
        make_folds(data, 5, 0)


def test_one_fold():
    with pytest.raises(MertoolError, match="1 folds: give 2 to 1000"):
        make_folds(examples(), 1, 0)


def test_one_class_outside_a_fold():
    data = LabelledClips(tuple("abcd"), np.array([0, 0, 1, 1]), ("x", "x", "y", "y"))
    with pytest.raises(MertoolError, match="have one class only"):
        make_folds(data, 2, 0)


def test_no_fold_is_empty():
    """scikit-learn leaves folds empty where few speakers hold most clips of a class."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        labels = rng.choice(3, 40, p=[0.8, 0.1, 0.1])
        speakers = tuple(f"s{n}" for n in rng.choice(5, 40, p=[0.7, 0.1, 0.1, 0.05, 0.05]))
        data = LabelledClips(tuple(f"c{n}" for n in range(40)), labels, speakers)
        try:
            folds = make_folds(data, 5, seed)
        except MertoolError:
            continue  # one class is left
        assert np.bincount(folds.fold_of, minlength=folds.count).min() > 0
        assert folds.description.startswith(f"{folds.count} folds")


def test_classes_that_folds_cannot_train_or_score_are_named():
    labels = np.array([0, 1] * 10 + [2, 2, 3, 3, 3])
    speakers = tuple(f"s{n // 5}" for n in range(20)) + ("s0", "s0", "s0", "s1", "s2")
    data = LabelledClips(tuple(f"c{n}" for n in range(25)), labels, speakers)
    fold_of = np.array([int(speaker[1]) for speaker in speakers])
    classes = ("happy", "sad", "angry", "worried")
    assert describe_rare_classes(data, Folds(fold_of, 4, ""), classes) == [
        "angry (2 clips of speaker s0 alone) is never in training when it is held out",
        "worried (3 clips) has fewer clips than the 4 folds",
    ]
    unknown = LabelledClips(data.clips, labels, (None,) * 25)
    assert describe_rare_classes(unknown, Folds(fold_of, 3, ""), classes) == [
        "angry (2 clips in one fold) is never in training when it is held out"
    ]
    with pytest.warns(MertoolWarning, match="angry .*; worried .*: add clips of more speakers"):
        assert len(warn_of_rare_classes(data, [Folds(fold_of, 4, "")] * 2, classes)) == 2


def test_folds_without_rare_classes_give_no_warning(recwarn):
    data = examples()
    assert warn_of_rare_classes(data, [make_folds(data, 5, 0)], ("a", "b", "c", "d")) == []
    assert not [warning for warning in recwarn if warning.category is MertoolWarning]


def test_labelled_clips_are_sorted(tmp_path, write_manifest):
    from mertool.manifest import Manifest
    from mertool.targets import Classes

    rows = [
        {"clip": clip, "path": "x.mp4", "label": label, "speaker": clip}
        for clip, label in zip("cab", "xyx", strict=True)
    ]
    data = LabelledClips.from_manifest(Manifest.read(write_manifest(tmp_path / "m.csv", rows)), Classes(("x", "y")))
    assert (data.clips, data.labels.tolist(), data.speakers) == (tuple("abc"), [1, 0, 0], tuple("abc"))


def test_folds_by_clip_id():
    data = examples(20, speakers=0)
    folds = make_folds(data, 4, 0)
    assert folds.to_json(data) == {f"c{n}": int(fold) for n, fold in enumerate(folds.fold_of)}


def test_selected_clips_keep_labels_and_speakers():
    data = examples(10)
    selected = data.select(np.arange(10) % 3 == 0)
    assert selected.clips == ("c0", "c3", "c6", "c9")
    assert selected.labels.tolist() == data.labels[::3].tolist()
    assert selected.speakers == data.speakers[::3]


# ---------------------------------------------------------------- folds of a file


def test_folds_come_back_from_their_csv(tmp_path):
    data = examples()
    folds = make_folds(data, 5, 0)
    write_folds(tmp_path / "folds.csv", data, folds)
    folds_read = read_folds(tmp_path / "folds.csv", data)
    assert np.array_equal(folds_read.fold_of, folds.fold_of)
    assert (folds_read.count, folds_read.description) == (5, "5 folds of folds.csv, speaker-disjoint (12 speakers)")


def test_clips_missing_in_a_run_get_the_fold_of_their_speaker(tmp_path):
    data = examples()
    folds = make_folds(data, 5, 0)
    table = folds.to_json(data)
    for clip in ("c3", "c77"):
        del table[clip]
    (tmp_path / "run.json").write_text(json.dumps({"folds": table}))
    assert read_folds(tmp_path, data).fold_of.tolist() == folds.fold_of.tolist()
    few = {clip: table[clip] for clip in list(table)[:40]}
    (tmp_path / "run.json").write_text(json.dumps({"folds": few}))
    with pytest.raises(MertoolError, match="80 of 120 labelled clips have no fold"):  # a run of another corpus
        read_folds(tmp_path, data)


def test_an_incomplete_file_is_accepted_on_request(tmp_path):
    data = examples()
    folds = make_folds(data, 5, 0)
    write_folds(tmp_path / "folds.csv", data.select(np.arange(120) != 7), Folds(np.delete(folds.fold_of, 7), 5, ""))
    with pytest.raises(MertoolError, match="1 of 120 labelled clips have no fold"):
        get_folds(tmp_path / "folds.csv", data, 0)
    assert get_folds(tmp_path / "folds.csv", data, 0, complete=False).fold_of.tolist() == folds.fold_of.tolist()


@pytest.mark.parametrize("name", ["run", "run/run.json"])
def test_folds_of_a_run(tmp_path, name):
    data = examples(20, speakers=0)
    folds = make_folds(data, 4, 0)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(json.dumps({"folds": folds.to_json(data)}))
    assert np.array_equal(read_folds(tmp_path / name, data).fold_of, folds.fold_of)


def write_emobox(path, fold_of, folder="flac/"):
    """EmoBox's form: each fold lists all files, as its test split or its training split."""
    rows = ["fold,split,file,label_emobox"]
    for fold in sorted(set(fold_of.values())):
        for clip, test_fold in fold_of.items():
            rows.append(f"{fold},{'test' if test_fold == fold else 'train'},{folder}{clip}.flac,Angry")
    path.write_text("\n".join(rows))
    return path


def test_folds_of_emobox(tmp_path):
    data = examples(60, speakers=0)
    fold_of = make_folds(data, 3, 0).fold_of
    file = write_emobox(tmp_path / "emobox.csv", {c: f + 1 for c, f in zip(data.clips, fold_of, strict=True)})
    folds_read = read_folds(file, data)
    assert np.array_equal(folds_read.fold_of, fold_of)
    assert "whether they are kept apart is not known" in folds_read.description


def test_the_folders_of_a_corpus_of_emobox(tmp_path):
    data = examples(60, speakers=0)
    fold_of = make_folds(data, 3, 0).fold_of
    for fold in range(3):
        folder = tmp_path / "cafe" / f"fold_{fold + 1}"
        folder.mkdir(parents=True)
        for split in ("train", "test"):
            entries = [
                json.dumps({"key": f"cafe-{clip}", "wav": f"downloads/cafe/{clip}.wav", "emo": "c"})
                for clip, own in zip(data.clips, fold_of, strict=True)
                if (own == fold) == (split == "test")
            ]
            (folder / f"cafe_{split}_fold_{fold + 1}.jsonl").write_text("\n".join(entries))
    folds_read = read_folds(tmp_path / "cafe", data)
    assert np.array_equal(folds_read.fold_of, fold_of)
    assert folds_read.description.startswith("3 folds of cafe")
    before = folds_key(tmp_path / "cafe")
    with open(tmp_path / "cafe" / "fold_1" / "cafe_test_fold_1.jsonl", "a") as file:
        file.write("\n" + json.dumps({"key": "k", "wav": "new.wav", "emo": "c"}))
    assert folds_key(tmp_path / "cafe") != before
    shutil.rmtree(tmp_path / "cafe" / "fold_3")
    with pytest.raises(MertoolError, match=r"the test splits are no partition of the files: .* is in no test split"):
        read_folds(tmp_path / "cafe", data)


def test_clips_of_a_folds_file_are_compared_in_composed_form(tmp_path):
    data = LabelledClips(("\u00e9", "b", "c", "d"), np.array([0, 1, 1, 0]), (None,) * 4)
    (tmp_path / "f.csv").write_text("clip,fold\ne\u0301,1\nb,1\nc,2\nd,2\n", encoding="utf-8")
    assert read_folds(tmp_path / "f.csv", data).fold_of.tolist() == [0, 0, 1, 1]


def test_emobox_files_of_one_name_are_distinguished_by_folder(tmp_path):
    data = LabelledClips(("a__x", "b__x", "a__y", "b__y"), np.array([0, 1, 1, 0]), (None,) * 4)
    file = tmp_path / "e.csv"
    rows = [f"{fold},test,{name}.wav,l" for name, fold in (("a/x", 1), ("b/x", 2), ("a/y", 1), ("b/y", 2))]
    file.write_text("fold,split,file,label_emobox\n" + "\n".join(rows))
    assert read_folds(file, data).fold_of.tolist() == [0, 1, 0, 1]
    unclear = LabelledClips(("x", "b__x", "a__y", "b__y"), data.labels, data.speakers)
    with pytest.raises(MertoolError, match=r"'x' may be a/x.wav or b/x.wav"):
        read_folds(file, unclear)


def test_speakers_in_several_folds_are_reported(tmp_path):
    data = examples()
    spread = make_folds(LabelledClips(data.clips, data.labels, (None,) * len(data)), 5, 0)
    write_folds(tmp_path / "folds.csv", data, spread)
    assert (
        "not speaker-disjoint (12 of 12 speakers are in several folds)"
        in read_folds(tmp_path / "folds.csv", data).description
    )


def test_other_clips_of_a_file_are_ignored(tmp_path):
    data = examples(40, speakers=0)
    write_folds(tmp_path / "folds.csv", data, make_folds(data, 4, 0))
    selected = data.select(np.arange(40) % 2 == 0)
    assert len(read_folds(tmp_path / "folds.csv", selected).fold_of) == 20


def test_fold_names_are_numbered_in_natural_order(tmp_path):
    data = LabelledClips(tuple("abcd"), np.array([0, 1, 0, 1]), (None,) * 4)
    (tmp_path / "f.csv").write_text("Clip,Fold\na,10\nb,10\nc,2\nd,2\nother,7\n")
    assert read_folds(tmp_path / "f.csv", data).fold_of.tolist() == [1, 1, 0, 0]
    (tmp_path / "f.csv").write_text("fold,clip,more\nright,a,1\nright,b,1\nleft,c,1\nleft,d,1\n")
    assert read_folds(tmp_path / "f.csv", data).fold_of.tolist() == [1, 1, 0, 0]


FAULTS = {
    "a clip without a fold": ("clip,fold\na,1\nb,2\n", r"2 of 4 labelled clips have no fold \(first: 'c'\)"),
    "all in one": ("clip,fold\na,1\nb,1\nc,1\nd,1\n", "puts all 4 labelled clips into fold 1"),
    "one class left": ("clip,fold\na,1\nb,2\nc,1\nd,1\n", "without fold 1 only one class is left"),
    "two folds": ("clip,fold\na,1\nb,1\nc,2\nd,2\na,2\n", "row 6: 'a' is in fold 1 and in fold 2"),
    "an empty cell": ("clip,fold\na,\n", "row 2: fold is empty"),
    "an unknown form": ("name,part\na,1\n", "has the columns 'name,part': give a CSV with the columns clip,fold"),
    "a short row": ("clip,fold\na\n", "row 2 has 1 cells, the header 2"),
    "nothing": ("", "is empty"),
    "in two test splits": (
        "fold,split,file\n1,test,a.wav\n2,test,a.wav\n",
        "a.wav is in the test split of fold 1 and of fold 2",
    ),
    "in no test split": ("fold,split,file\n1,train,a.wav\n", "a.wav is in no test split"),
    "a column twice": ("clip,fold,fold\na,1,2\n", "has a column twice in 'clip,fold,fold'"),
    "a negative number": ("clip,fold\na,-1\n", "row 2: fold -1: give a name or a whole number from 0"),
    "half a fold": ("clip,fold\na,0.5\n", "row 2: fold 0.5: give a name or a whole number from 0"),
    "no number": ("clip,fold\na,nan\n", "row 2: fold nan: give a name or a whole number from 0"),
    "infinity": ("clip,fold\na,inf\n", "row 2: fold inf: give a name or a whole number from 0"),
    "a long name": (f"clip,fold\na,{'9' * 5000}\n", "has more than 40 characters"),
    "a name that is not printable": ("clip,fold\na,\x01\n", "some that cannot be printed"),
    "a cell of a megabyte": (
        f"clip,fold\na,{'x' * (1 << 20)}\n",
        "has more than 40 characters|cannot be read as a CSV",
    ),
    "many columns": (",".join(f"c{n}" for n in range(9999)) + "\n", "has the columns 'c0,c1,"),
    "a float of EmoBox": ("fold,split,file\n1.5,test,a.wav\n", "row 2: fold 1.5"),
    "in both splits": ("fold,split,file\n1,test,a.wav\n1,train,a.wav\n", "a.wav is in both splits of fold 1"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_of_a_folds_file(name, tmp_path):
    content, words = FAULTS[name]
    file = tmp_path / "folds.csv"
    file.write_text(content)
    with pytest.raises(MertoolError, match=words) as raised:
        read_folds(file, LabelledClips(tuple("abcd"), np.array([0, 1, 1, 1]), (None,) * 4))
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 600


@pytest.mark.parametrize(
    ("folds", "words"),
    [
        ('{"a": 1000000000, "b": 0}', "into fold 1000000000: folds of a run are whole numbers from 0 to 999"),
        ('{"a": -1, "b": 0}', "into fold -1"),
        ('{"a": 1.5, "b": 0}', "into fold 1.5"),
        ('{"a": true, "b": 0}', "into fold True"),
        ('{"a": "1", "b": 0}', "into fold 1"),
        ('{"a": null, "b": 0}', "into fold None"),
        ('{"a": [[[1]]], "b": 0}', "into fold"),
        ('{"a": 1e999, "b": 0}', "cannot be read"),
        ('{"a": NaN, "b": 0}', "cannot be read"),
        ('{"a": 0, "a": 1}', "'a' is repeated"),
        ("[" * 100_000 + "]" * 100_000, "nested"),
        ("[1, 2]", "holds no folds of a run"),
        ("{}", "holds no folds of a run"),
        ('{"x": 0, "y": 1}', "4 of 4 labelled clips have no fold"),
    ],
)
def test_folds_of_a_run_that_are_none(folds, words, tmp_path):
    (tmp_path / "run.json").write_text(f'{{"folds": {folds}}}')
    with pytest.raises(MertoolError, match=re.escape(words)) as raised:
        read_folds(tmp_path, LabelledClips(tuple("abcd"), np.array([0, 1, 1, 1]), (None,) * 4))
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 600


def test_more_folds_than_are_trained(tmp_path):
    data = examples(1200, speakers=0)
    (tmp_path / "folds.csv").write_text("clip,fold\n" + "".join(f"{clip},{clip}\n" for clip in data.clips))
    with pytest.raises(MertoolError, match="has 1,200 folds: at most 1000 are trained"):
        read_folds(tmp_path / "folds.csv", data)


def test_numbers_of_a_spreadsheet_are_the_folds_that_they_name(tmp_path):
    data = LabelledClips(tuple("abcd"), np.array([0, 1, 0, 1]), (None,) * 4)
    (tmp_path / "f.csv").write_text("clip,fold\na,1.0\nb,01\nc,2\nd,2.0\n")
    assert read_folds(tmp_path / "f.csv", data).fold_of.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("text", ["2.5", "1e9", "--5", "inf", "nan", "True", "9" * 5000, "1_000"])
def test_numbers_that_are_no_number_of_folds(text):
    with pytest.raises(MertoolError, match="give a whole number from 2 to 1000, or a file") as raised:
        parse_folds(text)
    assert len(str(raised.value)) < 200


@pytest.mark.parametrize("name", ["x" * 5000, "folder/" + "x" * 5000])
def test_a_path_that_cannot_be_one(name):
    with pytest.raises(MertoolError, match="is no path"):
        folds_key(Path(name))


def test_a_pipe_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "folds.csv")
    with pytest.raises(MertoolError, match="is not a regular file"):
        read_folds(tmp_path / "folds.csv", examples())


def test_a_folds_file_that_does_not_exist_or_holds_no_folds(tmp_path):
    with pytest.raises(MertoolError, match="does not exist: give a number, or a CSV"):
        read_folds(tmp_path / "no.csv", examples())
    with pytest.raises(MertoolError, match=r"is a folder without a run\.json"):
        read_folds(tmp_path, examples())
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(MertoolError, match="holds no folds of a run"):
        read_folds(tmp_path, examples())
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(MertoolError, match="cannot be read as a CSV in UTF-8"):
        read_folds(tmp_path / "binary.csv", examples())


def test_folds_option_is_a_number_or_a_file(tmp_path):
    data = examples(40, speakers=0)
    made = get_folds(4, data, 0)
    write_folds(tmp_path / "folds.csv", data, made)
    assert np.array_equal(get_folds(tmp_path / "folds.csv", data, 1).fold_of, made.fold_of)
    assert folds_key(4) == 4
    key = folds_key(tmp_path / "folds.csv")
    (tmp_path / "other.csv").write_text((tmp_path / "folds.csv").read_text())
    assert folds_key(tmp_path / "other.csv") == key
    (tmp_path / "other.csv").write_text("clip,fold\n")
    assert folds_key(tmp_path / "other.csv") != key


def test_speaker_groups_need_all_speakers():
    data = examples(speakers=3)
    assert set(speaker_groups(data)) == {"s0", "s1", "s2"}
    assert speaker_groups(LabelledClips(data.clips, data.labels, (None, *data.speakers[1:]))) is None
    assert speaker_groups(LabelledClips(data.clips, data.labels, ("s",) * len(data))) is None


def test_folds_are_stratified_by_numbers():
    """A fifth of each fifth of the numbers is in each fold."""
    numbers = np.random.default_rng(0).exponential(2.0, 100)
    data = LabelledClips(tuple(f"c{n:03}" for n in range(100)), numbers, (None,) * 100)
    folds = make_folds(data, 5, 0)
    ranks = numbers.argsort().argsort() // 20
    assert (np.array([np.bincount(ranks[folds.held_out(fold)]) for fold in range(5)]) == 4).all()
    assert warn_of_rare_classes(data, [folds], ()) == []


def test_numbers_with_few_values_are_stratified_by_value():
    numbers = np.repeat([1.0, 1.0, 1.0, 2.0], 10)
    data = LabelledClips(tuple(f"c{n:03}" for n in range(40)), numbers, (None,) * 40)
    folds = make_folds(data, 5, 0)
    assert all((numbers[folds.held_out(fold)] == 2.0).sum() == 2 for fold in range(5))
