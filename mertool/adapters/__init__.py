"""Acoustic adaptation: train adapters in some transformer blocks of a frozen speech encoder.

`data` reads the inputs of the first adapted block, `blocks` runs the blocks that training needs, `masked_prediction`
defines the reconstruction loss, `model` puts blocks and heads together, `trainer` holds the training loop, `evaluation`
compares an adapter with the frozen encoder, `cross_validation` splits the clips, and `methods/` has one file per PEFT
method. The stages `finetune` and `probe-layers --injection` use it.
"""
