"""The alignment losses: properties that every file of the folder must have, and the formulas of some."""

import pytest
import torch

from mertool import registry
from mertool.alignment import losses

NAMES = registry.choices(losses.PACKAGE)
every_loss = pytest.mark.parametrize("name", NAMES)


@pytest.fixture
def batch():
    """Visual and acoustic vectors of six clips, and a mask without false negatives."""
    torch.manual_seed(0)
    return torch.randn(6, 4), torch.randn(6, 4), torch.zeros(6, 6, dtype=torch.bool)


def build(name):
    """The loss function; the test is skipped if there is no such file."""
    if name not in NAMES:
        pytest.skip(f"there is no loss {name}")
    return losses.load(name).build()


def cosine_matrix(first, second):
    return (first / first.norm(dim=1, keepdim=True)) @ (second / second.norm(dim=1, keepdim=True)).T


@every_loss
def test_loss_is_a_finite_differentiable_scalar(name, batch):
    visual, acoustic, none = batch
    visual.requires_grad_()
    loss = build(name)(visual, acoustic, none)
    assert loss.shape == ()
    loss.backward()
    assert loss.isfinite()
    assert visual.grad.isfinite().all()
    assert visual.grad.abs().max() > 0


@every_loss
def test_loss_does_not_depend_on_the_order_of_clips(name, batch):
    loss_function, (visual, acoustic, none) = build(name), batch
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    loss, shuffled = loss_function(visual, acoustic, none), loss_function(visual[order], acoustic[order], none)
    assert loss.item() == pytest.approx(shuffled.item(), rel=1e-5)


@every_loss
def test_loss_is_lower_for_equal_vectors(name, batch):
    loss_function, (visual, acoustic, none) = build(name), batch
    assert loss_function(acoustic, acoustic, none).item() < loss_function(visual, acoustic, none).item()


@every_loss
def test_gradient_descent_brings_vectors_of_a_clip_together(name, batch):
    loss_function, (visual, acoustic, none) = build(name), batch
    visual = visual.clone().requires_grad_()
    optimizer = torch.optim.Adam([visual, *loss_function.parameters()], lr=0.05)
    before = cosine_matrix(visual, acoustic).diagonal().mean().item()
    for _ in range(100):
        optimizer.zero_grad()
        loss_function(visual, acoustic, none).backward()
        optimizer.step()
    assert cosine_matrix(visual, acoustic).diagonal().mean().item() > before + 0.3


@every_loss
def test_only_losses_with_negatives_use_the_mask(name, batch):
    loss_function, (visual, acoustic, none) = build(name), batch
    all_pairs = ~torch.eye(6, dtype=torch.bool)
    differs = loss_function(visual, acoustic, none).item() != loss_function(visual, acoustic, all_pairs).item()
    assert differs == losses.load(name).NEGATIVES


@every_loss
def test_a_false_negative_has_no_gradient(name, batch):
    """If clip 0 is a false negative of all others, its target does not move them."""
    if not losses.load(name).NEGATIVES:
        pytest.skip(f"{name} has no negatives")
    loss_function, (visual, acoustic, mask) = build(name), batch
    mask[0, 1:] = mask[1:, 0] = True
    visual = visual.clone().requires_grad_()
    changed = acoustic.clone()
    changed[0] = -changed[0]
    first, second = (
        torch.autograd.grad(loss_function(visual, targets, mask), visual)[0] for targets in (acoustic, changed)
    )
    torch.testing.assert_close(first[1:], second[1:])


def test_infonce_is_the_symmetric_cross_entropy(batch):
    loss_function, (visual, acoustic, none) = build("infonce"), batch
    logits = (cosine_matrix(visual, acoustic) / 0.07).double()
    expected = -(logits.log_softmax(1).diagonal().mean() + logits.log_softmax(0).diagonal().mean()) / 2
    assert loss_function(visual, acoustic, none).item() == pytest.approx(float(expected), rel=1e-5)


def test_siglip_is_a_binary_decision_for_each_pair(batch):
    loss_function, (visual, acoustic, none) = build("siglip"), batch
    logits = (10 * cosine_matrix(visual, acoustic) - 10).double()
    total = 0.0
    for i in range(6):
        for j in range(6):
            total -= float(torch.sigmoid(logits[i, j] if i == j else -logits[i, j]).log())
    assert loss_function(visual, acoustic, none).item() == pytest.approx(total / 6, rel=1e-5)


def test_soft_is_the_divergence_from_the_audio_similarities(batch):
    loss_function, (visual, acoustic, none) = build("soft"), batch
    targets = (cosine_matrix(acoustic, acoustic) / 0.1).softmax(1).double()
    logits = (cosine_matrix(visual, acoustic) / 0.07).double()
    divergences = [
        (targets * (targets.log() - direction.log_softmax(1))).sum(1).mean() for direction in (logits, logits.T)
    ]
    assert loss_function(visual, acoustic, none).item() == pytest.approx(float(sum(divergences)) / 2, rel=1e-5)


def test_infonce_learns_a_bounded_scale(batch):
    loss_function, (visual, acoustic, none) = build("infonce"), batch
    loss_function(visual, acoustic, none).backward()
    assert loss_function.scale.log_scale.grad.abs() > 0
    with torch.no_grad():
        loss_function.scale.log_scale.fill_(20.0)
    assert loss_function.scale().item() == 100.0
