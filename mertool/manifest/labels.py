"""Emotion labels: the classes of the MER challenges, aliases in English and Chinese, and labels that are numbers."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache

from mertool.errors import MertoolError, count_of, suggest
from mertool.tables import normalize

# MER2023 to MER2026 use this order of indices (MERTools).
EMOTIONS = ("neutral", "angry", "happy", "sad", "worried", "surprise")
# Names of one emotion in different corpora; a label means the class of the label set that is in its group.
SYNONYMS = (
    ("neutral", "neutrality", "neu", "中性", "中立", "平静"),
    ("angry", "anger", "ang", "愤怒", "生气", "憤怒", "生氣"),
    ("happy", "happiness", "joy", "joyful", "hap", "高兴", "开心", "快乐", "喜悦", "高興", "開心", "快樂"),
    ("sad", "sadness", "悲伤", "难过", "伤心", "悲傷", "難過", "傷心"),
    ("worried", "worry", "担忧", "担心", "擔憂", "擔心"),
    ("surprise", "surprised", "sur", "惊讶", "吃惊", "驚訝"),
    ("fear", "fearful", "afraid", "scared", "fea", "恐惧", "害怕", "恐懼"),
    ("disgust", "disgusted", "dis", "厌恶", "厭惡"),
    ("contempt", "contemptuous", "轻蔑", "輕蔑"),
    ("excited", "excitement", "exc", "兴奋", "興奮"),
    ("frustrated", "frustration", "fru", "沮丧", "沮喪"),
    ("calm", "calmness", "冷静", "冷靜"),
)
SYNONYMS_OF = {name: group for group in SYNONYMS for name in group}
# Tables that pandas wrote have 3.0 where some labels are missing.
INDEX_LABEL = re.compile(r"(\d+)(\.0+)?")
MAX_LISTED = 8


def normalize_label(label: str) -> str:
    """Return a label or class name in the form in which names are compared: lower case, NFC, without spaces around."""
    return normalize(label).lower()


def parse_classes(text: str) -> tuple[str, ...]:
    """Return class names from `a,b,c`, in index order. Raises MertoolError unless there are two different ones."""
    classes = tuple(name for name in map(normalize_label, text.split(",")) if name)
    if len(classes) < 2 or len(set(classes)) < len(classes):
        raise MertoolError(f"classes '{text}': give at least two different names as neutral,happy,sad")
    return classes


def canonical_label(label: str, classes: tuple[str, ...], *, allow_index: bool | None = None) -> str | None:
    """Return the class that a label means, None if there is none: by its name, an alias or the index of the class.

    Corpora number their classes in different orders, so indices count only if the user named the classes. Without
    `allow_index` that is taken to be so for any classes but those of the challenges, the default.

    >>> canonical_label("开心", EMOTIONS), canonical_label("1", ("calm", "tense")), canonical_label("fear", EMOTIONS)
    ('happy', 'tense', None)
    """
    name = normalize_label(label)
    class_of = _classes_by_name(classes)
    if name in class_of:
        return class_of[name]
    if allow_index is None:
        allow_index = classes != EMOTIONS
    if allow_index and (match := INDEX_LABEL.fullmatch(name)):
        index = int(match[1])
        return classes[index] if index < len(classes) else None
    synonyms = [class_of[synonym] for synonym in SYNONYMS_OF.get(name, ()) if synonym in class_of]
    return synonyms[0] if len(synonyms) == 1 else None


@cache
def _classes_by_name(classes: tuple[str, ...]) -> dict[str, str]:
    return {normalize_label(name): name for name in classes}


def describe_unknown_labels(labels: Iterable[str], classes: tuple[str, ...], *, allow_index: bool | None = None) -> str:
    """Return a sentence about the labels that mean none of the classes, with the way out; empty if there are none."""
    unknown = Counter(label for label in labels if canonical_label(label, classes, allow_index=allow_index) is None)
    if not unknown:
        return ""
    names = ", ".join(f"'{label}' ({_count_clips(count)})" for label, count in unknown.most_common(MAX_LISTED))
    more = f" and {len(unknown) - MAX_LISTED} more" if len(unknown) > MAX_LISTED else ""
    return f"unknown labels {names}{more}: {_hint(list(unknown), classes)}valid: {', '.join(classes)}"


def _count_clips(count: int) -> str:
    return count_of(count, "clip")


def _hint(unknown: Sequence[str], classes: tuple[str, ...]) -> str:
    if all(INDEX_LABEL.fullmatch(normalize_label(label)) for label in unknown):
        return "these are numbers, name their classes in index order with `mertool manifest --labels --classes a,b,c`; "
    return suggest(unknown[0], classes)
