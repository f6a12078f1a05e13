"""The aligner: one vector a clip, whatever it is padded or cut with; the cached gradient is the true one."""

import json

import numpy as np
import pytest
import torch

from mertool.alignment.encoding import embed, pad
from mertool.encoders.aligner import Aligner, evenly
from mertool.errors import MertoolError

CPU = torch.device("cpu")


@pytest.fixture
def frames():
    random = np.random.default_rng(0)
    return [random.normal(0, 1, (length, 6)).astype(np.float16) for length in (3, 9, 1, 5, 9, 2, 7)]


@pytest.fixture
def make():
    def aligner(dropout=0.0):
        torch.manual_seed(0)
        return Aligner(6, 16, 2, 5, dropout=dropout)

    return aligner


def test_a_clip_alone_is_as_in_a_batch(make, frames):
    aligner = make().eval()
    with torch.no_grad():
        together = aligner(*pad(frames, CPU))
    for one, vector in zip(frames, together, strict=True):
        torch.testing.assert_close(aligner.embed(torch.from_numpy(one)[None])[0], vector, atol=1e-5, rtol=1e-4)


def test_what_stands_behind_a_clip_does_not_matter(make, frames):
    aligner = make().eval()
    padded, mask = pad(frames, CPU)
    filled = torch.where(mask[..., None], padded, torch.tensor(1e4, dtype=padded.dtype))
    with torch.no_grad():
        torch.testing.assert_close(aligner(padded, mask), aligner(filled, mask))


def test_the_order_of_frames_matters(make, frames):
    aligner, whole = make().eval(), torch.from_numpy(frames[1])[None]
    assert (aligner.embed(whole) - aligner.embed(whole.flip(1))).abs().max() > 1e-3


def test_of_a_long_clip_frames_are_taken_evenly(make):
    aligner, long = make().eval(), torch.randn(1, 500, 6)
    chosen = evenly(500, 64)
    assert (chosen[0], chosen[-1], len(set(chosen))) == (0, 499, 64)
    assert set(np.diff(chosen)) <= {7, 8}
    assert evenly(5, 64).tolist() == [0, 1, 2, 3, 4]
    torch.testing.assert_close(aligner.embed(long), aligner.embed(long[:, chosen]))


@pytest.mark.parametrize("at_once", [1, 10, 20])
def test_chunks_give_the_vectors_of_one_pass(make, frames, at_once):
    aligner = make().eval()
    with torch.no_grad():
        torch.testing.assert_close(embed(aligner, frames, CPU, at_once), embed(aligner, frames, CPU, 1000))


def gradients(aligner, frames, at_once):
    """Of a loss in which every clip meets every other."""
    torch.manual_seed(1)
    vectors = embed(aligner, frames, CPU, at_once)
    (vectors @ vectors.T).logsumexp(1).sum().backward()
    return [parameter.grad for parameter in aligner.parameters()]


@pytest.mark.parametrize("at_once", [1, 10, 20])
def test_the_cached_gradient_is_that_of_one_pass(make, frames, at_once):
    cached, direct = (gradients(make().train(), frames, most) for most in (at_once, 1000))
    assert max(float(one.abs().max()) for one in direct) > 0.1
    for one, other in zip(cached, direct, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_the_cached_gradient_is_of_the_same_dropout(make, frames, monkeypatch):
    """Against the same chunks with activations kept, which draw the same masks but once."""
    cached = gradients(make(0.3).train(), frames, 10)
    monkeypatch.setattr("mertool.alignment.encoding.checkpoint", lambda module, *given, use_reentrant: module(*given))
    kept = gradients(make(0.3).train(), frames, 10)
    for one, other in zip(cached, kept, strict=True):
        torch.testing.assert_close(one, other)


def test_an_aligner_of_another_version_is_refused(make, tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"sizes": {"channels": 6, "width": 16, "acoustic": 5}}))
    with pytest.raises(MertoolError, match="run `mertool align` again"):
        Aligner.load(tmp_path)
