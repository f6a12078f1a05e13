"""Fusion of modalities: heads, the ensemble of folds and seeds that is trained at once, calibration, self-training."""
