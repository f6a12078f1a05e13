"""CH-SIMS (Yu et al. 2020), in the layout of MMSA; see `_sentiment.py` for its tables and their source."""

from collections.abc import Iterator

from mertool.corpora._release import CorpusClip, Release
from mertool.corpora._sentiment import read_sentiment

TITLE = "CH-SIMS"
LANGUAGE = "Chinese"
MODALITIES = "audio, video, text"
CLIPS = 2281
SPEAKERS = "474"
LAYOUT = "label.csv and Raw/video_0001/0001.mp4"
LABELS = {"negative": "negative", "neutral": "neutral", "positive": "positive"}
CLASSES = ("negative", "positive")
TARGET = "sentiment"
PROTOCOL = "the splits train, dev and test of MMSA"
SOURCE = "https://github.com/thuiar/MMSA"
LICENCE = "research use; the videos are of films and television"


def read(release: Release) -> Iterator[CorpusClip]:
    """Yield all clips; the label, from -1 to 1, is their valence."""
    return read_sentiment(release, target="valence")
