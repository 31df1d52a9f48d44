"""PBS-Attn: keys sorted by importance within segments, so that few blocks hold much, then blocks by mean scores."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.parts.block import Blocks, repeated
from sparselens.kernels.parts.budget import ranks, top_p
from sparselens.kernels.parts.grouping import Grouping, groups_of
from sparselens.kernels.parts.logit import logits
from sparselens.kernels.parts.odds import widened
from sparselens.kernels.policy_type import Memory, Policy
from sparselens.kernels.selection import Selection


@dataclass(frozen=True)
class PBSAttention(Policy):
    """Keeps, per block of queries, its own segment, the block with token 0 and the best blocks of sorted keys.

    A key's importance is the mean weight that the last `block` queries give it among the keys of all complete
    segments of `segment` tokens, without causality. In each complete segment keys are sorted by it, descending, and
    cut into blocks of `block`. Mean queries times mean keys, softmaxed over the blocks of earlier segments: kept up to
    and including the block that reaches the share `threshold`; 1 keeps all.
    """

    threshold: float = 0.9
    segment: int = 256
    block: int = 128
    phase: str = field(default="prefill", kw_only=True)

    name: ClassVar[str] = "pbs_attention"
    budget: ClassVar[tuple[str, ...]] = ("threshold",)
    lookahead: ClassVar[bool] = True
    source: ClassVar[str] = "PBS-Attn, arXiv:2510.21270; xinghaow99/pbs-attn 8ce8e02"
    short_input: ClassVar[str] = (
        "prompts up to one segment, 256 tokens, are dense: so they are here, by the own segment"
    )
    card: ClassVar[str] = (
        "Prefill only, per query head, keys sorted per query head. The importance is read from the end of the prompt. "
        "Masks are in the original order: a block's keys lie scattered over their segment. In the authors' code a row "
        "whose shares never sum up to the threshold (rounding) keeps no block; here it keeps all. They pad the last "
        "block of queries with zeros, which flattens its scores; here means are of real tokens."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(0 < self.threshold <= 1, f"threshold lies in (0, 1], not {self.threshold}")
        self.require(self.block >= 1, f"block is 1 or more, not {self.block}")
        self.require(
            self.segment >= self.block and not self.segment % self.block,
            f"segment is a multiple of block ({self.block}), not {self.segment}",
        )

    def wider(self, factor: float) -> Policy:
        """Return the policy with the odds of its threshold `factor` times as high."""
        return replace(self, threshold=widened(self.threshold, factor))

    def select(self, call: AttentionCall, memory: Memory) -> Selection:
        """Return the blocks of queries and those of sorted keys that they read."""
        del memory
        return groups_of(call, self._grouping)

    def _grouping(self, call: AttentionCall) -> Grouping:
        blocks, group = Blocks.of(call, self.block), self._places(call) // self.block
        own, earlier = self._segments(blocks, group)
        size = torch.zeros(call.heads, blocks.n_k, dtype=call.accumulate, device=call.device)
        size.scatter_add_(1, group, torch.ones_like(group, dtype=size.dtype))
        total = size.new_zeros(call.heads, blocks.n_k, call.head_dim)
        keys = repeated(call.key[0].to(call.accumulate), call.group)
        total.scatter_add_(1, group[..., None].expand(keys.shape), keys)
        queries = blocks.pooled_queries(call.query[0].to(call.accumulate))
        scores = queries @ (total / size.clamp(min=1)[..., None]).transpose(1, 2) * call.scale
        mass = scores.masked_fill(~earlier, float("-inf")).softmax(-1).nan_to_num(nan=0.0)
        kept = earlier if self.threshold == 1 else top_p(mass, self.threshold, "inclusive", earlier)
        start = group[:, call.key_positions[0] == 0]
        first = (torch.arange(blocks.n_k, device=call.device) == start[..., None]).any(1)
        return Grouping(blocks.query_block[None], group, kept | own | first[:, None])

    def _segments(self, blocks: Blocks, group: Tensor) -> tuple[Tensor, Tensor]:
        """Return which blocks of keys are of the query block's own segment, and which of an earlier one in reach.

        Bool `[n_q, n_k]` and `[heads, n_q, n_k]`; in reach is what the model's own window does not exclude.
        """
        call, many = blocks.call, self.segment // self.block
        query = torch.arange(blocks.first, blocks.first + blocks.n_q, device=call.device)[:, None]
        key = torch.arange(blocks.n_k, device=call.device)
        newest = torch.full((call.heads, blocks.n_k), -1, dtype=torch.int64, device=call.device)
        newest.scatter_reduce_(1, group, call.key_positions[0].expand(group.shape), "amax")
        earlier = (key // many < query // many) & (newest[:, None] >= 0)
        if call.allowed.window is not None:
            earlier &= query * self.block - newest[:, None] < call.allowed.window
        return key // many == query // many, earlier

    def _places(self, call: AttentionCall) -> Tensor:
        """Return the position of each key after sorting: int64 `[heads, k_len]`."""
        at = call.key_positions[0]
        first = -(-int(at[0]) // self.segment) * self.segment
        count = max(0, (int(at[-1]) + 1 - first) // self.segment)
        places = at.expand(call.heads, -1).clone()
        if count:
            inside = slice(first - int(at[0]), first - int(at[0]) + count * self.segment)
            keys = call.key[0, :, inside].to(call.accumulate)
            weights = logits(call, call.query[0, :, -self.block :].to(call.accumulate), keys).softmax(-1)
            order = ranks(weights.mean(1).view(call.heads, count, self.segment))
            starts = first + torch.arange(count, device=call.device)[:, None] * self.segment
            places[:, inside] = (starts + order).flatten(1)
        return places


POLICY = PBSAttention
