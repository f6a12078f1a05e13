"""nEMO: the table `data.tsv` and the folder `samples`, with a wav file such as EB0_anger_1.wav per row.

Source: Christop 2024 and https://github.com/amu-cai/nEMO, whose table has file_id, emotion, raw_text, normalized_text,
speaker_id (after spaces), gender and age. There are no splits, so each speaker is held out in turn.
"""

from collections.abc import Iterator

from mertool.corpora._release import CorpusClip, Release

TITLE = "nEMO"
LANGUAGE = "Polish"
MODALITIES = "audio, text"
CLIPS = 4481
SPEAKERS = "9"
LAYOUT = "data.tsv and samples/EB0_anger_1.wav"
LABELS = {
    "anger": "angry",
    "fear": "fear",
    "happiness": "happy",
    "neutral": "neutral",
    "sadness": "sad",
    "surprised": "surprise",
}
CLASSES = ("angry", "fear", "happy", "neutral", "sad", "surprise")
PROTOCOL = "9 folds, one speaker held out in each; there is no standard one"
SOURCE = "https://github.com/amu-cai/nEMO"
LICENCE = "CC BY-NC-SA 4.0"

COLUMNS = ("file_id", "emotion", "raw_text", "speaker_id", "gender")


def read(release: Release) -> Iterator[CorpusClip]:
    """Yield the clips of the table."""
    files = release.group(lambda path: path.stem)
    for row in release.rows("data.tsv", *COLUMNS):
        name = row["file_id"].removesuffix(".wav")
        yield CorpusClip(
            clip=name,
            files=files.get(name, []),
            label=row["emotion"],
            text=row["raw_text"],
            speaker=row["speaker_id"],
            gender=row["gender"],
            fold=row["speaker_id"],
        )
