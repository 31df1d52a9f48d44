"""DHSA, selector `vs`: blocks by the key columns and diagonals that the last block of queries attends to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sparselens.kernels.parts.block import Blocks
from sparselens.kernels.parts.budget import top_k
from sparselens.kernels.parts.middle import between, filled
from sparselens.kernels.parts.probe import by_distance, probed
from sparselens.kernels.policies.dhsa_topk import DHSATopK


@dataclass(frozen=True)
class DHSAVS(DHSATopK):
    """Keeps `k` key blocks a row: the first, the newest, the rest by columns and diagonals of the last queries.

    `k` as in `dhsa_topk`. Of `T = min(N, k * block_k)` lines, `int(T * ratio)` are the columns with the largest sums
    of weights of the last `block_q` queries, the others the distances with the largest sums. A block scores the sums
    of its chosen columns and of the chosen distances that touch it from any of the row's queries. Dense: rows that
    see no more than `k` blocks, the first `ceil(T / block_q)` blocks of queries, the last one. The diagonal's blocks
    come on top.
    """

    ratio: float = 0.5

    name: ClassVar[str] = "dhsa_vs"
    source: ClassVar[str] = "DHSA, arXiv:2510.24606; xiongsiheng/DHSA cc8e9c7, the default of its scripts"
    card: ClassVar[str] = (
        "Prefill only, per query head. Estimated from the end of the prompt. First and newest block count in the "
        "budget, the dense rows do not: on short texts they are most of what is kept. The authors do not force the "
        "whole diagonal; here it is kept. They probe the last padded block, here the last block_q tokens."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(0 <= self.ratio <= 1, f"ratio lies in [0, 1], not {self.ratio}")

    def kept(self, blocks: Blocks) -> Tensor:
        """Return the map of one sequence: bool `[heads, n_q, n_k]`."""
        forced = blocks.sink() | (blocks.newest & blocks.reach)
        return filled(blocks, self.scores(blocks), self.count(blocks), forced, self.dense(blocks))

    def lines(self, blocks: Blocks) -> int:
        """Return how many columns and diagonals are chosen together."""
        return min(int(blocks.call.key_positions[0, -1]) + 1, self.count(blocks) * self.block_k)

    def dense(self, blocks: Blocks) -> Tensor:
        """Return which blocks of queries keep everything: bool `[n_q]`."""
        row = torch.arange(blocks.n_q, device=blocks.call.device)
        return (row + blocks.first < -(-self.lines(blocks) // self.block_q)) | (row == blocks.n_q - 1)

    def scores(self, blocks: Blocks) -> Tensor:
        """Return what the chosen columns and diagonals give each block: float64 `[heads, n_q, n_k]`."""
        weights = probed(blocks.call, min(self.block_q, blocks.call.q_len))
        columns, diagonals = weights.sum(1), by_distance(blocks.call, weights)
        vertical = int(self.lines(blocks) * self.ratio)
        columns = columns * top_k(columns, vertical)
        diagonals = diagonals * top_k(diagonals, self.lines(blocks) - vertical)
        query = (torch.arange(blocks.n_q, device=weights.device)[:, None] + blocks.first) * self.block_q
        key = torch.arange(blocks.n_k, device=weights.device) * self.block_k
        touching = between(diagonals, query - key - self.block_k + 1, query + self.block_q - 1 - key)
        return blocks.summed_keys(columns.double())[:, None] + touching


POLICY = DHSAVS
