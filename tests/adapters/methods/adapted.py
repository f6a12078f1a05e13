"""Helpers of the tests of PEFT methods: copies of tiny encoders, adapters on them, their outputs."""

from copy import deepcopy

import numpy as np
import torch

from mertool.adapters import methods as peft_methods

WAVE = torch.from_numpy(np.random.default_rng(0).normal(0, 1, (2, 3000)).astype(np.float32))  # 8 frames each
MELS = torch.from_numpy(np.random.default_rng(0).normal(0, 1, (2, 80, 100)).astype(np.float32))  # 50 frames each
LOADED = {}


def fresh(load_tiny, name):
    """Return an encoder of its own, without reading it from disk each time."""
    if name not in LOADED:
        LOADED[name] = load_tiny(name, "audio")
        if LOADED[name].windows:
            LOADED[name].set_window("clip")
    return deepcopy(LOADED[name])


def adapt(encoder, method, layers=(2, 3), *, size=4):
    """Add an adapter; return the PeftModel, and its encoder, which uses it."""
    torch.manual_seed(0)
    encoder.model = peft_methods.add_adapter(encoder.model, encoder.blocks, layers, method=method, size=size)
    return encoder.model, encoder


def trainable(model):
    """Return the trainable parameters by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def shake(model, seed=0):
    """Change the value of every trainable parameter."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in trainable(model).values():
            parameter.add_(0.3 * torch.randn_like(parameter))


def last_hidden_state(model, dtype=torch.float32):
    """Return the last hidden state (B, T, D) for WAVE, of a Whisper for MELS."""
    takes_spectrograms = any(name.endswith("conv1") for name, _ in model.named_modules())
    return model((MELS if takes_spectrograms else WAVE).to(dtype)).last_hidden_state


def output(model):
    """Return the last hidden state without gradients, in evaluation mode."""
    with torch.no_grad():
        return last_hidden_state(model.eval())


def close(actual, expected):
    """Return true if two tensors are equal up to rounding, by their norms."""
    return float((actual - expected).norm()) <= 1e-4 * float(expected.norm())
