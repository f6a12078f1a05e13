"""IEMOCAP: labels in `SessionN/dialog/EmoEvaluation`, transcripts in `dialog/transcriptions`, a wav file per utterance.

A line is `[6.2901 - 8.2357]<tab>Ses01F_impro01_F000<tab>neu<tab>[valence, arousal, dominance]`; the gender before the
last number is the speaker's. Source: Busso et al. 2008, and `iemocap.py` of https://github.com/s3prl/s3prl and EmoBox.
Four classes with excited as happy (5,531 clips) are standard. The videos show both speakers and are left out.
"""

import re
from collections.abc import Iterator

from mertool.corpora._release import CorpusClip, Release

TITLE = "IEMOCAP"
LANGUAGE = "English"
MODALITIES = "audio, text"
CLIPS = 10039
SPEAKERS = "10"
LAYOUT = "Session1/sentences/wav/Ses01F_impro01/Ses01F_impro01_F000.wav and Session1/dialog/EmoEvaluation"
LABELS = {
    "ang": "angry",
    "hap": "happy",
    "sad": "sad",
    "neu": "neutral",
    "exc": "excited",
    "fru": "frustrated",
    "fea": "fear",
    "sur": "surprise",
    "dis": "disgust",
    "oth": "other",
    "xxx": "no agreement",
}
CLASSES = ("angry", "happy", "neutral", "sad")
MERGE = {"excited": "happy"}
PROTOCOL = "5 folds, one session held out in each"
SOURCE = "https://sail.usc.edu/iemocap"
LICENCE = "academic, by agreement with USC"

LABEL_LINE = re.compile(r"^\[[\d.]+ - [\d.]+\]\t(Ses0([1-5])[FM]_\w+_([FM])\w*)\t(\w{3})\t\[([\d.]+), ([\d.]+),", re.M)
TEXT_LINE = re.compile(r"^(Ses\w+) \[[\d.]+ ?- ?[\d.]+\]:[ \t]*(.*)$", re.M)


def read(release: Release) -> Iterator[CorpusClip]:
    """Yield all utterances, whatever their label."""
    files = release.group(lambda path: path.stem)
    transcripts = release.texts("dialog/transcriptions/Ses*.txt", required=False)
    texts = dict(line for _, content in transcripts for line in TEXT_LINE.findall(content))
    for _, content in release.texts("dialog/EmoEvaluation/Ses*.txt"):
        for clip, session, gender, label, valence, arousal in LABEL_LINE.findall(content):
            yield CorpusClip(
                clip=clip,
                files=files.get(clip, []),
                label=label,
                text=texts.get(clip, "").strip(),
                speaker=f"Ses0{session}_{gender}",
                gender={"F": "female", "M": "male"}[gender],
                fold=f"Session{session}",
                valence=float(valence),
                arousal=float(arousal),
            )
