"""Encoding with the aligner: padding and chunks do not matter; cached gradients are exact."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mertool.alignment.encoding import encode_clips, pad_frames
from mertool.encoders.aligner import Aligner, uniform_frame_indices
from mertool.errors import MertoolError

CPU = torch.device("cpu")


@pytest.fixture
def frames():
    random = np.random.default_rng(0)
    return [random.normal(0, 1, (length, 6)).astype(np.float16) for length in (3, 9, 1, 5, 9, 2, 7)]


@pytest.fixture
def make_aligner():
    def make(dropout=0.0):
        torch.manual_seed(0)
        return Aligner(channels=6, width=16, blocks=2, acoustic=5, dropout=dropout)

    return make


def test_a_clip_has_the_same_vector_in_a_batch(make_aligner, frames):
    aligner = make_aligner().eval()
    with torch.no_grad():
        vectors = aligner(*pad_frames(frames, CPU))
    for clip, vector in zip(frames, vectors, strict=True):
        torch.testing.assert_close(aligner.encode_clip(torch.from_numpy(clip)[None])[0], vector, atol=1e-5, rtol=1e-4)


def test_values_in_the_padding_do_not_matter(make_aligner, frames):
    aligner = make_aligner().eval()
    padded, mask = pad_frames(frames, CPU)
    filled = torch.where(mask[..., None], padded, torch.tensor(1e4, dtype=padded.dtype))
    with torch.no_grad():
        torch.testing.assert_close(aligner(padded, mask), aligner(filled, mask))


def test_the_order_of_frames_matters(make_aligner, frames):
    aligner, clip = make_aligner().eval(), torch.from_numpy(frames[1])[None]
    assert (aligner.encode_clip(clip) - aligner.encode_clip(clip.flip(1))).abs().max() > 1e-3


def test_frames_of_a_long_clip_are_taken_at_equal_distances(make_aligner):
    aligner, clip = make_aligner().eval(), torch.randn(1, 500, 6)
    indices = uniform_frame_indices(500, 64)
    assert (indices[0], indices[-1], len(set(indices))) == (0, 499, 64)
    assert set(np.diff(indices)) <= {7, 8}
    assert uniform_frame_indices(5, 64).tolist() == [0, 1, 2, 3, 4]
    torch.testing.assert_close(aligner.encode_clip(clip), aligner.encode_clip(clip[:, indices]))


@pytest.mark.parametrize("max_padded_frames", [1, 10, 20])
def test_chunks_give_the_vectors_of_a_single_pass(make_aligner, frames, max_padded_frames):
    aligner = make_aligner().eval()
    with torch.no_grad():
        chunked, single = (
            encode_clips(aligner, frames, CPU, max_padded_frames=size) for size in (max_padded_frames, 1000)
        )
    torch.testing.assert_close(chunked, single)


def gradients(aligner, frames, max_padded_frames):
    """Gradients of a loss in which every clip meets every other."""
    torch.manual_seed(1)
    vectors = encode_clips(aligner, frames, CPU, max_padded_frames=max_padded_frames)
    (vectors @ vectors.T).logsumexp(1).sum().backward()
    return [parameter.grad for parameter in aligner.parameters()]


@pytest.mark.parametrize("max_padded_frames", [1, 10, 20])
def test_cached_gradients_are_those_of_a_single_pass(make_aligner, frames, max_padded_frames):
    cached, direct = (gradients(make_aligner().train(), frames, size) for size in (max_padded_frames, 1000))
    assert max(float(gradient.abs().max()) for gradient in direct) > 0.1
    for cached_gradient, direct_gradient in zip(cached, direct, strict=True):
        torch.testing.assert_close(cached_gradient, direct_gradient, rtol=1e-3, atol=1e-4)


def test_cached_gradients_are_of_the_same_dropout(make_aligner, frames, monkeypatch):
    """Compared with the same chunks with activations kept, which draw the same masks once."""
    cached = gradients(make_aligner(0.3).train(), frames, 10)
    monkeypatch.setattr("mertool.alignment.encoding.checkpoint", lambda module, *inputs, use_reentrant: module(*inputs))
    direct = gradients(make_aligner(0.3).train(), frames, 10)
    for cached_gradient, direct_gradient in zip(cached, direct, strict=True):
        torch.testing.assert_close(cached_gradient, direct_gradient)


def test_an_aligner_of_another_version_is_refused(make_aligner, tmp_path):
    save_file(make_aligner().state_dict(), tmp_path / "aligner.safetensors")
    (tmp_path / "run.json").write_text(json.dumps({"sizes": {"channels": 6, "width": 16, "acoustic": 5}}))
    with pytest.raises(MertoolError, match="run `mertool align` again"):
        Aligner.load(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda info: info["sizes"].update(width=10**9),
        lambda info: info["sizes"].update(blocks=10**9),
        lambda info: info["sizes"].update(frames=0),
        lambda info: info["sizes"].update(frames="many"),
        lambda info: info["sizes"].update(frames=None),
        lambda info: info["sizes"].update(more=1),
        lambda info: info["sizes"].pop("acoustic"),
        lambda info: info.update(sizes=[1]),
        lambda info: info.pop("sizes"),
    ],
)
def test_sizes_that_are_not_those_of_the_tensors_are_refused(change, make_aligner, tmp_path):
    """Before a model of these sizes is made, for which there may be no memory."""
    aligner = make_aligner()
    save_file(aligner.state_dict(), tmp_path / "aligner.safetensors")
    info = {"sizes": dict(aligner.sizes)}
    (tmp_path / "run.json").write_text(json.dumps(info))
    assert Aligner.load(tmp_path).sizes == aligner.sizes
    change(info)
    (tmp_path / "run.json").write_text(json.dumps(info))
    with pytest.raises(MertoolError, match="holds no aligner of this version of mertool"):
        Aligner.load(tmp_path)


def test_an_aligner_of_infinite_values_is_refused(make_aligner, tmp_path):
    aligner = make_aligner()
    aligner.set_statistics(np.full(6, np.inf, np.float32), np.ones(6, np.float32))
    save_file(aligner.state_dict(), tmp_path / "aligner.safetensors")
    (tmp_path / "run.json").write_text(json.dumps({"sizes": aligner.sizes}))
    with pytest.raises(MertoolError, match="holds no aligner of this version of mertool"):
        Aligner.load(tmp_path)
