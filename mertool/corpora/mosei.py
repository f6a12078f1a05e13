"""CMU-MOSEI (Zadeh et al. 2018), in the layout of MMSA; see `_sentiment.py` for its tables and their source."""

from mertool.corpora._sentiment import read_sentiment

TITLE = "CMU-MOSEI"
LANGUAGE = "English"
MODALITIES = "audio, video, text"
CLIPS = 22856
SPEAKERS = "about 1000"
LAYOUT = "label.csv and Raw/_0efYOjQYRc/0.mp4"
LABELS = {"negative": "negative", "neutral": "neutral", "positive": "positive"}
CLASSES = ("negative", "positive")
TARGET = "sentiment"
PROTOCOL = "the splits train, dev and test of MMSA"
SOURCE = "http://multicomp.cs.cmu.edu/resources/cmu-mosei-dataset"
LICENCE = "research use; the videos are of YouTube"

read = read_sentiment
