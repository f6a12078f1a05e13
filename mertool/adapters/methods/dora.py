"""DoRA on the feed-forward projections (Liu et al., 2024): LoRA for the direction of each row of a weight, and a
trained magnitude for its length.

It begins at the frozen weight's own lengths. The places are those of `lora`, for the same reason.
"""

from peft import LoraConfig

from mertool.adapters.methods.lora import RATE, SIZE, TARGETS

__all__ = ["RATE", "SIZE", "TARGETS", "config"]


def config(targets: list[str], size: int) -> LoraConfig:
    """PEFT configuration of DoRA of rank `size` (alpha twice the rank) on the linear modules `targets`."""
    return LoraConfig(target_modules=targets, r=size, lora_alpha=2 * size, lora_dropout=0.0, use_dora=True)
