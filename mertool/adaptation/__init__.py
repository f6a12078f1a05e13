"""Acoustic adaptation: training adapters in some blocks of a frozen speech encoder.

`clips` reads what training starts from, `body` runs the blocks that matter, `masked` makes the masked
reconstruction, `loop` trains, `adapter` puts them together for one adapter. Used by the stages `finetune`
and `probe-layers --injection`.
"""
