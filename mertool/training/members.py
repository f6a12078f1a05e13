"""Training many copies of one head at once: folds x seeds as stacked weights on the device."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.func import functional_call, stack_module_state, vmap

Features = list[torch.Tensor]  # one (N, L, D) per modality
Head = Callable[[], nn.Module]


@dataclass(frozen=True)
class Schedule:
    """How members are trained: AdamW with a fixed number of epochs, so nothing is chosen on held-out clips."""

    epochs: int = 60
    batch: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    modality_dropout: float = 0.15


def train_members(
    make_head: Head,
    features: Features,
    present: torch.Tensor,
    labels: torch.Tensor,
    rows: list[torch.Tensor],
    seeds: list[int],
    schedule: Schedule,
    progress: Callable[[int, int], None],
) -> tuple[nn.Module, dict[str, torch.Tensor], list[float]]:
    """Train one member per entry of `rows` (its training rows) and `seeds`, all together.

    Returns the bare head, its stacked state (first axis: members) and the mean loss by epoch. Each
    member's normaliser is fitted on its own rows.
    """
    heads = []
    for chosen, seed in zip(rows, seeds, strict=True):
        torch.manual_seed(seed)
        head: Any = make_head()
        head.fit_normaliser([f[chosen] for f in features], present[chosen])
        heads.append(head.to(labels.device))
    parameters, buffers = stack_module_state(heads)
    bare = heads[0]
    bare.train()
    size = min(len(chosen) for chosen in rows)
    width = min(schedule.batch, size)
    steps = max(1, size // width)
    optimizer = torch.optim.AdamW(
        list(parameters.values()), lr=schedule.learning_rate, weight_decay=schedule.weight_decay
    )
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, schedule.epochs * steps)
    orders = [torch.Generator().manual_seed(seed) for seed in seeds]

    def member_loss(p: Any, b: Any, x: Features, here: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(functional_call(bare, (p, b), (x, here)), y)

    losses = []
    torch.manual_seed(seeds[0])
    for epoch in range(schedule.epochs):
        shuffled = torch.stack(
            [c.cpu()[torch.randperm(len(c), generator=g)[:size]] for c, g in zip(rows, orders, strict=True)]
        ).to(labels.device)
        total = 0.0
        for step in range(steps):
            batch = shuffled[:, step * width : (step + 1) * width]
            here = drop_modalities(present[batch], schedule.modality_dropout)
            loss = vmap(member_loss, randomness="different")(
                parameters, buffers, [f[batch] for f in features], here, labels[batch]
            )
            optimizer.zero_grad()
            loss.sum().backward()
            optimizer.step()
            decay.step()
            total += float(loss.detach().mean())
        losses.append(total / steps)
        progress(epoch + 1, schedule.epochs)
    state = {name: value.detach() for name, value in {**parameters, **buffers}.items()}
    return bare.eval(), state, losses


@torch.no_grad()
def member_logits(
    head: nn.Module, state: dict[str, torch.Tensor], features: Features, present: torch.Tensor
) -> torch.Tensor:
    """Logits (M, N, C) of all members on the same clips."""
    head.eval()

    def forward(member: dict[str, torch.Tensor]) -> torch.Tensor:
        return functional_call(head, member, (features, present))

    return vmap(forward)(state)


def drop_modalities(present: torch.Tensor, share: float) -> torch.Tensor:
    """Hide each present modality (..., M) with probability `share`, but never the last one of a clip."""
    if share <= 0 or present.shape[-1] == 1:
        return present
    kept = present & (torch.rand(present.shape, device=present.device) >= share)
    return torch.where(kept.any(-1, keepdim=True), kept, present)
