"""FlexPrefill: vertical-slash or blocks, told apart per head and input, with budgets that reach a coverage."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import ceil
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.parts.assemble import tiles_of
from sparselens.kernels.parts.block import Blocks, pooled_scores, repeated
from sparselens.kernels.parts.budget import counted, top_k, top_p
from sparselens.kernels.parts.odds import widened
from sparselens.kernels.parts.probe import by_distance, probed
from sparselens.kernels.policy_type import Memory, Policy
from sparselens.kernels.selection import Selection


@dataclass(frozen=True)
class FlexPrefill(Policy):
    """Keeps, per head, blocks of `block` that hold columns and diagonals covering `gamma` of the last rows' attention.

    The last `block` queries attend to all keys. Columns count until their mean weights exceed `gamma`, diagonals
    likewise; so many tokens ÷ `block` + 1 blocks of either are kept, at least `min_budget` tokens, at most
    `max_budget`. A head whose pooled estimate is nearer than `tau` (root of the Jensen-Shannon divergence, nats) to
    its column blocks is query-aware: both budgets fall to `min_budget`, and the blocks are added that hold `gamma` of
    the pooled attention of all rows together. Column block 0 and the main diagonal of blocks are always kept.
    """

    gamma: float = 0.9
    tau: float = 0.1
    min_budget: int = 1024
    max_budget: int | None = None
    block: int = 128
    phase: str = field(default="prefill", kw_only=True)

    name: ClassVar[str] = "flex_prefill"
    lookahead: ClassVar[bool] = True
    source: ClassVar[str] = "FlexPrefill, arXiv:2502.20766; ByteDance-Seed/FlexPrefill a24b27b"
    short_input: ClassVar[str] = "dense up to max(2 * block, min_budget rounded up to blocks) tokens"
    card: ClassVar[str] = (
        "Estimated from the last 128 queries: the selection knows the end of the prompt. Prefill only. gamma 0.9 and "
        "min_budget 1024 are the authors' scripts (0.95 for Llama-3.1 and GLM), 512 their README, none the function. "
        "gamma holds for columns and for diagonals apart, so their union covers more. Where a weight underflows to 0 "
        "the authors' divergence is NaN, which is not below tau: the head silently stays vertical-slash. Here 0 log 0 "
        "is 0. tau=0 switches query-aware heads off. The authors divide token counts by 128 whatever the block is; "
        "here by the block. Per query head."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(0 <= self.gamma <= 1, f"gamma lies in 0 … 1, not {self.gamma}")
        self.require(0 <= self.tau <= 1, f"tau lies in 0 … 1, not {self.tau}")
        self.require(self.min_budget >= 1, f"min_budget is 1 token or more, not {self.min_budget}")
        highest = self.max_budget
        self.require(
            highest is None or highest >= self.min_budget, f"max_budget is min_budget or more, not {highest}"
        )
        self.require(self.block >= 1, f"block is 1 or more, not {self.block}")

    def wider(self, factor: float) -> Policy:
        """Return the policy with the odds of `gamma`, `min_budget` and `max_budget` times `factor`."""
        low = max(1, round(self.min_budget * factor))
        high = None if self.max_budget is None else max(low, round(self.max_budget * factor))
        return replace(self, gamma=widened(self.gamma, factor), min_budget=low, max_budget=high)

    def select(self, call: AttentionCall, memory: Memory) -> Selection:
        """Return the block map of each head."""
        del memory
        return tiles_of(call, self.block, self.block, self._choose)

    def _choose(self, blocks: Blocks) -> Tensor:
        """Return the kept blocks of one sequence: bool `[heads, n_q, n_k]`."""
        call, block = blocks.call, self.block
        weights = probed(call, min(block, call.q_len))
        columns = weights.mean(1)
        # a diagonal is named by the key that the last query reads on it, and pooled with its neighbours by that key
        diagonals = by_distance(call, weights).flip(-1) / weights.shape[1]
        by_column = blocks.summed_keys(columns)
        by_diagonal = _summed(diagonals, block)
        aware = self._query_aware(blocks, by_column)
        n_columns, n_diagonals = (self._budget(mass, aware, blocks.n_k) for mass in (columns, diagonals))
        by_column[:, 0] = float("inf")
        by_diagonal[:, -1] = float("inf")
        kept_offsets = top_k(by_diagonal, n_diagonals).flip(-1)
        query = torch.arange(blocks.n_q, device=call.device)[:, None] + blocks.first
        offset = query - torch.arange(blocks.n_k, device=call.device)
        kept = top_k(by_column, n_columns)[:, None] | kept_offsets[:, offset.clamp(min=0)]
        return (kept | (aware[..., None] & self._blocks(blocks))) & blocks.reach

    def _budget(self, mass: Tensor, aware: Tensor, n_blocks: int) -> Tensor:
        """Return how many blocks of columns or diagonals each head keeps: int64 `[heads, 1]`."""
        low = ceil(self.min_budget / self.block)
        high = n_blocks if self.max_budget is None else min(n_blocks, ceil(self.max_budget / self.block))
        covering = counted(mass, self.gamma, "count_plus_one") // self.block + 1
        return covering.clamp(min=low).clamp(max=high).masked_fill(aware, low)

    def _query_aware(self, blocks: Blocks, by_column: Tensor) -> Tensor:
        """Return which heads are query-aware, `by_column` `[heads, n_k]` being the probe's attention: `[heads, 1]`."""
        call = blocks.call
        query = call.query[0, :, -self.block :].to(call.accumulate).mean(1, keepdim=True)
        keys = repeated(blocks.pooled_keys(call.key[0].to(call.accumulate)), call.group)
        scores = (query @ keys.transpose(1, 2))[:, 0] * call.scale
        pooled = torch.softmax(scores.masked_fill(~blocks.reach[-1], float("-inf")), -1)
        return _divergence(pooled, by_column).sqrt() < self.tau

    def _blocks(self, blocks: Blocks) -> Tensor:
        """Return the blocks that hold `gamma` of the pooled attention of all rows: bool `[heads, n_q, n_k]`."""
        call = blocks.call
        queries = blocks.pooled_queries(call.query[0].to(call.accumulate))
        keys = blocks.pooled_keys(call.key[0].to(call.accumulate))
        mass = torch.softmax(pooled_scores(blocks, queries, keys), -1)
        valid = blocks.reach.expand_as(mass)
        return top_p(mass.flatten(1), self.gamma, "exclusive", valid.flatten(1)).view_as(mass)


def _summed(values: Tensor, block: int) -> Tensor:
    """Return the sums of `block` neighbours of `[heads, n]`: `[heads, ceil(n / block)]`."""
    padded = pad(values, (0, -values.shape[1] % block))
    return padded.view(values.shape[0], -1, block).sum(-1)


def _divergence(p: Tensor, q: Tensor) -> Tensor:
    """Return the Jensen-Shannon divergence in nats of distributions over the last axis: float64 `[…, 1]`."""
    p, q = p.double(), q.double()
    mean = -torch.xlogy((p + q) / 2, (p + q) / 2).sum(-1, keepdim=True)
    own = -(torch.xlogy(p, p) + torch.xlogy(q, q)).sum(-1, keepdim=True) / 2
    return (mean - own).clamp(min=0)


POLICY = FlexPrefill
