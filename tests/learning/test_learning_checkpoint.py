"""Checkpoints of a training: save, load, when to save, and everything that Adam needs to resume."""

import pytest
import torch

from mertool.learning.checkpoint import Checkpoint, restore_training, training_tensors


def test_a_saved_checkpoint_is_loaded_and_removed(tmp_path):
    checkpoint = Checkpoint(tmp_path / "c.safetensors")
    assert checkpoint.load() is None
    checkpoint.save({"weight": torch.arange(3.0)}, {"step": 7})
    tensors, metadata = Checkpoint(checkpoint.path).load()
    assert tensors["weight"].tolist() == [0.0, 1.0, 2.0]
    assert metadata == {"step": 7}
    checkpoint.remove()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"not safetensors", b"\x00" * 100])
def test_an_unreadable_checkpoint_counts_as_none(tmp_path, content):
    (tmp_path / "c.safetensors").write_bytes(content)
    assert Checkpoint(tmp_path / "c.safetensors").load() is None


def test_only_the_writer_saves_and_removes(tmp_path):
    assert Checkpoint(tmp_path / "c", interval=0.0).should_save
    assert not Checkpoint(tmp_path / "c", interval=1e9).should_save
    reader = Checkpoint(tmp_path / "c", is_writer=False, interval=0.0)
    assert not reader.should_save
    (tmp_path / "c").touch()
    reader.remove()
    assert (tmp_path / "c").exists()


def train(model, optimizer, steps):
    for step in steps:
        optimizer.zero_grad()
        model(torch.full((2, 3), float(step))).square().sum().backward()
        optimizer.step()


def make_model():
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    return model, torch.optim.AdamW(model.parameters(), lr=0.1)


def test_a_restored_training_continues_exactly(tmp_path):
    checkpoint, (undisturbed, undisturbed_optimizer), (first, first_optimizer) = (
        Checkpoint(tmp_path / "c.safetensors"),
        make_model(),
        make_model(),
    )
    train(undisturbed, undisturbed_optimizer, range(6))
    train(first, first_optimizer, range(3))
    best = {"weight": torch.ones(2, 3)}
    checkpoint.save(training_tensors(first, first_optimizer, best), {})
    second, optimizer = make_model()
    tensors, _ = checkpoint.load()
    assert torch.equal(restore_training(tensors, second, optimizer)["weight"], best["weight"])
    train(second, optimizer, range(3, 6))
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in undisturbed.state_dict().items())
