"""DoRA on the feed-forward projections (Liu et al., 2024): LoRA for the direction of each row of a weight, and a
trained magnitude for its norm.

It starts at the norms of the frozen weight. The target modules are those of `lora`, for the same reason.
"""

from peft import LoraConfig

from mertool.adapters.methods.lora import RATE, SIZE, TARGETS

__all__ = ["RATE", "SIZE", "TARGETS", "config"]


def config(targets: list[str], size: int) -> LoraConfig:
    """Return the PEFT configuration of DoRA of rank `size` (alpha twice the rank) on the linear modules `targets`."""
    return LoraConfig(target_modules=targets, r=size, lora_alpha=2 * size, lora_dropout=0.0, use_dora=True)
