"""LoRA on queries, values and the feed-forward projections (Hu et al., 2022).

WavLM passes the weights of its projections to a fused attention, where a LoRA gets no gradient; there only the
feed-forward projections have one.
"""

from peft import LoraConfig

from mertool.adapters.methods._modules import FIRST_LINEAR, QUERIES, SECOND_LINEAR, VALUES

SIZE = 16  # default rank
RATE = 1e-3  # peak learning rate
TARGETS = (*QUERIES, *VALUES, *FIRST_LINEAR, *SECOND_LINEAR)


def config(targets: list[str], size: int) -> LoraConfig:
    """Return the PEFT configuration of LoRA of rank `size` (and alpha) on the linear modules `targets`."""
    return LoraConfig(target_modules=targets, r=size, lora_alpha=size, lora_dropout=0.0)
