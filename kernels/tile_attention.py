"""Attention over batches of strips: two matrix products and an in-place softmax, in base 2.

Scores are kept in units of log2, because `exp2` is several times cheaper than `exp` on the CPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.tile_plan import DROPPED, Plan, Strip

LOG2_E = math.log2(math.e)
EMPTY = DROPPED / 2  # a row whose largest score lies below this has no key


@dataclass(eq=False)
class Tensors:
    """A call of one sequence cut into tiles, float32, and the buffers its strips are computed in.

    `query` `[heads * q_tiles, high * head_dim]`, `key`, `value` `[kv_heads * k_tiles,
    block * head_dim]`; `output` `[heads * q_tiles, high * value_dim]`, `lse` `[heads * q_tiles, high]`;
    `scale` takes products of query and key to units of log2.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor
    lse: Tensor
    scores: Tensor
    weights: Tensor
    scale: float
    softcap: float | None
    sinks: Tensor | None

    @staticmethod
    def of(call: AttentionCall, plan: Plan, keep_scores: bool) -> Tensors:
        """Cut the tensors of a call; `keep_scores` gives scores and weights a buffer each."""
        grid = plan.grid
        q_pad, k_pad = grid.q_tiles * grid.high - grid.q_len, grid.k_tiles * grid.block - grid.k_len
        query = _padded(call.query, q_pad)
        key, value = _padded(call.key, k_pad), _padded(call.value, k_pad)
        cells = max((_cells(batch, plan) for batch in plan.batches), default=0)
        scores = torch.empty(cells)
        value_dim = call.value.shape[-1]
        return Tensors(
            query=query.reshape(grid.heads * grid.q_tiles, -1),
            key=key.reshape(grid.kv_heads * grid.k_tiles, -1),
            value=value.reshape(grid.kv_heads * grid.k_tiles, -1),
            output=torch.empty(grid.heads * grid.q_tiles, grid.high * value_dim),
            lse=torch.empty(grid.heads * grid.q_tiles, grid.high),
            scores=scores,
            weights=torch.empty(cells) if keep_scores else scores,
            scale=call.scale * LOG2_E,
            softcap=call.softcap,
            sinks=None if call.sinks is None else call.sinks.float() * LOG2_E,
        )


@dataclass(eq=False)
class Softmax:
    """A batch of strips after its softmax. `units` strips, `rows` = folded heads * high, `columns` keys each.

    `weights` `[units, rows, columns]` sum to `total` `[units, rows, 1]` with the sink; `scores` are log2 of
    the weights (the same buffer unless kept). `scale` `[units, rows, 1]` normalises weights; 0 in empty rows.
    `where` `[units * folded]` are the rows of `Tensors.output` that the batch fills, `tiles` `[units,
    tiles]`.
    """

    strips: list[Strip]
    scores: Tensor
    weights: Tensor
    total: Tensor
    scale: Tensor
    where: Tensor
    tiles: Tensor


def attend_batch(batch: list[Strip], plan: Plan, tensors: Tensors) -> Softmax:
    """Compute a batch of strips, write its output and lse into `tensors`, and return its weights."""
    grid, units, folded = plan.grid, len(batch), len(batch[0].heads)
    heads = torch.tensor([strip.heads for strip in batch])
    rows = torch.tensor([strip.row for strip in batch])
    tiles = torch.tensor([strip.tiles for strip in batch])
    where = (heads * grid.q_tiles + rows[:, None]).flatten()
    columns = tiles.shape[1] * grid.block
    query = tensors.query.index_select(0, where).mul_(tensors.scale).view(units, folded * grid.high, -1)
    key, value = (
        _pick(tensor, batch, tiles, plan).view(units, columns, -1) for tensor in (tensors.key, tensors.value)
    )
    shape = (units, folded * grid.high, columns)
    scores = tensors.scores[: math.prod(shape)].view(shape)
    weights = tensors.weights[: math.prod(shape)].view(shape)
    torch.bmm(query, key.transpose(1, 2), out=scores)
    if tensors.softcap is not None:
        bound = tensors.softcap * LOG2_E
        scores.div_(bound).tanh_().mul_(bound)
    _add_biases(scores, batch, plan)
    largest = scores.amax(-1, keepdim=True)
    empty = largest < EMPTY
    if tensors.sinks is not None:
        sink = tensors.sinks[heads].repeat_interleave(grid.high, 1)[..., None]
        largest = torch.maximum(largest, sink)
    torch.exp2(scores.sub_(largest), out=weights)
    total = weights.sum(-1, keepdim=True)
    if tensors.sinks is not None:
        total += torch.exp2(sink - largest)
    scale = total.reciprocal().masked_fill_(empty, 0.0)
    output = torch.bmm(weights, value).mul_(scale)
    tensors.output.index_copy_(0, where, output.view(units * folded, -1))
    lse = (largest + total.log2()).div_(LOG2_E).masked_fill_(empty, float("-inf"))
    tensors.lse.index_copy_(0, where, lse.view(units * folded, -1))
    return Softmax(batch, scores, weights, total, scale, where, tiles)


def clear_untouched(plan: Plan, tensors: Tensors) -> None:
    """Write what empty rows get, output 0 and lse `-inf`, where no strip of the plan writes."""
    grid = plan.grid
    untouched = torch.ones(grid.heads, grid.q_tiles, dtype=torch.bool)
    for strip in (strip for batch in plan.batches for strip in batch):
        untouched[list(strip.heads), strip.row] = False
    tensors.output[untouched.flatten()] = 0.0
    tensors.lse[untouched.flatten()] = float("-inf")


def _padded(tensor: Tensor, rows: int) -> Tensor:
    """Return the one sequence of `[1, heads, n, dim]` in float32, `rows` rows of zeros added."""
    one = tensor[0].float()
    return pad(one, (0, 0, 0, rows)) if rows else one


def _cells(batch: list[Strip], plan: Plan) -> int:
    strip = batch[0]
    return len(batch) * len(strip.heads) * len(strip.tiles) * plan.grid.high * plan.grid.block


def _pick(tensor: Tensor, batch: list[Strip], tiles: Tensor, plan: Plan) -> Tensor:
    """Return the key (or value) tiles of each strip; a view where one strip keeps consecutive tiles."""
    first = batch[0]
    start = first.kv * plan.grid.k_tiles + first.tiles[0]
    if len(batch) == 1 and first.tiles[-1] - first.tiles[0] == len(first.tiles) - 1:
        return tensor[start : start + len(first.tiles)]
    kv = torch.tensor([strip.kv for strip in batch])
    return tensor.index_select(0, (kv[:, None] * plan.grid.k_tiles + tiles).flatten())


def _add_biases(scores: Tensor, batch: list[Strip], plan: Plan) -> None:
    high, block = plan.grid.high, plan.grid.block
    cells = scores.view(len(batch), -1, high, len(batch[0].tiles), block)
    for unit, strip in enumerate(batch):
        for place in strip.partial:
            cells[unit, :, :, place].add_(plan.bias(strip, place))
