"""EMO-DB: facts of a clip are in its file name, such as 03a01Fa.wav: speaker, text, emotion (in German) and version.

Source: Burkhardt et al. 2005 and http://emodb.bilderbar.info; texts and speakers as in the example of audformat's
documentation (https://audeering.github.io/audformat/emodb-example.html). The field holds out one speaker at a time.
"""

from collections.abc import Iterator

from mertool.corpora._release import CorpusClip, Release

TITLE = "EMO-DB"
LANGUAGE = "German"
MODALITIES = "audio"
CLIPS = 535
SPEAKERS = "10"
LAYOUT = "wav/03a01Fa.wav"
LABELS = {
    "W": "angry",
    "L": "bored",
    "E": "disgust",
    "A": "fear",
    "F": "happy",
    "T": "sad",
    "N": "neutral",
}
CLASSES = ("angry", "bored", "disgust", "fear", "happy", "neutral", "sad")
PROTOCOL = "10 folds, one speaker held out in each"
SOURCE = "http://emodb.bilderbar.info"
LICENCE = "free of charge; none is stated"

NAME = r"(03|08|09|1[0-6])([ab]\d\d)([A-Z])([a-z]?)"
TEXTS = {
    "a01": "Der Lappen liegt auf dem Eisschrank.",
    "a02": "Das will sie am Mittwoch abgeben.",
    "a04": "Heute Abend könnte ich es ihm sagen.",
    "a05": "Das schwarze Stück Papier befindet sich da oben neben dem Holzstück.",
    "a07": "In sieben Stunden wird es soweit sein.",
    "b01": "Was sind denn das für Tüten, die da unter dem Tisch stehen?",
    "b02": "Sie haben es gerade hoch getragen und jetzt gehen sie wieder runter.",
    "b03": "An den Wochenenden bin ich jetzt immer nach Hause gefahren und habe Agnes besucht.",
    "b09": "Ich will das eben wegbringen und dann mit Karl was trinken gehen.",
    "b10": "Die wird auf dem Platz sein, wo wir sie immer hinlegen.",
}
MALE_SPEAKERS = ("03", "10", "11", "12", "15")


def read(release: Release) -> Iterator[CorpusClip]:
    """Yield all clips."""
    for (speaker, text, emotion, _), files in release.match(NAME):
        yield CorpusClip(
            files=files,
            label=emotion,
            text=TEXTS.get(text),
            speaker=speaker,
            gender="male" if speaker in MALE_SPEAKERS else "female",
            fold=speaker,
        )
