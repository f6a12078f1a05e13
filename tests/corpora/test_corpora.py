"""The contract of every corpus: what its file must say, and that it refuses a folder of something else."""

from pathlib import Path

import pytest

from mertool.corpora import corpus_card, corpus_names, read_corpus
from mertool.errors import MertoolError
from mertool.manifest import EMOTIONS
from mertool.registry import load

NAMES = corpus_names()


@pytest.mark.parametrize("name", NAMES)
def test_the_card_of_a_corpus_is_whole(name):
    card = corpus_card(name)
    assert len(card.classes) >= 2
    assert set(card.classes) <= set(card.label_names)
    assert set(card.merge) <= set(card.label_names) - set(card.classes)
    assert set(card.merge.values()) <= set(card.classes)
    assert set(card.mer_classes.values()) <= set(EMOTIONS)
    assert card.target in ("emotion", "sentiment")
    assert card.source.startswith(("https://", "http://"))
    assert all((card.title, card.language, card.modalities, card.speakers, card.layout, card.protocol, card.licence))
    assert card.clips is None or card.clips > 0


@pytest.mark.parametrize("name", NAMES)
def test_the_file_of_a_corpus_is_small_and_names_its_source(name):
    module = load("corpora", "corpus", name)
    assert len(Path(module.__file__).read_text(encoding="utf-8").splitlines()) < 60
    assert "http" in module.__doc__ or "_sentiment.py" in module.__doc__


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_of_something_else_is_refused_in_one_line(name, tmp_path):
    (tmp_path / "a.wav").touch()
    with pytest.raises(MertoolError, match="or not all of it: it holds no") as refusal:
        read_corpus(name, tmp_path)
    assert corpus_card(name).title in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_corpora_of_sentiment_have_no_emotion_of_mer():
    assert [name for name in NAMES if not corpus_card(name).mer_classes] == ["ch-sims", "mosei", "mosi"]


def test_an_unknown_corpus_lists_the_known_ones():
    with pytest.raises(MertoolError, match="unknown corpus 'iemocap4': did you mean 'iemocap'") as refusal:
        corpus_card("iemocap4")
    assert "ravdess" in str(refusal.value)
