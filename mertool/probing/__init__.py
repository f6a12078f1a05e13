"""Probes of frozen features: one classifier per layer under cross-validation, and the window of layers to adapt."""
