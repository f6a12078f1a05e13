"""CREMA-D: facts of a clip are in its file name, such as 1001_DFA_ANG_XX.wav: actor, sentence, emotion and level.

The label is the emotion that was acted. `VideoDemographics.csv` has the sex of the actors (Cao et al. 2014;
https://github.com/CheyneyComputerScience/CREMA-D; the sentences as in EmoBox' `cremad.py`). EmoBox' split mixes actors,
and no other is in common use, so there are five folds by actor: fold k has the actors 1000 + k, 1005 + k, ...
"""

from collections.abc import Iterator

from mertool.corpora._release import CorpusClip, Release

TITLE = "CREMA-D"
LANGUAGE = "English"
MODALITIES = "audio, video"
CLIPS = 7442
SPEAKERS = "91"
LAYOUT = "AudioWAV/1001_DFA_ANG_XX.wav, VideoFlash/1001_DFA_ANG_XX.flv or both, and VideoDemographics.csv"
LABELS = {"ANG": "angry", "DIS": "disgust", "FEA": "fear", "HAP": "happy", "NEU": "neutral", "SAD": "sad"}
CLASSES = ("angry", "disgust", "fear", "happy", "neutral", "sad")
PROTOCOL = "5 folds by actor; there is no standard one"
SOURCE = "https://github.com/CheyneyComputerScience/CREMA-D"
LICENCE = "ODbL 1.0 (contents: DbCL 1.0)"

NAME = r"(1\d{3})_([A-Z]{3})_([A-Z]{3})_(LO|MD|HI|XX?)"
SENTENCES = {
    "IEO": "It's eleven o'clock.",
    "TIE": "That is exactly what happened.",
    "IOM": "I'm on my way to the meeting.",
    "IWW": "I wonder what this is about.",
    "TAI": "The airplane is almost full.",
    "MTI": "Maybe tomorrow it will be cold.",
    "IWL": "I would like a new alarm clock.",
    "ITH": "I think I have a doctor's appointment.",
    "DFA": "Don't forget a jacket.",
    "ITS": "I think I've seen this before.",
    "TSI": "The surface is slick.",
    "WSI": "We'll stop in a couple of minutes.",
}


def read(release: Release) -> Iterator[CorpusClip]:
    """Yield all clips; a video file and an audio file of one name are one clip."""
    actors = release.rows("VideoDemographics.csv", "actorid", "sex", required=False)
    sexes = {row["actorid"]: row["sex"].lower() for row in actors}
    for (actor, sentence, emotion, _), files in release.match(NAME):
        yield CorpusClip(
            files=files,
            label=emotion,
            text=SENTENCES.get(sentence),
            speaker=actor,
            gender=sexes.get(actor),
            fold=str((int(actor) - 1) % 5 + 1),
        )
