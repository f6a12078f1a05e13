"""The baseline: features as the field's scripts extract them (MERTools' `feature_extraction/`, plainly written).

One clip at a time in one process: decode, then encode, then the next. float32; transformers' own model and
processor; all hidden states from `output_hidden_states`; the mean over time; one .npy file per clip. torch has
its default number of threads. In the baseline's favour:

- sound is decoded in the process by PyAV, where those scripts start ffmpeg and write a wav file first;
- frames are read by decord's `get_batch` (its own threads), as many and the same as the engine samples, where
  those scripts take every frame or write pictures or re-encoded video first;
- the faces come from facenet-pytorch's MTCNN with the engine's cheaper settings (smallest face 40 pixels of a
  frame of at most 640), not from facenet's default (20 pixels), which takes twice as long; and on a GPU, where
  there is one;
- the frames of a clip are encoded as one batch.
"""

import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

Item = tuple[str, Any]  # name, and a path or a text
Read = Callable[[Any], tuple[np.ndarray, float]]  # features, and how much of the modality's unit they are
SAMPLE_RATE = 16_000
FPS, MIN_FACE, MIN_PROBABILITY, MARGIN, CROP, DETECT_SIDE = 4.0, 40, 0.9, 0.3, 224, 640


def measure(modality: str, model: Path, items: Sequence[Item], output: Path, device: str) -> tuple[float, float]:
    """Extract all items into `output`/NAME.npy: seconds without loading the model, and the amount of media.

    The amount is seconds of sound, frames with a face, or texts.
    """
    read = _load(modality, model, device)
    output.mkdir(parents=True, exist_ok=True)
    began, amount = time.perf_counter(), 0.0
    for name, content in items:
        features, cost = read(content)
        np.save(output / f"{name}.npy", features)
        amount += cost
    return time.perf_counter() - began, amount


def read_sound(path: Path) -> np.ndarray:
    """Samples (n,) float32 in [-1, 1] at 16 kHz."""
    import av

    resampler = av.AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE)
    with av.open(str(path)) as container:
        pieces = [piece for frame in container.decode(audio=0) for piece in resampler.resample(frame)]
        pieces += resampler.resample(None)
    return np.concatenate([piece.to_ndarray()[0] for piece in pieces]).astype(np.float32) / 32768


def read_frames(path: Path) -> np.ndarray:
    """Frames (T, H, W, 3) uint8 in the middle of equal intervals, about four per second."""
    import torch  # noqa: F401  decord must be imported after it
    from decord import VideoReader

    reader = VideoReader(str(path))
    count = max(1, round(len(reader) / reader.get_avg_fps() * FPS))
    middles = (np.arange(count) + 0.5) * len(reader) / count
    return reader.get_batch(middles.astype(int)).asnumpy()


@lru_cache(1)
def _load(modality: str, model: Path, device: str) -> Read:
    from transformers.utils import logging

    logging.disable_progress_bar()
    return {"audio": _load_audio, "video": _load_video, "text": _load_text}[modality](model, device)


def _load_audio(folder: Path, device: str) -> Read:
    import torch
    from transformers import AutoFeatureExtractor, AutoModel

    model = AutoModel.from_pretrained(folder).to(device).eval()
    extractor = AutoFeatureExtractor.from_pretrained(folder)

    @torch.no_grad()
    def read(path: Path) -> tuple[np.ndarray, float]:
        wave = read_sound(path)
        values = extractor(wave, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_values.to(device)
        states = model(values, output_hidden_states=True).hidden_states
        return torch.stack(states)[:, 0].mean(dim=1).cpu().numpy(), len(wave) / SAMPLE_RATE

    return read


def _load_video(folder: Path, device: str) -> Read:
    import torch
    from facenet_pytorch import MTCNN
    from transformers import AutoImageProcessor, AutoModel

    model = AutoModel.from_pretrained(folder).to(device).eval()
    processor = AutoImageProcessor.from_pretrained(folder)
    detector = MTCNN(min_face_size=MIN_FACE, post_process=False, device=device)

    @torch.no_grad()
    def read(path: Path) -> tuple[np.ndarray, float]:
        faces = [face for frame in read_frames(path) for face in _largest_face(detector, frame)]
        pixels = processor(images=faces, return_tensors="pt").pixel_values.to(device)
        states = model(pixels, output_hidden_states=True).hidden_states
        return states[-1][:, 0].mean(dim=0).cpu().numpy(), float(len(faces))

    return read


def _largest_face(detector: Any, frame: np.ndarray) -> list[Any]:
    """The square picture of a frame's largest face, or nothing."""
    from PIL import Image

    picture = Image.fromarray(frame)
    scale = min(1.0, DETECT_SIDE / max(picture.size))
    small = picture if scale == 1 else picture.resize([round(side * scale) for side in picture.size])
    boxes, probabilities = detector.detect(small)
    if boxes is None or probabilities[0] < MIN_PROBABILITY:
        return []
    x0, y0, x1, y1 = boxes[0].astype(float) / scale
    side = round(max(x1 - x0, y1 - y0) * (1 + MARGIN))
    x, y = round((x0 + x1 - side) / 2), round((y0 + y1 - side) / 2)
    return [picture.crop((x, y, x + side, y + side)).resize((CROP, CROP), Image.Resampling.BICUBIC)]


def _load_text(folder: Path, device: str) -> Read:
    import torch
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(folder).to(device).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)

    @torch.no_grad()
    def read(text: str) -> tuple[np.ndarray, float]:
        tokens = tokenizer(text, truncation=True, return_tensors="pt").to(device)
        states = model(**tokens, output_hidden_states=True).hidden_states
        return states[-1][0, 1:-1].mean(dim=0).cpu().numpy(), 1.0

    return read
