"""SpargeAttention: pooled scores choose among blocks that resemble themselves; all others are kept."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.parts.assemble import tiles_of
from sparselens.kernels.parts.block import Blocks, pooled_scores, repeated
from sparselens.kernels.parts.budget import top_k, top_p
from sparselens.kernels.parts.ground import grounded
from sparselens.kernels.parts.odds import widened
from sparselens.kernels.policy_type import Memory, Policy
from sparselens.kernels.selection import Selection


@dataclass(frozen=True)
class SpargeAttention(Policy):
    """Keeps, per query block, the best key blocks by mean-pooled scores, and every block that a mean cannot stand for.

    The self-similarity of a block is the mean cosine of all pairs of its vectors, itself included (keys less the mean
    key of the sequence with `smooth_k`). Key blocks at or below `similarity` are left out of the scores and kept for
    all rows; query blocks at or below it keep every key. Of the others those are kept whose cumulative softmax stays
    within `cdf` (without the one that crosses it, at least one), or, where `topk` is given, that share of all key
    blocks. `sink` forces key block 0.
    """

    similarity: float = 0.6
    cdf: float = 0.98
    topk: float | None = None
    smooth_k: bool = True
    sink: bool = False
    block_q: int = 128
    block_k: int = 64
    phase: str = field(default="prefill", kw_only=True)

    name: ClassVar[str] = "sparge_attention"
    lookahead: ClassVar[bool] = True
    source: ClassVar[str] = "SpargeAttn, arXiv:2502.18137; thu-ml/SpargeAttn bfd980b"
    short_input: ClassVar[str] = "refused below 128 tokens by the authors' code"
    card: ClassVar[str] = (
        "The selection alone: the second stage (a tile's P V is skipped where its scores are negligible) and the "
        "8-bit products change the result, not the selection, and are not here. similarity 0.6 and cdf 0.98 are the "
        "plain call; the authors recommend topk=0.5,similarity=-0.1. topk counts all key blocks, the future ones too: "
        "early rows are dense. The diagonal is not forced; it is added only where a row would have no key, which the "
        "authors' code does not guard (a wider budget that has another block there drops it again). In their kernel "
        "the cosine of a partly filled last block is 0/0: it counts as dissimilar and is kept; here its tokens are "
        "compared. Their sage2 entry points ignore causality within a block. On Hopper blocks are 64 by 128. Per "
        "query head."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(-1 <= self.similarity <= 1, f"similarity lies in -1 … 1, not {self.similarity}")
        self.require(0 <= self.cdf <= 1, f"cdf lies in 0 … 1, not {self.cdf}")
        share = self.topk
        self.require(share is None or 0 <= share <= 1, f"topk lies in 0 … 1 or is none, not {share}")
        sizes = (self.block_q, self.block_k)
        self.require(min(sizes) >= 1, f"block_q and block_k are 1 or more, not {sizes[0]} and {sizes[1]}")

    def wider(self, factor: float) -> Policy:
        """Return the policy with `topk` times `factor`, where it is given, else with the odds of `cdf` so."""
        if self.topk is not None:
            return replace(self, topk=min(1.0, self.topk * factor))
        return replace(self, cdf=widened(self.cdf, factor))

    def select(self, call: AttentionCall, memory: Memory) -> Selection:
        """Return the block map of each head."""
        del memory
        return tiles_of(call, self.block_q, self.block_k, self._choose)

    def _choose(self, blocks: Blocks) -> Tensor:
        """Return the kept blocks of one sequence: bool `[heads, n_q, n_k]`."""
        call = blocks.call
        queries, keys = call.query[0].to(call.accumulate), call.key[0].to(call.accumulate)
        if self.smooth_k:
            keys = keys - keys.mean(1, keepdim=True)
        coarse_q = _resemblance(blocks.pooled_queries(normalize(queries, dim=-1))) > self.similarity
        coarse_k = _resemblance(blocks.pooled_keys(normalize(keys, dim=-1))) > self.similarity
        coarse_k = repeated(coarse_k, call.group)[:, None]
        scores = pooled_scores(blocks, blocks.pooled_queries(queries), blocks.pooled_keys(keys))
        kept = self._best(scores, blocks.reach & coarse_k) | ~coarse_k | ~coarse_q[..., None]
        if self.sink:
            kept = kept | blocks.sink()
        return grounded(blocks, kept & blocks.reach)

    def _best(self, scores: Tensor, valid: Tensor) -> Tensor:
        """Return the blocks kept for their scores, among the valid ones."""
        if self.topk is not None:
            return top_k(scores, max(1, int(self.topk * scores.shape[-1])), valid)
        mass = torch.softmax(scores.masked_fill(~valid, float("-inf")), -1).nan_to_num(nan=0.0)
        return top_p(mass, self.cdf, "exclusive", valid)


def _resemblance(mean: Tensor) -> Tensor:
    """Return the mean cosine of all pairs in a block, given the mean of its unit vectors `[…, d]`: `[…]`."""
    return mean.square().sum(-1)


POLICY = SpargeAttention
