"""MSP-Podcast: `Labels/labels_consensus.csv`, the folder `Audios` and, from release 1.10 on, `Transcripts/NAME.txt`.

The columns are FileName, EmoClass, EmoAct, EmoVal, EmoDom, SpkrID, Gender and Split_Set (Lotfian and Busso 2019;
`datasets/MSP-PODCAST/process.py` of https://github.com/Strong-AI-Lab/emotion and `msppodcast.py` of EmoBox; older
releases spell it labels_concensus.csv). Classes are the eight of the challenges of Odyssey 2024 and Interspeech 2025,
without O (other) and X (no agreement). Test1 is the test split, as in EmoBox; Test2 and Test3 are left out.
"""

from collections.abc import Iterator

from mertool.corpora._release import CorpusClip, Release

TITLE = "MSP-Podcast"
LANGUAGE = "English"
MODALITIES = "audio, text"
CLIPS = None
SPEAKERS = "over 1000, some not known"
LAYOUT = "Labels/labels_consensus.csv and Audios/MSP-PODCAST_0001_0008.wav"
LABELS = {
    "A": "angry",
    "S": "sad",
    "H": "happy",
    "U": "surprise",
    "F": "fear",
    "D": "disgust",
    "C": "contempt",
    "N": "neutral",
    "O": "other",
    "X": "no agreement",
}
CLASSES = ("angry", "sad", "happy", "surprise", "fear", "disgust", "contempt", "neutral")
PROTOCOL = "the splits train and dev, and Test1 as test"
SOURCE = "https://www.lab-msp.com"
LICENCE = "academic or commercial, by agreement with UT Dallas"

SPLITS = {"train": "train", "development": "dev", "validation": "dev", "test1": "test"}
COLUMNS = ("filename", "emoclass", "emoact", "emoval", "spkrid", "gender", "split_set")


def read(release: Release) -> Iterator[CorpusClip]:
    """Yield the clips of train, dev and Test1."""
    files = release.group(lambda path: path.stem)
    texts = {name: " ".join(text.split()) for name, text in release.texts("Transcripts/*.txt", required=False)}
    for row in release.rows("labels_con[sc]ensus.csv", *COLUMNS):
        name, gender = row["filename"].removesuffix(".wav"), row["gender"].lower()
        if split := SPLITS.get(row["split_set"].lower()):
            yield CorpusClip(
                clip=name,
                files=files.get(name, []),
                label=row["emoclass"],
                text=texts.get(name),
                speaker=None if row["spkrid"].lower() == "unknown" else row["spkrid"],
                gender=gender if gender in ("female", "male") else None,
                split=split,
                valence=float(row["emoval"]),
                arousal=float(row["emoact"]),
            )
