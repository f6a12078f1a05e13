"""Image encoders on face crops: CLIP, SigLIP, ViT, DINOv2 and what else AutoModel loads as a ViT.

A frame's vector is the class token of a layer, or the mean over patches where there is none (SigLIP).
Pixels are prepared here and not by transformers, whose image processors differ in their pixels by which
backends are installed.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModel, CLIPVisionModel, SiglipVisionModel

from mertool.devices import to_device
from mertool.encoders.hidden_states import capture_hidden_states, find_blocks, stack
from mertool.encoders.loading import load_model

# Frames in one forward pass. On a CPU more than a few do not fit its caches: 14 at once are a quarter slower.
FRAMES_AT_ONCE = {"cpu": 4}
FRAMES_AT_ONCE_ON_GPU = 256
HALF = [0.5, 0.5, 0.5]


def load(folder: Path, device: torch.device, dtype: torch.dtype) -> "ImageEncoder":
    """Load the encoder in `folder`; of a CLIP or SigLIP only the vision tower."""
    return ImageEncoder(folder, device, dtype)


class ImageEncoder:
    """A vision transformer."""

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype):
        settings = AutoConfig.from_pretrained(folder)
        kind = settings.model_type
        if not hasattr(getattr(settings, "vision_config", settings), "image_size"):
            raise ValueError(f"{kind} does not take images")
        towers: dict[str, Any] = {"clip": CLIPVisionModel, "siglip": SiglipVisionModel}
        self.model: Any = load_model(towers.get(kind, AutoModel), folder).to(device, dtype).eval()
        config = self.model.config
        self.layers, self.channels = int(config.num_hidden_layers), int(config.hidden_size)
        self.blocks = find_blocks(self.model, self.layers)
        names = [name.split(".")[-1] for name, _ in self.model.named_parameters()]
        self.has_class_token = "cls_token" in names or "class_embedding" in names
        self.size = _input_size(folder, config)
        self.mean, self.std = _normalisation(folder)
        self.device, self.dtype = device, dtype

    def prepare(self, crops: np.ndarray) -> torch.Tensor:
        """Crops (T, H, W, 3) as (T, 3, size, size): bicubic with antialias, all uint8."""
        # Resized on the CPU: GPUs have no bicubic for uint8, and so every device gets the same pixels.
        pixels = torch.from_numpy(crops).permute(0, 3, 1, 2)
        if pixels.shape[-2:] != (self.size, self.size):
            pixels = torch.nn.functional.interpolate(
                pixels, (self.size, self.size), mode="bicubic", antialias=True, align_corners=False
            )
        return pixels.contiguous()

    def cost(self, pixels: torch.Tensor) -> float:
        """Frames."""
        return float(len(pixels))

    def encode(self, clips: list[np.ndarray], keep: tuple[int, ...]) -> list[torch.Tensor]:
        """(L, T, D) for the face crops (T, H, W, 3) uint8 RGB of each clip."""
        return self.encode_prepared([self.prepare(crops) for crops in clips], keep)

    def encode_prepared(self, clips: list[torch.Tensor], keep: tuple[int, ...]) -> list[torch.Tensor]:
        """(L, T, D) for each prepared clip."""
        at_once = FRAMES_AT_ONCE.get(self.device.type, FRAMES_AT_ONCE_ON_GPU)
        parts = [self._forward(pixels, keep) for pixels in torch.cat(clips).split(at_once)]
        return list(torch.cat(parts, dim=1).split([len(clip) for clip in clips], dim=1))

    def normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels (T, 3, size, size) uint8, on the device, scaled to the mean and deviation of the training."""
        pixels = to_device(pixels, self.device).float() / 255
        mean, std = (torch.tensor(v, device=self.device).view(1, 3, 1, 1) for v in (self.mean, self.std))
        return ((pixels - mean) / std).to(self.dtype)

    @torch.inference_mode()
    def _forward(self, pixels: torch.Tensor, keep: tuple[int, ...]) -> torch.Tensor:
        with capture_hidden_states(self.blocks, keep) as found:
            self.model(self.normalise(pixels))
        tokens = stack(found, keep)
        return tokens[:, :, 0] if self.has_class_token else tokens.mean(dim=2)


def _preprocessor(folder: Path) -> dict[str, Any]:
    file = folder / "preprocessor_config.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def _input_size(folder: Path, config: Any) -> int:
    settings = _preprocessor(folder)
    size = settings.get("crop_size") if settings.get("do_center_crop") else settings.get("size")
    if isinstance(size, dict):
        size = size.get("height") or size.get("shortest_edge")
    return int(size or config.image_size)


def _normalisation(folder: Path) -> tuple[list[float], list[float]]:
    settings = _preprocessor(folder)
    return settings.get("image_mean", HALF), settings.get("image_std", HALF)
