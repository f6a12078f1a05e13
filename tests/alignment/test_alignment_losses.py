"""The losses between faces and sounds: each against its formula, and what all of them have in common."""

import pytest
import torch

from mertool import registry
from mertool.alignment import losses

NAMES = registry.choices(losses.PACKAGE)
each_loss = pytest.mark.parametrize("name", NAMES)


@pytest.fixture
def rows():
    torch.manual_seed(0)
    return torch.randn(6, 4), torch.randn(6, 4), torch.zeros(6, 6, dtype=torch.bool)


def cosines(first, second):
    return (first / first.norm(dim=1, keepdim=True)) @ (second / second.norm(dim=1, keepdim=True)).T


def test_the_losses_of_the_house():
    assert NAMES == ["cosine", "infonce", "mse", "siglip", "soft"]


@each_loss
def test_a_match_is_better_than_none(name, rows):
    loss, (visual, acoustic, same) = losses.load(name).build(), rows
    assert loss(acoustic, acoustic, same).item() < loss(visual, acoustic, same).item()


@each_loss
def test_following_the_gradient_draws_faces_to_their_sound(name, rows):
    loss, (visual, acoustic, same) = losses.load(name).build(), rows
    visual = visual.clone().requires_grad_()
    optimizer = torch.optim.Adam([visual, *loss.parameters()], lr=0.05)
    before = cosines(visual, acoustic).diagonal().mean().item()
    for _ in range(100):
        optimizer.zero_grad()
        loss(visual, acoustic, same).backward()
        optimizer.step()
    assert cosines(visual, acoustic).diagonal().mean().item() > before + 0.3


@each_loss
def test_only_losses_with_negatives_mind_which_pairs_are_none(name, rows):
    module, (visual, acoustic, same) = losses.load(name), rows
    loss, others = module.build(), ~torch.eye(6, dtype=torch.bool)
    changed = loss(visual, acoustic, same).item() != loss(visual, acoustic, others).item()
    assert changed == module.NEGATIVES


@pytest.mark.parametrize("name", [name for name in NAMES if losses.load(name).NEGATIVES])
def test_a_pair_that_is_no_negative_gets_no_gradient(name, rows):
    loss, (visual, acoustic, same) = losses.load(name).build(), rows
    same[0, 1:] = same[1:, 0] = True
    visual = visual.clone().requires_grad_()
    moved = acoustic.clone()
    moved[0] = -moved[0]
    gradients = []
    for anchors in (acoustic, moved):
        gradients.append(torch.autograd.grad(loss(visual, anchors, same), visual)[0])
    torch.testing.assert_close(gradients[0][1:], gradients[1][1:])


def test_infonce_is_the_symmetric_cross_entropy(rows):
    loss, (visual, acoustic, same) = losses.load("infonce").build(), rows
    similar = (cosines(visual, acoustic) / 0.07).double()
    wanted = -(similar.log_softmax(1).diagonal().mean() + similar.log_softmax(0).diagonal().mean()) / 2
    assert loss(visual, acoustic, same).item() == pytest.approx(float(wanted), rel=1e-5)


def test_siglip_is_a_yes_or_no_of_each_pair(rows):
    loss, (visual, acoustic, same) = losses.load("siglip").build(), rows
    logits = (10 * cosines(visual, acoustic) - 10).double()
    total = 0.0
    for i in range(6):
        for j in range(6):
            total -= float(torch.sigmoid(logits[i, j] if i == j else -logits[i, j]).log())
    assert loss(visual, acoustic, same).item() == pytest.approx(total / 6, rel=1e-5)


def test_soft_labels_are_the_similarities_of_the_sounds(rows):
    loss, (visual, acoustic, same) = losses.load("soft").build(), rows
    wanted = (cosines(acoustic, acoustic) / 0.1).softmax(1).double()
    logits = (cosines(visual, acoustic) / 0.07).double()
    found = [(wanted * (wanted.log() - part.log_softmax(1))).sum(1).mean() for part in (logits, logits.T)]
    assert loss(visual, acoustic, same).item() == pytest.approx(float(sum(found)) / 2, rel=1e-5)


def test_the_scale_is_learned_and_bounded(rows):
    loss, (visual, acoustic, same) = losses.load("infonce").build(), rows
    loss(visual, acoustic, same).backward()
    assert loss.scale.log.grad.abs() > 0
    with torch.no_grad():
        loss.scale.log.fill_(20.0)
    assert loss.scale().item() == 100.0
