"""The best keys of each row, as many as the row is told: for references of another policy's shape."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sparselens.kernels.parts.budget import ranks


def best(scores: Tensor, count: Tensor) -> Tensor:
    """Return the `count` largest of each row of `scores`: bool, as `scores`; `-inf` is never taken.

    `count` int64, as `scores` without its last axis (or broadcast to that). Ties go to the lower index. Rows with
    fewer finite scores than `count` keep them all.
    """
    size = scores.shape[-1]
    count = torch.minimum(count.expand(scores.shape[:-1]), torch.isfinite(scores).sum(-1))
    place = (size - count).clamp(max=size - 1)[..., None]
    least = _ascending(scores).gather(-1, place)
    kept = (scores >= least) & (count > 0)[..., None]
    tied = kept.sum(-1) > count
    if bool(tied.any()):
        kept[tied] = ranks(scores[tied]) < count[tied][:, None]
    return kept


def _ascending(values: Tensor) -> Tensor:
    """Return each row sorted; on a CPU numpy does that more than ten times as fast as torch."""
    if values.device.type != "cpu" or values.dtype not in (torch.float32, torch.float64):
        return values.sort(dim=-1).values
    return torch.from_numpy(np.sort(values.numpy(), axis=-1))
