"""CMU-MOSI (Zadeh et al. 2016), in the layout of MMSA; see `_sentiment.py` for its tables and their source."""

from mertool.corpora._sentiment import read_sentiment

TITLE = "CMU-MOSI"
LANGUAGE = "English"
MODALITIES = "audio, video, text"
CLIPS = 2199
SPEAKERS = "89, in 93 videos"
LAYOUT = "label.csv and Raw/03bSnISJMiM/1.mp4"
LABELS = {"negative": "negative", "neutral": "neutral", "positive": "positive"}
CLASSES = ("negative", "positive")
TARGET = "sentiment"
PROTOCOL = "the splits train, dev and test of MMSA"
SOURCE = "http://multicomp.cs.cmu.edu/resources/cmu-mosi-dataset"
LICENCE = "research use; the videos are of YouTube"

read = read_sentiment
