"""IA3: learned factors on keys, values and the inner activations of the feed-forward network (Liu et al., 2022).

All factors begin at one. WavLM's attention reads its projections' weights instead of calling them, so there only
the feed-forward network has factors.
"""

from peft import IA3Config

SIZE = None  # the number of factors is given by the model
RATE = 3e-3  # peak learning rate, that of the paper
TARGETS = ("attention.k_proj", "attention.v_proj", "feed_forward.output_dense")


def config(targets: list[str], size: int | None = None) -> IA3Config:
    """PEFT configuration of IA3 on the linear modules `targets`; those of the feed-forward scale their input."""
    inner = [name for name in targets if name.endswith("output_dense")]
    return IA3Config(target_modules=targets, feedforward_modules=inner)
