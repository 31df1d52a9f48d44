"""DHSA, selector `a`: first and newest key block, and between them those with the largest mean product."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sparselens.kernels.parts.block import Blocks
from sparselens.kernels.parts.middle import filled
from sparselens.kernels.policies.dhsa_topk import DHSATopK, mean_products


@dataclass(frozen=True)
class DHSAA(DHSATopK):
    """Keeps, per block of queries, `k` key blocks: the first, the newest, the rest by mean query times mean key.

    `k` as in `dhsa_topk`; here among the blocks that the queries can see. Rows that see no more than `k` blocks keep
    all of them. The diagonal's blocks come on top.
    """

    name: ClassVar[str] = "dhsa_a"
    source: ClassVar[str] = "DHSA, arXiv:2510.24606; xiongsiheng/DHSA cc8e9c7"
    card: ClassVar[str] = (
        "Prefill only, per query head. First and newest block count in the budget. With block_k below block_q the "
        "authors force only the last of the diagonal's blocks, so that early rows of a query block can lose their "
        "own token; here the whole diagonal is kept. They pad with zero states to whole blocks."
    )

    def kept(self, blocks: Blocks) -> Tensor:
        """Return the map of one sequence: bool `[heads, n_q, n_k]`."""
        forced = blocks.sink() | (blocks.newest & blocks.reach)
        return filled(blocks, mean_products(blocks), self.count(blocks), forced)


POLICY = DHSAA
