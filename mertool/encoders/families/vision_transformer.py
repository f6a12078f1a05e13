"""Encoders of images: CLIP, SigLIP, ViT, DINOv2 and others that AutoModel loads, on face crops.

The vector of a frame is the class token of a layer, or the mean over patches in models without one (SigLIP). Pixels are
prepared here, because the pixels of transformers' image processors depend on which backends are installed.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModel, CLIPVisionModelWithProjection, SiglipVisionModel

from mertool.devices import to_device
from mertool.encoders.base import Encoder
from mertool.encoders.checkpoint_files import read_json
from mertool.encoders.hidden_states import capture_hidden_states, stack_layers
from mertool.encoders.pretrained import load_config, load_pretrained

MODALITY = "video"
MODEL_TYPES = ("clip", "clip_vision_model", "siglip", "siglip_vision_model", "vit", "dinov2")
OTHER_TYPES = True
VISION_TOWERS: dict[str, Any] = {"clip": CLIPVisionModelWithProjection, "siglip": SiglipVisionModel}
# More than a few frames do not fit a CPU's caches: a forward pass of 14 is a quarter slower per frame.
MAX_FRAMES_PER_FORWARD = {"cpu": 4}
MAX_FRAMES_PER_FORWARD_ON_GPU = 256
DEFAULT_MEAN = DEFAULT_STD = (0.5, 0.5, 0.5)


def load(folder: Path, *, device: torch.device, dtype: torch.dtype) -> "ImageEncoder":
    """Load the encoder in `folder`, of a CLIP or SigLIP the vision tower; raises ValueError if it takes no images."""
    config = load_config(folder)
    if not hasattr(getattr(config, "vision_config", config), "image_size"):
        raise ValueError(f"{config.model_type} does not take images")
    model_class = VISION_TOWERS.get(config.model_type, AutoModel)
    options: dict[str, Any] = {}
    if model_class is CLIPVisionModelWithProjection:
        # Of the two projection sizes in the configuration, the model as a whole has the one at its top.
        options["config"] = config.vision_config
        options["config"].projection_dim = config.projection_dim
    model = load_pretrained(model_class, folder, device=device, dtype=dtype, **options)
    file = folder / "preprocessor_config.json"
    preprocessor = read_json(file) if file.exists() else {}
    return ImageEncoder(model, preprocessor=preprocessor, device=device, dtype=dtype)


class ImageEncoder(Encoder):
    """A vision transformer that encodes frames one by one.

    preprocessor: the content of preprocessor_config.json, for `size` in pixels and the `mean` and `std` of pixels.
    """

    def __init__(self, model: Any, *, preprocessor: dict[str, Any], device: torch.device, dtype: torch.dtype):
        config = model.config
        super().__init__(
            model, num_layers=int(config.num_hidden_layers), channels=int(config.hidden_size), device=device
        )
        names = [name.split(".")[-1] for name, _ in model.named_parameters()]
        self.has_class_token = "cls_token" in names or "class_embedding" in names
        self.size = _input_size(preprocessor) or int(config.image_size)
        self.mean = preprocessor.get("image_mean", DEFAULT_MEAN)
        self.std = preprocessor.get("image_std", DEFAULT_STD)
        self.dtype = dtype
        self.projects = False

    def use_projection(self) -> None:
        """Return image features as CLIP compares them with texts: of the last layer, after LayerNorm and projection.

        Raises MertoolError for a model without a projection.
        """
        if not hasattr(self.model, "visual_projection"):
            super().use_projection()
        self.projects, self.channels = True, int(self.model.visual_projection.out_features)

    def prepare(self, item: np.ndarray) -> torch.Tensor:
        """Resize crops (T, H, W, 3) to (T, 3, size, size), bicubic with antialiasing; all are uint8."""
        # On the CPU, because GPUs have no bicubic for uint8; so every device gets the same pixels.
        pixels = torch.from_numpy(item).permute(0, 3, 1, 2)
        if pixels.shape[-2:] != (self.size, self.size):
            pixels = torch.nn.functional.interpolate(
                pixels, (self.size, self.size), mode="bicubic", antialias=True, align_corners=False
            )
        return pixels.contiguous()

    def cost(self, prepared: torch.Tensor) -> float:
        """Return the number of frames."""
        return float(len(prepared))

    def encode_prepared(self, prepared: Sequence[torch.Tensor], layers: Sequence[int]) -> list[torch.Tensor]:
        """Return (L, T, D) for each prepared clip."""
        size = MAX_FRAMES_PER_FORWARD.get(self.device.type, MAX_FRAMES_PER_FORWARD_ON_GPU)
        states = [self._forward(pixels, layers) for pixels in torch.cat(list(prepared)).split(size)]
        return list(torch.cat(states, dim=1).split([len(clip) for clip in prepared], dim=1))

    def normalize_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        """Copy uint8 pixels (T, 3, size, size) to the device and standardise them by `mean` and `std`."""
        pixels = to_device(pixels, self.device).float() / 255
        mean, std = (torch.tensor(values, device=self.device).view(1, 3, 1, 1) for values in (self.mean, self.std))
        return ((pixels - mean) / std).to(self.dtype)

    @torch.inference_mode()
    def _forward(self, pixels: torch.Tensor, layers: Sequence[int]) -> torch.Tensor:
        with capture_hidden_states(self.blocks, layers) as states:
            self.model(self.normalize_pixels(pixels))
        if self.projects:
            class_token = self._final_norm(states[self.num_layers][:, 0])
            return self.model.visual_projection(class_token).float()[None]
        tokens = stack_layers(states, layers)
        return tokens[:, :, 0] if self.has_class_token else tokens.mean(dim=2)

    @property
    def _final_norm(self) -> torch.nn.Module:
        """The LayerNorm after the last block of a CLIP; its path differs between versions of transformers."""
        return next(module for name, module in self.model.named_modules() if name.endswith("post_layernorm"))


def _input_size(preprocessor: dict[str, Any]) -> int | None:
    """Return the side of the input in pixels, None if the preprocessor does not say it."""
    size = preprocessor.get("crop_size") if preprocessor.get("do_center_crop") else preprocessor.get("size")
    if isinstance(size, dict):
        size = size.get("height") or size.get("shortest_edge")
    return int(size) if size else None
