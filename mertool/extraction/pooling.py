"""From the frames of an encoder's layers to the values that a store holds."""

from dataclasses import dataclass

import torch

from mertool.encoders.aligner import CrossFittedAligner
from mertool.features import Recipe


@dataclass(frozen=True)
class FeaturePooling:
    """Selects layers, then aligns, averages or keeps the frames of one clip, as the recipe of a store says.

    recipe: names the layers, their sum, the pooling and the number format of the store.
    encoded_layers: the layers that the encoder returns, in their order; it may encode more for other stores.
    aligner: the aligners that the recipe names, on the device of the encoder.
    """

    recipe: Recipe
    encoded_layers: tuple[int, ...]
    aligner: CrossFittedAligner | None = None

    def __call__(self, frames: torch.Tensor, clip_id: str) -> torch.Tensor:
        """Map frames (L, T, D) of `encoded_layers` to what is stored.

        That is (L, D), or with deviations (L, 2 D), or with frames kept (L, T, D) or (T, D).

        With aligners it is (1, C), C being the channels of the acoustic space. `clip_id` decides which one is used.
        """
        if self.recipe.layers != self.encoded_layers:
            frames = frames[[self.encoded_layers.index(layer) for layer in self.recipe.layers]]
        if self.recipe.layer_sum:
            frames = frames.sum(0, keepdim=True)
        if self.aligner:
            # Rounded as a frame store rounds them, so that both ways to aligned features agree.
            aligner = self.aligner.aligner(self.aligner.name_of(clip_id))
            return aligner.encode_clip(_round_as_stored(frames, self.recipe.storage_dtype))
        if self.recipe.pool == "none":
            return frames[0] if len(frames) == 1 else frames
        mean = frames.mean(dim=1)
        if self.recipe.pool == "mean":
            return mean
        # Of a single frame, the deviation is 0.
        return torch.cat([mean, frames.std(dim=1, correction=0)], 1)


def _round_as_stored(frames: torch.Tensor, storage_dtype: str) -> torch.Tensor:
    """Return the frames of a clip, float32, with the rounding of `store.precision.as_stored`."""
    if storage_dtype != "float16":
        return frames.float()
    rounded = frames.half().float()
    # No branch on the values, because a GPU would have to finish first.
    return torch.where(rounded.isfinite().all(), rounded, frames.float())
