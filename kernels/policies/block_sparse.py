"""MInference's block-sparse pattern: the best key blocks of each query block by mean-pooled scores."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.parts.assemble import tiles_of
from sparselens.kernels.parts.block import Blocks, pooled_scores
from sparselens.kernels.parts.budget import top_k
from sparselens.kernels.parts.ground import grounded
from sparselens.kernels.policy_type import Memory, Policy
from sparselens.kernels.selection import Selection


@dataclass(frozen=True)
class BlockSparse(Policy):
    """Keeps, per query block of `block` rows, the `k` key blocks with the largest product of mean query and mean key.

    Neither the sink nor the diagonal block is forced.
    """

    k: int = 100
    block: int = 64
    phase: str = field(default="prefill", kw_only=True)

    name: ClassVar[str] = "block_sparse"
    budget: ClassVar[tuple[str, ...]] = ("k",)
    lookahead: ClassVar[bool] = True
    source: ClassVar[str] = "MInference, arXiv:2407.02490; microsoft/MInference fb56c91"
    short_input: ClassVar[str] = "none; dense up to k blocks (6,400 tokens)"
    card: ClassVar[str] = (
        "One of MInference's three templates, by itself. A block may drop its own diagonal: its rows then read earlier "
        "blocks alone, as in the authors' code. Only where a window of the model's own could leave a row without any "
        "key is the diagonal added. A row's keys depend on the mean of its block, later rows included. The mean of "
        "the last, partly filled block is over its tokens; the authors average zeros in, and add an empty block where "
        "the length is a multiple of 64. Per query head. In the authors' search blocks are 32 wide and an eighth of "
        "all is kept."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.k >= 1, f"k is 1 or more, not {self.k}")
        self.require(self.block >= 1, f"block is 1 or more, not {self.block}")

    def select(self, call: AttentionCall, memory: Memory) -> Selection:
        """Return the block map of each head."""
        del memory
        return tiles_of(call, self.block, self.block, self._choose)

    def _choose(self, blocks: Blocks) -> Tensor:
        """Return the kept blocks of one sequence: bool `[heads, n_q, n_k]`."""
        call = blocks.call
        queries = blocks.pooled_queries(call.query[0].to(call.accumulate))
        keys = blocks.pooled_keys(call.key[0].to(call.accumulate))
        return grounded(blocks, top_k(pooled_scores(blocks, queries, keys), self.k, blocks.reach))


POLICY = BlockSparse
