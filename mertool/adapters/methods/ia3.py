"""IA3: trained factors on keys, values and the inner activations of the feed-forward network (Liu et al., 2022).

All factors start at one. WavLM's attention reads the weights of its projections instead of calling them, so there only
the feed-forward network has factors.
"""

from peft import IA3Config

from mertool.adapters.methods._modules import KEYS, SECOND_LINEAR, VALUES

SIZE = None  # the model determines the number of factors
RATE = 3e-3  # peak learning rate, that of the paper
TARGETS = (*KEYS, *VALUES, *SECOND_LINEAR)


def config(targets: list[str], size: int | None = None) -> IA3Config:
    """Return the PEFT configuration of IA3 on the linear modules `targets`.

    Factors of the second linear layer scale its input, which is the inner activation; the others scale outputs.
    """
    feed_forward = [name for name in targets if name.endswith(SECOND_LINEAR)]
    return IA3Config(target_modules=targets, feedforward_modules=feed_forward)
