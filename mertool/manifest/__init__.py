"""The manifest: which clips there are, where they lie and what is known of them."""

from mertool.manifest.clips import COLUMNS, SPLITS, Clip
from mertool.manifest.csv_file import time_faults
from mertool.manifest.labels import EMOTIONS, canonical_label, describe_unknown_labels, parse_classes
from mertool.manifest.manifest import Manifest
from mertool.manifest.names import ClipIndex, clip_id, clip_id_faults, printable_id, unused_id
from mertool.manifest.numbers import NUMBERS, parse_number
from mertool.manifest.suffixes import AUDIO_SUFFIXES, VIDEO_SUFFIXES

__all__ = [
    "AUDIO_SUFFIXES",
    "COLUMNS",
    "EMOTIONS",
    "NUMBERS",
    "SPLITS",
    "VIDEO_SUFFIXES",
    "Clip",
    "ClipIndex",
    "Manifest",
    "canonical_label",
    "clip_id",
    "clip_id_faults",
    "describe_unknown_labels",
    "parse_classes",
    "parse_number",
    "printable_id",
    "time_faults",
    "unused_id",
]
