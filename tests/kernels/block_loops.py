"""Blocks in the dumbest loops, over float64 lists: what block policies are compared with."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sparselens.kernels.call import AttentionCall


def head_tensors(call: AttentionCall, head: int) -> tuple[Tensor, Tensor]:
    """One head's queries and keys `[n, d]`, float64."""
    return call.query[0, head].double(), call.key[0, head // call.group].double()


def mean_rows(tensor: Tensor, block: int) -> list[Tensor]:
    """The mean of each block of rows; the last block's over the rows it has."""
    means = []
    for start in range(0, len(tensor), block):
        total, rows = torch.zeros(tensor.shape[1], dtype=torch.float64), tensor[start : start + block]
        for row in rows:
            total += row
        means.append(total / len(rows))
    return means


def softmax(scores: list[float]) -> list[float]:
    """Softmax of a list; `-inf` gives 0."""
    top = max(scores)
    weights = [math.exp(score - top) for score in scores]
    return [weight / sum(weights) for weight in weights]


def order(values: list[float]) -> list[int]:
    """Places by value, descending, the earlier first among equals."""
    return sorted(range(len(values)), key=lambda place: (-values[place], place))


def spread(kept: set[tuple[int, int]], length: int, block_q: int, block_k: int | None = None) -> Tensor:
    """The token mask of kept (query block, key block) pairs, causal."""
    mask = torch.zeros(length, length, dtype=torch.bool)
    for q in range(length):
        for k in range(q + 1):
            mask[q, k] = (q // block_q, k // (block_k or block_q)) in kept
    return mask
