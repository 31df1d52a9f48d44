"""DHSA, selector `vsb`: as `vs`, from the mean scores of the last block of queries instead of its weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sparselens.kernels.parts.block import Blocks
from sparselens.kernels.parts.budget import top_k
from sparselens.kernels.parts.logit import logits
from sparselens.kernels.parts.middle import between, filled
from sparselens.kernels.policies.dhsa_vs import DHSAVS


@dataclass(frozen=True)
class DHSAVSB(DHSAVS):
    """Keeps `k` key blocks a row: the first, the diagonal's, the rest by columns and distances of whole blocks.

    `k` as in `dhsa_topk`. The mean of the last `block_q` queries times the mean keys gives one score a key block: the
    `int(k * ratio)` best are columns, the `k` less as many best are distances from the newest block, in blocks. A
    block scores what it has as a column, and the scores of the distances at which any of the row's own blocks sees
    it. Scores are logits and may be negative: a chosen block can rank below one that was not. Dense rows as `dhsa_vs`.
    """

    name: ClassVar[str] = "dhsa_vsb"
    source: ClassVar[str] = "DHSA, arXiv:2510.24606; xiongsiheng/DHSA cc8e9c7, its needle script"
    card: ClassVar[str] = (
        "Prefill only, per query head. Estimated from the end of the prompt. First block and diagonal count in the "
        "budget; the middle that is filled holds the diagonal's blocks too, but for the newest, as in the authors' "
        "code: a row may keep fewer than k. The dense rows do not count: on short texts they are most of what is kept."
    )

    def kept(self, blocks: Blocks) -> Tensor:
        """Return the map of one sequence: bool `[heads, n_q, n_k]`."""
        forced = blocks.sink() | (blocks.diagonal & blocks.reach)
        return filled(blocks, self.scores(blocks), self.count(blocks), forced, self.dense(blocks))

    def scores(self, blocks: Blocks) -> Tensor:
        """Return what the chosen block columns and distances give each block: float64 `[heads, n_q, n_k]`."""
        call, k = blocks.call, self.count(blocks)
        query = call.query[0, :, -self.block_q :].to(call.accumulate).mean(1, keepdim=True)
        last = logits(call, query, blocks.pooled_keys(call.key[0].to(call.accumulate)))[:, 0]
        columns, distances = (
            last * top_k(last, int(k * self.ratio)),
            last * top_k(last, k - int(k * self.ratio)),
        )
        start = (torch.arange(blocks.n_q, device=last.device) + blocks.first) * self.block_q // self.block_k
        key = torch.arange(blocks.n_k, device=last.device)
        newest = blocks.newest.long().argmax(-1, keepdim=True)
        touching = between(distances.flip(-1), start[:, None] - key, newest - key)
        return columns.double()[:, None] + touching


POLICY = DHSAVSB
