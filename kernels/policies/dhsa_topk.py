"""DHSA, selector `topk`: per block of queries the key blocks with the largest mean product, future ones included."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.parts.assemble import tiles_of
from sparselens.kernels.parts.block import Blocks, repeated
from sparselens.kernels.parts.budget import top_k
from sparselens.kernels.policy_type import Memory, Policy
from sparselens.kernels.selection import Selection


@dataclass(frozen=True)
class DHSATopK(Policy):
    """Keeps, per block of `block_q` queries, the `k` of all `n` key blocks with the largest mean product.

    `k = max(1, int(density * n))`, blocks of `block_k` keys, mean query times mean key. The ranking knows no
    causality: early rows spend their budget on blocks that they cannot read. The diagonal's blocks come on top.
    """

    density: float = 0.125
    block_q: int = 128
    block_k: int = 32
    phase: str = field(default="prefill", kw_only=True)

    name: ClassVar[str] = "dhsa_topk"
    budget: ClassVar[tuple[str, ...]] = ("density",)
    lookahead: ClassVar[bool] = True
    source: ClassVar[str] = "DHSA, arXiv:2510.24606; xiongsiheng/DHSA cc8e9c7, its latency script"
    short_input: ClassVar[str] = "none"
    card: ClassVar[str] = (
        "Prefill only, per query head. Four selectors of one release bear the name DHSA; the paper's own learned chunk "
        "boundaries are a fifth, not here. Rows of the first blocks keep little but their diagonal, which the "
        "authors do not force: a row could lose its own token. They pad with zero states to whole blocks, here the "
        "last blocks are as long as the text."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(0 < self.density <= 1, f"density lies in (0, 1], not {self.density}")
        self.require(self.block_q >= 1, f"block_q is 1 or more, not {self.block_q}")
        self.require(self.block_k >= 1, f"block_k is 1 or more, not {self.block_k}")

    def select(self, call: AttentionCall, memory: Memory) -> Selection:
        """Return the blocks of keys that each block of queries reads."""
        del memory
        return tiles_of(call, self.block_q, self.block_k, self.kept)

    def count(self, blocks: Blocks) -> int:
        """Return how many key blocks a row keeps."""
        return max(1, int(self.density * blocks.n_k))

    def kept(self, blocks: Blocks) -> Tensor:
        """Return the map of one sequence: bool `[heads, n_q, n_k]`."""
        future = torch.arange(blocks.n_k, device=blocks.call.device) > blocks.newest.long().argmax(
            -1, keepdim=True
        )
        chosen = top_k(mean_products(blocks), self.count(blocks), blocks.reach | future)
        return (chosen | blocks.diagonal) & blocks.reach


def mean_products(blocks: Blocks) -> Tensor:
    """Return mean queries times mean keys of all blocks, without scale or mask: `[heads, n_q, n_k]`."""
    call = blocks.call
    queries = blocks.pooled_queries(call.query[0].to(call.accumulate))
    keys = blocks.pooled_keys(call.key[0].to(call.accumulate))
    return queries @ repeated(keys, call.group).transpose(1, 2)


POLICY = DHSATopK
