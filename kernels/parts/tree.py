"""HiP's tree search: the best key blocks of a past that is halved again and again, one look at each half."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparselens.kernels.parts.budget import top_k

REPRESENTATIVES = ("first", "middle")


@dataclass(frozen=True)
class Tree:
    """A search over positions `0 … end - 1` in blocks of `block`, for `k` of them.

    The first grid has at most `k` nodes of equal width. Each round doubles the width that the nodes resolve, up to
    `end`: every node splits in two, and the best stay, as many as are `k`'s share of the round's nodes, at least
    `least`. A node is judged by one block: that of its first position, or of its middle (`representative`); in the
    last round it is that block.
    """

    end: int
    block: int
    k: int
    least: int
    representative: str = "first"

    def found(self, tables: list[Tensor]) -> Tensor:
        """Return the blocks found: bool `[heads, ceil(end / block)]`.

        `tables`: the scores of all blocks `[heads, ceil(end / block)]` as the rounds read them, the last for all
        further ones.
        """
        total = -(-self.end // self.block)
        width = min(self.end, self.k * self.block)
        scores = tables[0]
        nodes = scores.new_ones(scores.shape[0], -(-width // self.block), dtype=torch.bool)
        turn = 0
        while width < self.end:
            width = min(2 * width, self.end)
            count = -(-width // self.block)
            children = nodes[:, self._parents(nodes.shape[1], count, scores.device)]
            kept = min(total, max(self.least, min(self.k, total) * count // total))
            nodes = top_k(
                tables[min(turn, len(tables) - 1)][:, self._blocks(count, scores.device)], kept, children
            )
            turn += 1
        return nodes

    def _parents(self, old: int, new: int, device: torch.device) -> Tensor:
        """Return the node of the last round that each of `new` nodes is a part of: int64 `[new]`."""
        starts = torch.arange(old, device=device) * new // old
        return torch.searchsorted(starts, torch.arange(new, device=device), right=True) - 1

    def _blocks(self, count: int, device: torch.device) -> Tensor:
        """Return the block that stands for each of `count` nodes: int64 `[count]`."""
        node = torch.arange(count, device=device)
        if count == -(-self.end // self.block):
            return node
        at = (
            node * self.end // count
            if self.representative == "first"
            else (2 * node + 1) * self.end // (2 * count)
        )
        return at // self.block


def extended(found: Tensor, times: int) -> Tensor:
    """Return the blocks found `[heads, n]` with `times - 1` right-hand neighbours for each, none counted twice.

    Where a neighbour is taken the next free block to the right is; beyond the end it is lost.
    """
    n = found.shape[1]
    at = torch.arange(n, device=found.device).where(found, n).sort(-1).values.repeat_interleave(times, 1)
    place = torch.arange(at.shape[1], device=found.device)
    shifted = ((at - place).cummax(-1).values + place).where(at < n, n).clamp(max=n)
    out = torch.zeros(found.shape[0], n + 1, dtype=torch.bool, device=found.device)
    return out.scatter_(1, shifted, True)[:, :n]
