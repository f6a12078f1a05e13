"""`mertool corpora`, and `mertool manifest --corpus`: the manifest, the folds, and what is told of them."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from fixtures.corpus_trees import TREES

from mertool.corpora import corpus_names
from mertool.learning.folds_file import read_folds
from mertool.learning.labelled_clips import LabelledClips
from mertool.manifest import Manifest
from mertool.targets import Classes

RAVDESS = Path(__file__).parents[3] / "shared" / "data" / "ravdess"


@pytest.fixture
def iemocap(tmp_path):
    TREES["iemocap"](tmp_path / "corpus")
    return tmp_path / "corpus"


def test_the_folds_of_a_corpus_are_read_by_folds(iemocap, tmp_path, call):
    result = call("manifest", iemocap, "--corpus", "iemocap", "--partial", "-o", tmp_path / "clips.csv", "--json")
    summary = json.loads(result.stdout)
    assert summary["folds"] == str(tmp_path / "clips.folds.csv")
    assert summary["classes"] == ["angry", "happy", "neutral", "sad"]
    examples = LabelledClips.from_manifest(Manifest.read(tmp_path / "clips.csv"), Classes(tuple(summary["classes"])))
    folds = read_folds(tmp_path / "clips.folds.csv", examples)
    assert folds.count == 2
    assert folds.fold_of.tolist() == [0, 0, 0, 1, 1]
    assert "speaker-disjoint" in folds.description


def test_the_next_commands_have_the_classes_and_the_folds(iemocap, tmp_path, call):
    said = call("manifest", iemocap, "--corpus", "iemocap", "--partial", "-o", tmp_path / "clips.csv").stdout
    assert "protocol: 5 folds, one session held out in each" in said
    assert f"--classes angry,happy,neutral,sad --folds {tmp_path / 'clips.folds.csv'}" in said


def test_a_corpus_with_splits_has_no_folds(tmp_path, call):
    TREES["meld"](tmp_path / "corpus")
    said = call("manifest", tmp_path / "corpus", "--corpus", "meld", "--partial", "-o", tmp_path / "clips.csv").stdout
    assert "protocol: the splits train, dev and test (train 1, dev 1, test 1)" in said
    assert not (tmp_path / "clips.folds.csv").exists()


def test_labels_of_mer_need_no_classes(iemocap, tmp_path, call):
    options = ("--corpus", "iemocap", "--partial", "--map-labels")
    said = call("manifest", iemocap, *options, "-o", tmp_path / "clips.csv").stdout
    assert "--classes" not in said
    assert Manifest.read(tmp_path / "clips.csv").describe_unknown_labels() == ""


def test_transcripts_of_a_table_replace_those_of_the_corpus(iemocap, tmp_path, call):
    (tmp_path / "words.csv").write_text("clip,text\nSes01F_impro01_F000,Hello.\n", encoding="utf-8")
    options = ("--corpus", "iemocap", "--partial", "--transcripts", tmp_path / "words.csv")
    call("manifest", iemocap, *options, "-o", tmp_path / "clips.csv")
    texts = {clip.clip: clip.text for clip in Manifest.read(tmp_path / "clips.csv").clips}
    assert texts["Ses01F_impro01_F000"] == "Hello."
    assert texts["Ses01F_impro01_M000"] == "Do you?"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--corpus", "iemocapp"], "unknown corpus 'iemocapp': did you mean 'iemocap'? valid: ch-sims, crema-d"),
        (["--corpus", "iemocap", "--labels", "l.csv"], "leave out --labels, or --corpus"),
        (["--map-labels"], "--map-labels is of --corpus: give both"),
        (["--partial"], "--partial is of --corpus: give both"),
        (["--corpus", "iemocap"], "7 of the 10039 clips of IEMOCAP"),
        (["--corpus", "meld"], "is not MELD, or not all of it"),
    ],
)
def test_bad_input_is_one_line(iemocap, tmp_path, invoke, options, message):
    result = invoke("manifest", iemocap, "-o", tmp_path / "clips.csv", *options)
    assert result.exit_code != 0
    assert message in str(result.exception)
    assert not (tmp_path / "clips.csv").exists()


def test_the_list_of_corpora(call):
    said = call("corpora").stdout
    assert all(name in said for name in corpus_names())
    assert {card["name"] for card in json.loads(call("corpora", "--json").stdout)["corpora"]} == set(corpus_names())


def test_one_corpus_with_its_label_map_source_and_licence(call):
    said = call("corpora", "iemocap").stdout
    for words in ("exc", "excited", "protocol: 5 folds", "source: https://sail.usc.edu/iemocap", "licence: academic"):
        assert words in said
    card = json.loads(call("corpora", "iemocap", "--json").stdout)["corpora"][0]
    assert card["mer_classes"]["fear"] == "worried"


def test_an_unknown_name_lists_the_corpora(invoke):
    assert "did you mean 'mosi'" in str(invoke("corpora", "mosy").exception)


def test_the_docs_list_every_corpus():
    page = (Path(__file__).parents[2] / "docs" / "corpora.md").read_text(encoding="utf-8")
    assert [name for name in corpus_names() if f"| `{name}` |" not in page] == []


@pytest.mark.skipif(not RAVDESS.is_dir(), reason="RAVDESS is not here")
def test_real_ravdess_has_the_labels_and_folds_of_its_tables(tmp_path, call):
    call("manifest", RAVDESS, "--corpus", "ravdess", "-o", tmp_path / "clips.csv")
    manifest = Manifest.read(tmp_path / "clips.csv")
    with open(RAVDESS / "labels.csv", newline="", encoding="utf-8") as file:
        truth = {Path(row["file"]).stem: row for row in csv.DictReader(file)}
    assert {clip.clip for clip in manifest.clips} == set(truth)
    names = {"fearful": "fear", "surprised": "surprise"}
    for clip in manifest.clips:
        row = truth[clip.clip]
        assert clip.label == names.get(row["label"], row["label"])
        assert (clip.speaker, clip.gender[0]) == (row["speaker"], row["gender"])
    classes = tuple(sorted({clip.label for clip in manifest.clips}))
    examples = LabelledClips.from_manifest(manifest, Classes(classes))
    ours = read_folds(tmp_path / "clips.folds.csv", examples)
    emobox = read_folds(RAVDESS / "emobox_folds.csv", examples)
    assert np.array_equal(ours.fold_of, emobox.fold_of)
