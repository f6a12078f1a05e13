"""Names of the modules inside a transformer block that PEFT methods are put on.

There are two kinds of blocks that can be adapted: those of the wav2vec 2.0 kind (HuBERT, WavLM), and those of Whisper,
whose feed-forward network has no module of its own.
"""

FEED_FORWARD = "feed_forward"
FIRST_LINEAR_ALONE, SECOND_LINEAR_ALONE = "fc1", "fc2"  # in a block without a feed-forward module
FIRST_LINEAR = (f"{FEED_FORWARD}.intermediate_dense", FIRST_LINEAR_ALONE)
SECOND_LINEAR = (f"{FEED_FORWARD}.output_dense", SECOND_LINEAR_ALONE)
QUERIES = ("attention.q_proj", "self_attn.q_proj")
KEYS = ("attention.k_proj", "self_attn.k_proj")
VALUES = ("attention.v_proj", "self_attn.v_proj")
BLOCK = ""  # the block itself
