"""XAttention's estimate of a block's attention: sums along the antidiagonals of small tiles."""

from __future__ import annotations

import torch
from torch import Tensor

from sparselens.kernels.parts.block import Blocks, repeated


def antidiagonal_mass(blocks: Blocks, stride: int, norm: float = 1.0) -> Tensor:
    """Return the estimated attention that each query block pays to each key block: `[heads, n_q, n_k]`.

    A tile of `stride` queries by `stride` keys scores the sum of the dot products on its antidiagonal (first query
    with last key), as one dot product of the tile's queries in reverse order and its keys. Scores are multiplied by
    `scale / (stride * norm)`, softmax goes over the tiles that the model allows, and a block's mass is the sum over
    its tiles. Missing tokens of a tile are zeros. A row sums to the query tiles in it. `stride` divides both blocks.
    """
    call = blocks.call
    tiles = Blocks.of(call, stride)
    queries = _tiled(
        call.query[0].to(call.accumulate), call.query_positions[0], tiles.first, tiles.n_q, stride
    )
    keys = _tiled(call.key[0].to(call.accumulate), call.key_positions[0], 0, tiles.n_k, stride)
    scores = queries.flip(2).flatten(2) @ repeated(keys.flatten(2), call.group).transpose(1, 2)
    scores = scores * (call.scale / (stride * norm))
    weights = torch.softmax(scores.masked_fill(~tiles.reach, float("-inf")), -1)
    row = (
        torch.arange(tiles.n_q, device=call.device) + tiles.first
    ) * stride // blocks.block_q - blocks.first
    column = torch.arange(tiles.n_k, device=call.device) * stride // blocks.block_k
    by_row = weights.new_zeros(call.heads, blocks.n_q, tiles.n_k).index_add_(1, row, weights)
    return weights.new_zeros(call.heads, blocks.n_q, blocks.n_k).index_add_(2, column, by_row)


def _tiled(tensor: Tensor, positions: Tensor, first: int, count: int, stride: int) -> Tensor:
    """Return `[heads, n, d]` as `[heads, count, stride, d]` by position, zeros where no token is."""
    whole = tensor.new_zeros(tensor.shape[0], count * stride, tensor.shape[2])
    filled = whole.index_copy_(1, positions - first * stride, tensor)
    return filled.view(tensor.shape[0], count, stride, tensor.shape[2])
