"""DHSA's rows of blocks: first and newest block forced, the middle filled by score, rows that fit dense."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from sparselens.kernels.parts.block import Blocks
from sparselens.kernels.parts.budget import top_k

_UNIT = 2.0**32


def filled(blocks: Blocks, scores: Tensor, k: int, forced: Tensor, dense: Tensor | None = None) -> Tensor:
    """Return the map of `forced` `[n_q, n_k]` and the best of the middle, `k` blocks a row: `[heads, n_q, n_k]`.

    The middle is what the model allows but for first and newest block; forced blocks count in `k`. Rows that can see
    no more than `k` blocks keep them all, as do rows `dense` `[n_q]`. The blocks of the diagonal come on top.
    """
    reach = blocks.reach
    middle = reach & ~blocks.sink() & ~blocks.newest
    rest = (k - forced.sum(-1, keepdim=True)).clamp(min=0)
    whole = reach.sum(-1) <= k
    if dense is not None:
        whole |= dense
    kept = top_k(scores, rest, middle) | forced | (blocks.diagonal & reach)
    return torch.where(whole[:, None], reach, kept)


def between(values: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return sums of `values` `[heads, n]` from index `low` to `high`, both included: float64 `[heads, *low.shape]`.

    `low` and `high` int64 of one shape; what lies outside counts as 0. Summed in units of 2⁻³², so that equal sets
    have equal sums wherever they stand.
    """
    before = pad((values.double() * _UNIT).round().long().cumsum(-1), (1, 0))
    start = low.clamp(0, values.shape[-1])
    stop = torch.maximum((high + 1).clamp(0, values.shape[-1]), start)
    return (before[:, stop] - before[:, start]).double() / _UNIT
