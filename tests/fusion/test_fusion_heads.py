"""The contract of fusion heads, tested on every file of the folder."""

import pytest
import torch

from mertool import registry
from mertool.errors import MertoolError
from mertool.fusion.heads import HeadSpec, stack_members

HEADS = registry.choices("fusion.heads")
SHAPES = [(3, 8), (1, 5), (2, 4)]
each_head = pytest.mark.parametrize("name", HEADS)
UNSTANDARDISED = {"attention-mertools"}  # takes features as they are


def build(name, shapes=SHAPES, seed=1):
    torch.manual_seed(seed)
    head = HeadSpec(name, shapes, 6).build(width=16).eval()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return head


def inputs(count=12, shapes=SHAPES, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(count, *shape, generator=draw) for shape in shapes]


def test_the_folder_has_the_heads_of_the_help_text():
    heads = ("attention", "attention-mertools", "concat", "cross-attention", "gated", "late", "low-rank")
    assert set(heads) <= set(HEADS)


@each_head
def test_logits_have_a_row_per_clip(name):
    assert build(name)(inputs(), torch.ones(12, 3, dtype=torch.bool)).shape == (12, 6)


@each_head
@pytest.mark.parametrize("absent", [(0,), (1,), (2,), (0, 2), (1, 2)])
@pytest.mark.parametrize("value", ["random", "huge", "nan", "infinite"])
def test_an_absent_modality_never_changes_the_logits(name, absent, value):
    head, features, present = build(name), inputs(), torch.ones(12, 3, dtype=torch.bool)
    present[:, list(absent)] = False
    expected = head(features, present)
    for seed in range(5):
        other = inputs(seed=seed + 100)
        factor = {"random": 1.0, "huge": 1e20, "nan": float("nan"), "infinite": float("inf")}[value]
        changed = [other[n] * factor if n in absent else features[n] for n in range(3)]
        assert torch.equal(head(changed, present), expected)


@each_head
def test_an_absent_modality_gets_no_gradient(name):
    head, features, present = build(name), inputs(), torch.ones(12, 3, dtype=torch.bool)
    present[:, 1] = False
    for values in features:
        values.requires_grad_(True)
    head(features, present).square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in head.parameters())
    assert features[1].grad.abs().sum() == 0
    assert features[0].grad.abs().sum() > 0


@each_head
def test_every_present_modality_matters(name):
    head, features, present = build(name), inputs(), torch.ones(12, 3, dtype=torch.bool)
    expected = head(features, present)
    for number in range(3):
        changed = [values + 1.0 if n == number else values for n, values in enumerate(features)]
        assert not torch.allclose(head(changed, present), expected, atol=1e-3)


@each_head
def test_a_clip_does_not_depend_on_its_batch(name):
    head, features = build(name).double(), [values.double() for values in inputs()]
    present = torch.rand(12, 3, generator=torch.Generator().manual_seed(2)) < 0.6
    together = head(features, present)
    for row in range(12):
        alone = head([values[row : row + 1] for values in features], present[row : row + 1])
        torch.testing.assert_close(alone[0], together[row], atol=1e-5, rtol=1e-5)


@each_head
def test_a_clip_without_anything_has_finite_logits(name):
    assert build(name)(inputs(), torch.zeros(12, 3, dtype=torch.bool)).isfinite().all()


@each_head
def test_a_single_modality(name):
    head = build(name, [(4, 7)])
    assert head(inputs(shapes=[(4, 7)]), torch.ones(12, 1, dtype=torch.bool)).shape == (12, 6)


@pytest.mark.parametrize("name", sorted(set(HEADS) - UNSTANDARDISED))
def test_features_are_standardised_by_the_clips_that_have_them(name):
    """Scale and offset of a modality change no logit."""
    features = inputs(200)
    present = torch.rand(200, 3, generator=torch.Generator().manual_seed(2)) < 0.7
    head = build(name)
    head.fit_standardizer(features, present)
    expected = head(features, present)
    moved = [values * scale + offset for values, scale, offset in zip(features, (50, 0.1, 3), (4, -2, 90), strict=True)]
    head.fit_standardizer(moved, present)
    torch.testing.assert_close(head(moved, present), expected, atol=1e-3, rtol=1e-3)


@each_head
def test_a_constant_channel_is_no_division_by_zero(name):
    features, present = inputs(), torch.ones(12, 3, dtype=torch.bool)
    features[0][:, :, 2] = 4.0
    head = build(name)
    head.fit_standardizer(features, present)
    assert head(features, present).isfinite().all()


@each_head
def test_stacked_heads_are_each_head_by_itself(name):
    alone = [build(name, seed=seed) for seed in (1, 2, 3)]
    features, present = inputs(), torch.rand(12, 3, generator=torch.Generator().manual_seed(2)) < 0.6
    expected = torch.stack([head(features, present) for head in alone])
    rows = [values.expand(3, *values.shape) for values in features]
    stacked = stack_members(alone)(rows, present.expand(3, -1, -1))
    torch.testing.assert_close(stacked, expected, atol=1e-5, rtol=1e-4)


