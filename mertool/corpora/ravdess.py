"""RAVDESS, the speech part: facts of a clip are in its file name, such as 03-01-06-01-02-01-12.wav.

The fields are modality (01 audio and video, 02 video, 03 audio), channel (01 speech, 02 song), emotion, intensity,
statement, repetition and actor; odd actors are male (Livingstone and Russo 2018; https://zenodo.org/records/1188976).
The files of one performance in several modalities are one clip. Songs are left out, as EmoBox does; its folds are those
of `data/ravdess/fold_*` (https://github.com/emo-box/EmoBox).
"""

from collections.abc import Iterator

from mertool.corpora._release import CorpusClip, Release

TITLE = "RAVDESS"
LANGUAGE = "English"
MODALITIES = "audio, video"
CLIPS = 1440
SPEAKERS = "24"
LAYOUT = "Actor_01/03-01-06-01-02-01-01.wav, or 01-01-06-01-02-01-01.mp4"
LABELS = {
    "01": "neutral",
    "02": "calm",
    "03": "happy",
    "04": "sad",
    "05": "angry",
    "06": "fear",
    "07": "disgust",
    "08": "surprise",
}
CLASSES = ("neutral", "calm", "happy", "sad", "angry", "fear", "disgust", "surprise")
PROTOCOL = "6 folds by actor, those of EmoBox"
SOURCE = "https://zenodo.org/records/1188976"
LICENCE = "CC BY-NC-SA 4.0"

NAME = r"0[123]-01-(0[1-8])-(0[12])-(0[12])-(0[12])-(0[1-9]|1\d|2[0-4])"
STATEMENTS = {"01": "Kids are talking by the door.", "02": "Dogs are sitting by the door."}
FOLDS = ("01 11 20 21", "04 10 12 14", "08 09 19 23", "03 05 07 24", "02 15 16 18", "06 13 17 22")
FOLD_OF_ACTOR = {actor: str(fold) for fold, actors in enumerate(FOLDS, start=1) for actor in actors.split()}


def read(release: Release) -> Iterator[CorpusClip]:
    """Yield the spoken clips."""
    for (emotion, _, statement, _, actor), files in release.match(NAME):
        yield CorpusClip(
            files=files,
            label=emotion,
            text=STATEMENTS[statement],
            speaker=actor,
            gender="male" if int(actor) % 2 else "female",
            fold=FOLD_OF_ACTOR[actor],
        )
