"""Training of many members at once (folds x seeds x trials), as stacked weights on the device.

Members of one width, learning rate and number of steps form stacks. On a CPU stacks are small and each is computed by
one thread, as many at a time as there are cores: matrix products of these sizes gain little from a second thread. On a
GPU stacks are large.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.func import functional_call

from mertool.devices import onednn_matmul
from mertool.fusion.heads import FusionHead, HeadSpec
from mertool.fusion.modality_features import ModalityFeatures
from mertool.fusion.trainer import EnsembleMember, FusionTraining, TrainedMember, train_stack

MIN_STACK_SIZE = 16  # members on a CPU: enough that the fixed cost of a step is small beside its arithmetic
MAX_STACK_WEIGHTS = 1 << 22  # or as many members as have this many weights together: small members, larger stacks
GPU_STACK_SIZE = 256  # members
MAX_FEATURE_VALUES = 1 << 24  # in memory at once when scoring
Progress = Callable[[int, int], None]  # epochs of members that are done, and in all


def stage_progress(progress: Progress, stage: int, stages: int) -> Progress:
    """Return the progress of one of several trainings of about equal length, as a share of the progress of all."""
    return lambda done, total: progress(stage * total + done, stages * total)


def train_members(
    spec: HeadSpec,
    features: ModalityFeatures,
    members: Sequence[EnsembleMember],
    *,
    training: FusionTraining,
    progress: Progress = lambda *_: None,
) -> list[TrainedMember]:
    """Train members and return them in the same order; see `train_stack` for what a member depends on."""
    stacks = plan_stacks(spec, members, batch=training.batch, device=features.device)
    counter = _EpochCounter(sum(member.trial.epochs for member in members), progress)

    def train(indices: list[int]) -> list[TrainedMember]:
        stack = [members[index] for index in indices]
        return train_stack(spec, features, stack, training=training, on_epoch=lambda: counter.add(len(stack)))

    trained: dict[int, TrainedMember] = {}
    with onednn_matmul(), _thread_pool(len(stacks) if features.device.type == "cpu" else 1) as pool:
        try:
            for indices, results in zip(stacks, pool.map(train, stacks), strict=True):
                trained |= zip(indices, results, strict=True)
        except BaseException:
            # Leaving the pool waits for its threads, which would otherwise train to the end.
            counter.is_cancelled = True
            raise
    return [trained[index] for index in range(len(members))]


def plan_stacks(
    spec: HeadSpec, members: Sequence[EnsembleMember], *, batch: int, device: torch.device
) -> list[list[int]]:
    """Return the indices of the members of each stack, which are nearly equal in size."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for index, member in enumerate(members):
        trial, steps, has_validation = member.trial, -(-len(member.rows) // batch), member.validation_rows is not None
        key = (trial.width, trial.learning_rate, trial.epochs, steps, has_validation, member.keep_best)
        groups.setdefault(key, []).append(index)
    stacks: list[list[int]] = []
    for (width, *_), group in groups.items():
        count = -(-len(group) // members_per_stack(spec, width, device))
        stacks += [stack.tolist() for stack in np.array_split(group, count)]

    def work(stack: list[int]) -> int:
        return len(stack) * members[stack[0]].trial.width * members[stack[0]].trial.epochs

    # The longest first, so that threads finish at about the same time.
    return sorted(stacks, key=work, reverse=True)


def members_per_stack(spec: HeadSpec, width: int, device: torch.device) -> int:
    """Return how many members of a width are trained as one stack at most."""
    if device.type != "cpu":
        return GPU_STACK_SIZE
    with torch.device("meta"):
        weights = sum(parameter.numel() for parameter in spec.build(width=width).parameters())
    return max(MIN_STACK_SIZE, MAX_STACK_WEIGHTS // weights)


@torch.no_grad()
def ensemble_logits(head: FusionHead, state: dict[str, torch.Tensor], features: ModalityFeatures) -> torch.Tensor:
    """Return logits (M, N, C) of all M members, whose tensors are stacked in `state`, on the same N clips."""
    head.eval()
    members = len(next(iter(state.values())))
    block = max(1, MAX_FEATURE_VALUES // (members * sum(values[0].numel() for values in features.values)))
    logits = []
    for start in range(0, len(features), block):
        clips = features.rows(slice(start, start + block)).expand(members)
        logits.append(functional_call(head, state, (clips.values, clips.present)))
    return torch.cat(logits, 1)


class _EpochCounter:
    """Counts the epochs of all threads, and cancels the other threads after an error or an interrupt."""

    def __init__(self, total: int, progress: Progress):
        self.total, self.progress, self.done, self.is_cancelled = total, progress, 0, False
        self._lock = threading.Lock()

    def add(self, epochs: int) -> None:
        """Report epochs of members. Raises InterruptedError once the training is cancelled."""
        if self.is_cancelled:
            raise InterruptedError("the training was cancelled")
        with self._lock:
            self.done += epochs
            self.progress(self.done, self.total)


@contextmanager
def _thread_pool(stacks: int) -> Iterator[ThreadPoolExecutor]:
    """Yield a pool of one thread per core, each computing with one thread of torch's; one stack uses all of these."""
    threads = torch.get_num_threads()
    workers = max(1, min(threads, stacks))
    per_worker = max(1, threads // workers)
    try:
        torch.set_num_threads(per_worker)
        with ThreadPoolExecutor(workers, "members", lambda: torch.set_num_threads(per_worker)) as pool:
            yield pool
    finally:
        torch.set_num_threads(threads)
