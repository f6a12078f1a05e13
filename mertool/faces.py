"""Faces of one person through a clip: MTCNN finds them, a track keeps one, crops are square.

Track rule: in each sampled frame every face joins the track whose last box overlaps it most (intersection
over union of at least 0.2), else it begins a track. The clip's face is the track with the greatest sum of
area times detection probability, the one that is large and long on the screen. Frames where that face is
not found are skipped and counted.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch

from mertool.errors import ClipError

DETECT_SIDE = 640  # frames are shrunk to this longer side for detection
MIN_FACE = 40  # smallest face side MTCNN looks for, in pixels of the shrunk frame
MIN_PROBABILITY = 0.9
MIN_OVERLAP = 0.2
FRAMES_AT_ONCE = 4  # detected together: a tenth to a sixth faster than one by one, and than eight
BYTES_AT_ONCE = 64 << 20  # of frames as they came, which may be large
MOST_FACES = 4  # per frame; smaller ones cannot be the person the clip shows
CROP = 224
MARGIN = 0.3  # of the box's longer side, both sides together

SETTINGS = {
    "detect_side": DETECT_SIDE,
    "min_face": MIN_FACE,
    "crop": CROP,
    "margin": MARGIN,
}


@dataclass(frozen=True)
class FaceTrack:
    """Crops (T, 224, 224, 3) uint8 RGB of one face; `seen` frames were looked at, `seconds` of video."""

    crops: np.ndarray
    seen: int
    seconds: float

    @property
    def share(self) -> float:
        """Share of the frames looked at in which the face was found."""
        return len(self.crops) / self.seen


@dataclass(eq=False)
class _Track:
    box: np.ndarray
    weight: float = 0.0
    crops: list[np.ndarray] = field(default_factory=list)


def find_face(frames: Iterable[tuple[float, np.ndarray]]) -> FaceTrack:
    """Follow the main face through (seconds, RGB frame) pairs. Raises ClipError no_face."""
    tracks: list[_Track] = []
    seen, seconds = 0, 0.0
    for moment, frame, faces in _detected(frames):
        seen, seconds = seen + 1, moment
        free = list(tracks)
        for box, probability in faces:
            track = max(free, key=lambda t: overlap(t.box, box), default=None)
            if track is None or overlap(track.box, box) < MIN_OVERLAP:
                track = _Track(box)
                tracks.append(track)
            else:
                free.remove(track)
            track.box = box
            track.weight += probability * float(np.prod(box[2:] - box[:2]))
            track.crops.append(square_crop(frame, box))
    if not tracks:
        raise ClipError("no_face", f"no face was found in {seen} sampled frames")
    best = max(tracks, key=lambda t: t.weight)
    return FaceTrack(np.stack(best.crops), seen, seconds)


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two boxes (left, top, right, bottom)."""
    corner = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    common = float(np.prod(np.maximum(corner, 0)))
    return common / (float(np.prod(a[2:] - a[:2])) + float(np.prod(b[2:] - b[:2])) - common)


def square_crop(frame: np.ndarray, box: np.ndarray) -> np.ndarray:
    """A square around `box` with the margin, (224, 224, 3) uint8; beyond the frame its edge is repeated."""
    side = max(1, round(float(max(box[2] - box[0], box[3] - box[1])) * (1 + MARGIN)))
    left, top = (np.round((box[:2] + box[2:] - side) / 2)).astype(int)
    rows = np.clip(np.arange(top, top + side), 0, frame.shape[0] - 1)
    columns = np.clip(np.arange(left, left + side), 0, frame.shape[1] - 1)
    return resize(frame[rows][:, columns], CROP, CROP)


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bicubic with antialias on uint8 (H, W, 3), as the reference image processors do."""
    pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]
    if pixels.shape[-2:] != (height, width):
        pixels = torch.nn.functional.interpolate(
            pixels, (height, width), mode="bicubic", antialias=True, align_corners=False
        )
    return pixels[0].permute(1, 2, 0).contiguous().numpy()


@cache
def _detector() -> Any:
    from facenet_pytorch import MTCNN

    return MTCNN(keep_all=True, min_face_size=MIN_FACE, post_process=False, device="cpu")


def _detected(
    frames: Iterable[tuple[float, np.ndarray]],
) -> Iterator[tuple[float, np.ndarray, list[tuple[np.ndarray, float]]]]:
    """Every frame with its faces; some are detected together."""
    waiting: list[tuple[float, np.ndarray]] = []
    size = 0
    for moment, frame in frames:
        if waiting and (frame.shape != waiting[0][1].shape or size + frame.nbytes > BYTES_AT_ONCE):
            yield from _with_faces(waiting)
            waiting, size = [], 0
        waiting.append((moment, frame))
        size += frame.nbytes
        if len(waiting) == FRAMES_AT_ONCE:
            yield from _with_faces(waiting)
            waiting, size = [], 0
    yield from _with_faces(waiting)


def _with_faces(
    frames: list[tuple[float, np.ndarray]],
) -> Iterator[tuple[float, np.ndarray, list[tuple[np.ndarray, float]]]]:
    for (moment, frame), faces in zip(frames, _detect([frame for _, frame in frames]), strict=True):
        yield moment, frame, faces


def _detect(frames: list[np.ndarray]) -> list[list[tuple[np.ndarray, float]]]:
    """Of each of several frames of one size: boxes in its pixels, the largest first, with probabilities."""
    if not frames:
        return []
    shape = frames[0].shape[:2]
    scale = min(1.0, DETECT_SIDE / max(shape))
    height, width = (max(1, round(side * scale)) for side in shape)
    if min(height, width) < MIN_FACE:
        return [[] for _ in frames]
    boxes, probabilities = _detector().detect(np.stack([resize(frame, height, width) for frame in frames]))
    return [_large_faces(*found, scale) for found in zip(boxes, probabilities, strict=True)]


def _large_faces(boxes: np.ndarray | None, probabilities: np.ndarray, scale: float) -> list[tuple[np.ndarray, float]]:
    if boxes is None:
        return []
    found = [
        (np.asarray(box, np.float64) / scale, float(probability))
        for box, probability in zip(boxes, probabilities, strict=True)
        if probability is not None and probability >= MIN_PROBABILITY
    ]
    found = [(box, p) for box, p in found if np.all(box[2:] - box[:2] >= 1)]
    found.sort(key=lambda item: -float(np.prod(item[0][2:] - item[0][:2])))
    return found[:MOST_FACES]
