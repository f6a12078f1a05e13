"""The members of a bundle's ensemble: heads of one form share a file of stacked tensors."""

from collections.abc import Mapping
from typing import Any

import torch

from mertool.errors import MertoolError
from mertool.fusion.heads import FusionHead, HeadSpec
from mertool.runs import Run, load_tensors

Tensors = dict[str, torch.Tensor]
Heads = list[tuple[FusionHead, Tensors]]
MAX_WIDTH = 1 << 16


def load_heads(run: Run, *, shapes: list[tuple[int, int]], n_classes: int) -> Heads:
    """Load the groups of members, on the CPU: a head of each form, and the tensors (M, ...) of its M members.

    shapes: (L, D) of each modality. Raises MertoolError for tensors that do not fit their head or are not finite, and
    KeyError, TypeError or ValueError for entries of run.json that `write` would not write.
    """
    groups = run.info["members"]
    if not isinstance(groups, list) or not groups:
        raise TypeError("the members are not a list")
    return [_load_group(run, group, shapes=shapes, n_classes=n_classes) for group in groups]


def _load_group(
    run: Run, group: dict[str, Any], *, shapes: list[tuple[int, int]], n_classes: int
) -> tuple[FusionHead, Tensors]:
    path, sizes = run.folder / group["file"], {"width": group["width"], "dropout": group["dropout"]}
    if group["file"] not in run.info["files"]:
        raise ValueError(f"members in {str(group['file'])[:80]!r}, which the seal does not name")
    if not (type(sizes["width"]) is int and 0 < sizes["width"] <= MAX_WIDTH and 0 <= float(sizes["dropout"]) < 1):
        raise ValueError(f"members of the sizes {sizes}")
    spec = HeadSpec(group["head"], shapes, n_classes)
    state = load_tensors(path)
    # A head on the device meta has sizes, but takes no memory, however wide run.json says that it is.
    with torch.device("meta"):
        form = spec.build(**sizes)
    if not _fits(form, state, n_members=len(group["fold"])):
        raise MertoolError(
            f"{path} does not fit the head '{group['head']}' of this version of mertool: fuse again, or use mertool "
            f"{run.info['mertool']}"
        )
    if not all(tensor.isfinite().all() for tensor in state.values()):
        raise MertoolError(f"{path} holds NaN or infinity: fuse again")
    return spec.build(**sizes).eval(), state


def _fits(form: FusionHead, state: Mapping[str, torch.Tensor], *, n_members: int) -> bool:
    """Return True if `state` has the tensors of `n_members` heads, stacked along a first axis."""
    expected = {name: (n_members, *tensor.shape) for name, tensor in [*form.named_parameters(), *form.named_buffers()]}
    return n_members > 0 and expected == {name: tuple(tensor.shape) for name, tensor in state.items()}
