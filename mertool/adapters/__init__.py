"""Acoustic adaptation: training adapters in some blocks of a frozen speech encoder.

`clips` reads what training starts from, `body` runs the blocks that matter, `masked` makes the masked
reconstruction, `objective` says what is learned, `loop` trains, `adapter` puts them together for one adapter, `folds`
makes one for each fold. Used by the stages `finetune` and `probe-layers --injection`.
"""
