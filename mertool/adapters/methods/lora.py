"""LoRA on the feed-forward projections (Hu et al., 2022).

Not on queries and values: WavLM passes the weights of its projections to a fused attention, so a LoRA on them gets no
gradient.
"""

from peft import LoraConfig

from mertool.adapters.methods._modules import FIRST_LINEAR, SECOND_LINEAR

SIZE = 16  # default rank
RATE = 5e-4  # peak learning rate
TARGETS = (*FIRST_LINEAR, *SECOND_LINEAR)


def config(targets: list[str], size: int) -> LoraConfig:
    """Return the PEFT configuration of LoRA of rank `size` (alpha twice the rank) on the linear modules `targets`."""
    return LoraConfig(target_modules=targets, r=size, lora_alpha=2 * size, lora_dropout=0.0)