@each_head
def test_every_parameter_of_a_stack_gets_a_gradient(name):
    head = stack_members([build(name, seed=seed) for seed in (1, 2)])
    rows = [values.expand(2, *values.shape) for values in inputs()]
    present = torch.rand(12, 3, generator=torch.Generator().manual_seed(2)) < 0.6
    head(rows, present.expand(2, -1, -1)).square().sum().backward()
    for key, parameter in head.named_parameters():
        if key == "inputs.mixes.1":  # this modality has one layer, so nothing is mixed
            continue
        assert all(each.abs().sum() > 0 for each in parameter.grad), key


@pytest.mark.parametrize(("width", "count"), [(64, 226_633), (128, 543_369), (256, 1_447_177)])
def test_the_official_form_has_the_official_number_of_parameters(width, count):
    head = HeadSpec("attention-mertools", [(1, 1024), (1, 1024), (1, 768)], 6).build(width=width)
    assert sum(parameter.numel() for parameter in head.parameters()) == count
    assert not list(head.buffers())


def test_low_rank_fusion_is_affine_in_each_modality():
    head, present = build("low-rank"), torch.ones(12, 3, dtype=torch.bool)
    hidden = head.inputs(inputs(), present)
    head.inputs = HiddenVectors()  # scaling the features would not scale the hidden vectors
    scaled = [hidden * torch.tensor([factor, 1.0, 1.0])[:, None] for factor in (0.0, 1.0, 2.0)]
    none, once, twice = (head(vectors, present) for vectors in scaled)
    torch.testing.assert_close(twice - once, once - none, atol=1e-2, rtol=1e-3)


class HiddenVectors(torch.nn.Module):
    """Takes the place of a head's projection, and returns its input."""

    def forward(self, hidden, present):
        return hidden


def test_late_fusion_is_the_mean_of_the_probabilities():
    head, features, present = build("late"), inputs(), torch.ones(12, 3, dtype=torch.bool)
    with torch.no_grad():
        head.votes.zero_()
    alone = []
    for number in range(3):
        only = torch.zeros_like(present)
        only[:, number] = True
        alone.append(head(features, only).softmax(-1))
    torch.testing.assert_close(head(features, present).softmax(-1), torch.stack(alone).mean(0))


def test_the_queries_of_cross_attention_are_the_first_modality():
    """Without it there is one learned query, so clips differ only by what it attends to in the others."""
    head, features, present = build("cross-attention"), inputs(), torch.ones(12, 3, dtype=torch.bool)
    present[:, 1:] = False
    others = [features[0], *(torch.randn_like(values) for values in features[1:])]
    torch.testing.assert_close(head(features, present), head(others, present))
    present[:, 0] = False
    logits = head(features, present)
    torch.testing.assert_close(logits, logits[:1].expand(12, -1))


def test_attention_weighs_only_what_is_present():
    head, features = build("attention"), inputs()
    present = torch.rand(12, 3, generator=torch.Generator().manual_seed(2)) < 0.5
    present[~present.any(1), 0] = True
    weights = head.attention_weights(head.inputs(features, present), present)
    torch.testing.assert_close(weights.sum(1), torch.ones(12))
    assert (weights[~present] == 0).all()


def test_an_unknown_head_gets_a_suggestion():
    with pytest.raises(MertoolError, match=r"unknown fusion head 'conact': did you mean 'concat'\?"):
        HeadSpec("conact", SHAPES, 6).build(width=16)


# ---------------------------------------------------------------- numbers


@each_head
def test_every_head_predicts_a_number_on_the_scale_of_its_clips(name):
    torch.manual_seed(0)
    head = HeadSpec(name, SHAPES, 1).build(width=16)
    features, present = inputs(), torch.rand(12, 3) < 0.7
    present[:, 0] = True
    numbers = torch.linspace(990, 1010, 12)
    head.fit_standardizer(features, present)
    head.fit_numbers(numbers)
    outputs = head.eval()(features, present)
    assert outputs.shape == (12, 1)
    assert outputs.std() > 0
    assert (outputs - numbers.mean()).abs().max() < 20 * numbers.std()
    # A softmax over a single output would be constant, and its gradient zero.
    features[0].requires_grad_(True)
    head(features, present).sum().backward()
    assert features[0].grad.abs().sum() > 0


@each_head
def test_a_stack_of_number_heads_is_each_head(name):
    heads = []
    for seed in range(3):
        torch.manual_seed(seed)
        heads.append(HeadSpec(name, SHAPES, 1).build(width=8).eval())
        heads[-1].fit_numbers(torch.tensor([1.0, 3.0, 4.0]) * (seed + 1))
    features, present = inputs(), torch.ones(12, 3, dtype=torch.bool)
    expected = torch.stack([head(features, present) for head in heads])
    stack = stack_members(heads)
    together = stack([values.expand(3, *values.shape) for values in features], present.expand(3, *present.shape))
    torch.testing.assert_close(together, expected)


def test_equal_numbers_keep_their_scale():
    head = HeadSpec("concat", SHAPES, 1).build(width=4)
    head.fit_numbers(torch.full((5,), 0.1))
    assert (head.mean.item(), head.std.item()) == (pytest.approx(0.1), 1.0)
