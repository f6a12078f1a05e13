"""Training many members at once: folds x seeds x draws, as stacked weights on the device.

Members of one width, learning rate and number of steps form stacks; on a CPU small ones, each computed by one thread,
as many at a time as there are cores (two threads share a product of these sizes badly); on a GPU large ones.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.func import functional_call

from mertool.fusion.batches import Features, drop_modalities
from mertool.fusion.heads import Head
from mertool.fusion.trainer import Member, Schedule, Trained, train_stack

__all__ = ["Features", "Member", "Schedule", "Trained", "drop_modalities", "ensemble_logits", "train_members"]

LEAST = 16  # members of a stack on a CPU: so many make what a step costs beside arithmetic small
WEIGHTS = 1 << 22  # or as many as have so many weights together: small members make larger stacks
ON_GPU = 256  # members of a stack on a GPU
VALUES = 1 << 24  # feature values in memory at once when scoring


def train_members(
    build: Callable[[int, float], Head],
    features: Features,
    present: torch.Tensor,
    members: list[Member],
    classes: int,
    schedule: Schedule,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> list[Trained]:
    """Train members, each as if alone; `build` makes a head of (width, dropout).

    features: list of (N, L, D), present (N, P). `progress` gets the epochs done and in all, over all members.
    """
    most = {width: at_once(build, width, present.device) for width in {member.width for member in members}}
    stacks = _stacks(members, schedule.batch, most)
    total, state = sum(member.epochs for member in members), _Count()

    def run(chosen: list[int]) -> list[Trained]:
        def done() -> None:
            state.check()
            with state.lock:
                state.done += len(chosen)
                progress(state.done, total)

        state.check()
        return train_stack(build, features, present, [members[n] for n in chosen], classes, schedule, done)

    found: list[Trained | None] = [None] * len(members)
    workers = len(stacks) if present.device.type == "cpu" else 1
    with _onednn(), _threads(workers) as pool:
        try:
            for chosen, results in zip(stacks, pool.map(run, stacks), strict=True):
                for number, result in zip(chosen, results, strict=True):
                    found[number] = result
        except BaseException:
            state.stop = True
            raise
    return [result for result in found if result is not None]


class _Count:
    """What threads share: epochs done, and whether to stop."""

    def __init__(self) -> None:
        self.lock, self.done, self.stop = threading.Lock(), 0, False

    def check(self) -> None:
        """Raise in the threads that are left once the run has failed or was interrupted."""
        if self.stop:
            raise InterruptedError("the run was stopped")


@contextmanager
def _onednn() -> Iterator[None]:
    """Let oneDNN multiply float32 matrices where nothing is lost by it; torch's setting is the whole process's.

    Torch gives them to MKL, which is slow on processors that are not Intel's, unless their factors may be rounded to
    bfloat16. Without units for that, oneDNN multiplies in float32 all the same: more than twice as fast.
    """
    mkldnn: Any = torch.backends.mkldnn
    before = mkldnn.matmul.fp32_precision
    try:
        mkldnn.matmul.fp32_precision = "bf16"
        if not _is_exact():
            mkldnn.matmul.fp32_precision = before
        yield
    finally:
        mkldnn.matmul.fp32_precision = before


def _is_exact() -> bool:
    """Whether products are as exact as float32 can be, forwards and as gradients: bfloat16 errs far more."""
    draw = torch.Generator().manual_seed(0)
    values, weights = torch.randn(4, 32, 512, generator=draw), torch.randn(4, 512, 128, generator=draw)
    pairs = ((values, weights), (values.mT, values @ weights), (values @ weights, weights.mT))
    errors = [
        (torch.bmm(a, b).double() - a.double() @ b.double()).abs().max() / (a.norm(dim=-1).max() * b.norm(dim=-2).max())
        for a, b in pairs
    ]
    return max(map(float, errors)) < 1e-5


@contextmanager
def _threads(stacks: int) -> Iterator[ThreadPoolExecutor]:
    """A thread per core, each computing alone; a single stack keeps all of torch's threads."""
    before = torch.get_num_threads()
    workers = max(1, min(before, stacks))
    try:
        torch.set_num_threads(max(1, before // workers))
        with ThreadPoolExecutor(workers, "members", lambda: torch.set_num_threads(max(1, before // workers))) as pool:
            yield pool
    finally:
        torch.set_num_threads(before)


def at_once(build: Callable[[int, float], Head], width: int, device: torch.device) -> int:
    """How many members of a width make a stack."""
    if device.type != "cpu":
        return ON_GPU
    with torch.device("meta"):
        return max(LEAST, WEIGHTS // sum(weights.numel() for weights in build(width, 0.0).parameters()))


def _stacks(members: list[Member], batch: int, most: dict[int, int]) -> list[list[int]]:
    """Numbers of the members of each stack, of `most` (by width) at most and of nearly equal sizes."""
    groups: dict[tuple[float, ...], list[int]] = {}
    for number, member in enumerate(members):
        steps, watching = -(-len(member.rows) // batch), member.watched is not None
        key = (member.width, member.learning_rate, member.epochs, steps, watching, member.keep_best)
        groups.setdefault(key, []).append(number)
    parts = [np.array_split(group, -(-len(group) // most[int(key[0])])) for key, group in groups.items()]
    # The longest first, so that threads end together.
    found = [part.tolist() for group in parts for part in group]
    return sorted(found, key=lambda part: -len(part) * members[part[0]].width * members[part[0]].epochs)


@torch.no_grad()
def ensemble_logits(
    head: Head, state: dict[str, torch.Tensor], features: Features, present: torch.Tensor
) -> torch.Tensor:
    """Logits (M, N, C) of all members, whose weights are stacked in `state`, on the same clips."""
    head.eval()
    members = len(next(iter(state.values())))
    size = max(1, VALUES // (members * sum(values[0].numel() for values in features)))
    found = []
    for start in range(0, len(present), size):
        some = [values[start : start + size].expand(members, *[-1] * values.dim()) for values in features]
        here = present[start : start + size].expand(members, -1, -1)
        found.append(functional_call(head, state, (some, here)))
    return torch.cat(found, 1)
