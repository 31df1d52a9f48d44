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
from sparselens.kernels.tile_grid import DROPPED, NONE, Batch
from sparselens.kernels.tile_plan import Plan

LOG2_E = math.log2(math.e)
EMPTY = DROPPED / 2  # a row whose largest score lies below this has no key


@dataclass(eq=False)
class Tensors:
    """A call of one sequence in float32, and the buffers its strips are computed in.

    `query` `[heads * q_len, head_dim]`, `key`, `value` `[kv_heads, k_rows, dim]`; `output`
    `[heads * q_len + 1, value_dim]` and `lse` `[heads * q_len + 1]`, whose last row takes what padding computes;
    `copies` hold the keys and values of a batch that copies them; `scale` takes products of query and key to
    units of log2.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor
    lse: Tensor
    copies: tuple[Tensor, Tensor]
    scores: Tensor
    weights: Tensor
    scale: float
    softcap: float | None
    sinks: Tensor | None

    @staticmethod
    def of(call: AttentionCall, plan: Plan, keep_scores: bool) -> Tensors:
        """Take the tensors of a call; `keep_scores` gives scores and weights a buffer each."""
        key, value = (_filled(tensor, plan.k_rows) for tensor in (call.key, call.value))
        scores = torch.empty(max((batch.cells for batch in plan.batches), default=0))
        copied = max((batch.copied for batch in plan.batches), default=0)
        rows = plan.grid.heads * plan.grid.q_len
        return Tensors(
            query=call.query[0].float().reshape(rows, -1),
            key=key,
            value=value,
            output=torch.empty(rows + 1, call.value.shape[-1]),
            lse=torch.full((rows + 1,), float("-inf")),
            copies=(torch.empty(copied, key.shape[-1]), torch.empty(copied, value.shape[-1])),
            scores=scores,
            weights=torch.empty(len(scores)) if keep_scores else scores,
            scale=call.scale * LOG2_E,
            softcap=call.softcap,
            sinks=None if call.sinks is None else call.sinks.float() * LOG2_E,
        )

    def finish(self) -> tuple[Tensor, Tensor]:
        """Return output and lse without the row of padding; rows that no strip touched are empty rows: zeros."""
        self.output[self.lse == float("-inf")] = 0.0
        return self.output[:-1], self.lse[:-1]


@dataclass(eq=False)
class Softmax:
    """A batch of strips after its softmax. `units` strips, `rows` = folded heads * high, `n` keys each.

    `weights` `[units, rows, n]` sum to `total` `[units, rows, 1]` with the sink; `scores` are log2 of the weights
    (the same buffer unless kept). `scale` `[units, rows, 1]` normalises weights; 0 in empty rows. `where`
    `[units * rows]` are the rows of `Tensors.output` that the batch fills.
    """

    batch: Batch
    scores: Tensor
    weights: Tensor
    total: Tensor
    scale: Tensor
    where: Tensor


def attend_batch(batch: Batch, plan: Plan, tensors: Tensors) -> Softmax:
    """Compute a batch of strips, write its output and lse into `tensors`, and return its weights."""
    heads, q_len = batch.heads, plan.grid.q_len
    (units, folded), high = heads.shape, batch.queries.shape[1]
    queries = batch.queries[:, None]
    read = (heads[..., None] * q_len + queries.clamp(max=q_len - 1)).flatten()
    beyond = (queries == NONE).expand(-1, folded, -1).flatten()
    where = read.masked_fill(beyond, plan.grid.heads * q_len)
    query = tensors.query.index_select(0, read).mul_(tensors.scale).view(units, folded * high, -1)
    key, value = (
        batch.pick(tensor, copy)
        for tensor, copy in zip((tensors.key, tensors.value), tensors.copies, strict=True)
    )
    shape = (units, folded * high, key.shape[1])
    scores = tensors.scores[: math.prod(shape)].view(shape)
    weights = tensors.weights[: math.prod(shape)].view(shape)
    torch.bmm(query, key.transpose(1, 2), out=scores)
    if tensors.softcap is not None:
        bound = tensors.softcap * LOG2_E
        scores.div_(bound).tanh_().mul_(bound)
    batch.add_bias(scores.view(units, folded, high, -1))
    largest = scores.amax(-1, keepdim=True)
    empty = largest < EMPTY
    if tensors.sinks is not None:
        sink = tensors.sinks[heads].repeat_interleave(high, 1)[..., None]
        largest = torch.maximum(largest, sink)
    torch.exp2(scores.sub_(largest), out=weights)
    total = weights.sum(-1, keepdim=True)
    if tensors.sinks is not None:
        total += torch.exp2(sink - largest)
    scale = total.reciprocal().masked_fill_(empty, 0.0)
    output = torch.bmm(weights, value).mul_(scale)
    tensors.output.index_copy_(0, where, output.view(len(where), -1))
    lse = (largest + total.log2()).div_(LOG2_E).masked_fill_(empty, float("-inf"))
    tensors.lse.index_copy_(0, where, lse.flatten())
    return Softmax(batch, scores, weights, total, scale, where)


def _filled(tensor: Tensor, rows: int) -> Tensor:
    """Return the one sequence of `[1, heads, n, dim]` in float32, filled up to `rows` rows with zeros."""
    one = tensor[0].float()
    return pad(one, (0, 0, 0, rows - one.shape[1])) if rows > one.shape[1] else one.contiguous()
