"""`FeatureSource`: features that another toolkit extracted, clip by clip."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from mertool.errors import ClipError

# Toolkits write zeros where a clip lacks the modality.
REASONS_OF_ZEROS = {"audio": "silent", "video": "no_face", "text": "no_text", "faces": "no_face"}


@dataclass(frozen=True, kw_only=True)
class FeatureSource:
    """Features of clips in files of another toolkit.

    Attributes:
        name: Of the features, such as `chinese-hubert-large-UTT`.
        toolkit: That wrote the files.
        modality: `audio`, `video`, `text` or `faces`.
        pooled: Whether a clip has one vector (D,), else frames (T, D); face crops are (T, H, W, 3) uint8, RGB.
        channels: D.
        clips: Yields the id and the values of each clip, or the ClipError of one that cannot be read. No frames, or
            only zeros, mean that the clip lacks the modality.
    """

    name: str
    toolkit: str
    modality: str
    pooled: bool
    channels: int
    clips: Callable[[], Iterator[tuple[str, np.ndarray | ClipError]]]
