"""Exact attention of some rows, reduced to what its estimators read: by key, by distance."""

from __future__ import annotations

import torch
from torch import Tensor

from sparselens.kernels.call import AttentionCall


def probed(call: AttentionCall, rows: int) -> Tensor:
    """Return the dense weights of the last `rows` queries of one sequence: `[heads, rows, k_len]`."""
    return torch.softmax(call.scores(call.q_len - rows, call.q_len), -1)[0]


def by_distance(call: AttentionCall, weights: Tensor) -> Tensor:
    """Return the sums of `weights` `[heads, rows, k_len]` of the last rows along each diagonal.

    `[heads, last query position + 1]`; cell `d` is the mass at `q - k = d`.
    """
    size = int(call.query_positions[0, -1]) + 1
    gap = call.query_positions[0, -weights.shape[1] :, None] - call.key_positions[0]
    summed = weights.new_zeros(call.heads, size + 1)
    target = gap.where(gap >= 0, size).flatten().expand(call.heads, -1)
    return summed.scatter_add_(1, target, weights.flatten(1))[:, :size]
