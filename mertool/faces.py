"""Face detection (MTCNN) and tracking: square crops of the main face of a clip.

In each sampled frame every face joins the track whose last box overlaps it most (intersection over union of at
least 0.2), otherwise it starts a track. The main face is the track with the largest sum of area times detection
probability: a face that is large and visible for long. Frames without that face are skipped and counted.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch

from mertool.errors import ClipError

DETECTION_SIDE = 640  # pixels; frames are downscaled to this longer side for detection
MIN_FACE_SIDE = 40  # pixels of the downscaled frame; the smallest face that MTCNN detects
MIN_PROBABILITY = 0.9
MIN_OVERLAP = 0.2  # intersection over union
BATCH_FRAMES = 4  # a tenth to a sixth faster than frames one by one, and than eight
BATCH_BYTES = 64 << 20  # frames of a batch before they are downscaled, which may be large
MAX_FACES_PER_FRAME = 4  # the main face of a clip is among the largest
CROP_SIDE = 224  # pixels
CROP_MARGIN = 0.3  # share of the box's longer side, both sides together

# Part of the recipe of face crops and video features: a key that changes makes their stores stale.
SETTINGS = {
    "detect_side": DETECTION_SIDE,
    "min_face": MIN_FACE_SIDE,
    "crop": CROP_SIDE,
    "margin": CROP_MARGIN,
}

Detection = tuple[np.ndarray, float]  # box (left, top, right, bottom) in pixels of the frame, probability


@dataclass(frozen=True)
class FaceTrack:
    """The main face of a clip.

    crops: (T, 224, 224, 3) uint8 RGB, one per frame in which the face was detected.
    frames_seen: frames that were searched.
    seconds: time of the last of them.
    """

    crops: np.ndarray
    frames_seen: int
    seconds: float

    @property
    def share(self) -> float:
        """Share of the searched frames in which the face was detected."""
        return len(self.crops) / self.frames_seen


@dataclass(eq=False)
class _Track:
    box: np.ndarray
    weight: float = 0.0
    crops: list[np.ndarray] = field(default_factory=list)


def find_face(frames: Iterable[tuple[float, np.ndarray]]) -> FaceTrack:
    """Track the main face through (seconds, RGB frame) pairs. Raises ClipError no_face."""
    tracks: list[_Track] = []
    frames_seen, seconds = 0, 0.0
    for frame_seconds, frame, detections in _detect_in_batches(frames):
        frames_seen += 1
        seconds = frame_seconds
        # Each track takes at most one face of a frame; faces come largest first.
        unmatched = list(tracks)
        for box, probability in detections:
            track = max(unmatched, key=lambda track: overlap(track.box, box), default=None)
            if track is None or overlap(track.box, box) < MIN_OVERLAP:
                track = _Track(box)
                tracks.append(track)
            else:
                unmatched.remove(track)
            track.box = box
            track.weight += probability * float(np.prod(box[2:] - box[:2]))
            track.crops.append(square_crop(frame, box))
    if not tracks:
        raise ClipError("no_face", f"no face was found in {frames_seen} sampled frames")
    main = max(tracks, key=lambda track: track.weight)
    return FaceTrack(np.stack(main.crops), frames_seen, seconds)


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Return the intersection over union of two boxes (left, top, right, bottom)."""
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    intersection = float(np.prod(np.maximum(sides, 0)))
    return intersection / (float(np.prod(a[2:] - a[:2])) + float(np.prod(b[2:] - b[:2])) - intersection)


def square_crop(frame: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Crop a square around `box` with the margin, (224, 224, 3) uint8; beyond the frame its edge is repeated."""
    side = max(1, round(float(max(box[2] - box[0], box[3] - box[1])) * (1 + CROP_MARGIN)))
    x, y = (np.round((box[:2] + box[2:] - side) / 2)).astype(int)
    rows = np.clip(np.arange(y, y + side), 0, frame.shape[0] - 1)
    columns = np.clip(np.arange(x, x + side), 0, frame.shape[1] - 1)
    return resize(frame[rows][:, columns], CROP_SIDE, CROP_SIDE)


def blur_frames(frames: Iterable[tuple[float, np.ndarray]], factor: int) -> Iterator[tuple[float, np.ndarray]]:
    """Downscale frames (H, W, 3) by the factor and enlarge them again; with factor 1 they stay as they are."""
    for seconds, frame in frames:
        if factor > 1:
            height, width = frame.shape[:2]
            small = resize(frame, max(1, height // factor), max(1, width // factor))
            frame = resize(small, height, width)
        yield seconds, frame


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize uint8 (H, W, 3), bicubic with antialiasing as the image processors of transformers do."""
    pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]
    if pixels.shape[-2:] != (height, width):
        pixels = torch.nn.functional.interpolate(
            pixels, (height, width), mode="bicubic", antialias=True, align_corners=False
        )
    return pixels[0].permute(1, 2, 0).contiguous().numpy()


@cache
def _detector() -> Any:
    from facenet_pytorch import MTCNN

    return MTCNN(keep_all=True, min_face_size=MIN_FACE_SIDE, post_process=False, device="cpu")


def _detect_in_batches(
    frames: Iterable[tuple[float, np.ndarray]],
) -> Iterator[tuple[float, np.ndarray, list[Detection]]]:
    """Yield every (seconds, frame) with its faces; consecutive frames of one size are detected in batches."""
    batch: list[tuple[float, np.ndarray]] = []
    batch_bytes = 0
    for seconds, frame in frames:
        if batch and (frame.shape != batch[0][1].shape or batch_bytes + frame.nbytes > BATCH_BYTES):
            yield from _with_faces(batch)
            batch, batch_bytes = [], 0
        batch.append((seconds, frame))
        batch_bytes += frame.nbytes
        if len(batch) == BATCH_FRAMES:
            yield from _with_faces(batch)
            batch, batch_bytes = [], 0
    yield from _with_faces(batch)


def _with_faces(batch: list[tuple[float, np.ndarray]]) -> Iterator[tuple[float, np.ndarray, list[Detection]]]:
    for (seconds, frame), faces in zip(batch, _detect([frame for _, frame in batch]), strict=True):
        yield seconds, frame, faces


def _detect(frames: list[np.ndarray]) -> list[list[Detection]]:
    """Detect the faces of each of several frames of one size, the largest first."""
    if not frames:
        return []
    shape = frames[0].shape[:2]
    scale = min(1.0, DETECTION_SIDE / max(shape))
    height, width = (max(1, round(side * scale)) for side in shape)
    if min(height, width) < MIN_FACE_SIDE:
        return [[] for _ in frames]
    boxes, probabilities = _detector().detect(np.stack([resize(frame, height, width) for frame in frames]))
    return [_large_faces(*detections, scale) for detections in zip(boxes, probabilities, strict=True)]


def _large_faces(boxes: np.ndarray | None, probabilities: np.ndarray, scale: float) -> list[Detection]:
    """Return the largest confident detections of one frame, with boxes in pixels of the original frame."""
    if boxes is None:
        return []
    faces = [
        (np.asarray(box, np.float64) / scale, float(probability))
        for box, probability in zip(boxes, probabilities, strict=True)
        if probability is not None and probability >= MIN_PROBABILITY
    ]
    faces = [(box, probability) for box, probability in faces if np.all(box[2:] - box[:2] >= 1)]
    faces.sort(key=lambda face: -float(np.prod(face[0][2:] - face[0][:2])))
    return faces[:MAX_FACES_PER_FRAME]
