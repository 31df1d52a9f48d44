"""HiP 1.2's staged search: chunks stand for one token found by halving, the best are cut into smaller chunks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparselens.kernels.parts.budget import top_k


@dataclass(frozen=True)
class Stages:
    """A search of positions `sink … stop - 1` in chunks of `chunks[0]`, then `chunks[1]`, and so on.

    In each stage every chunk that begins at or before `limit` is halved down to one position: the half whose middle
    position scores more goes on, the right one in a draw. The chunk's score is the largest that it met. After stage
    `i` the best `keeps[i]` positions' worth of chunks are cut into those of the next; after the last the best `wanted`
    positions' worth are found. With `together` a chunk's score is the largest of all heads.
    """

    sink: int
    stop: int
    limit: int
    chunks: tuple[int, ...]
    keeps: tuple[int, ...]
    wanted: int
    together: bool = True

    def found(self, tables: list[Tensor]) -> Tensor:
        """Return the chunks of the last size found: bool `[heads, ceil(n / size)]`, counted from position 0.

        `tables`: the scores of positions `0 … n - 1` in each stage, `[heads, n]`.
        """
        heads, n = tables[0].shape
        first = torch.arange(self.sink, max(self.stop, self.sink), self.chunks[0], device=tables[0].device)
        left, scores = self._halved(tables[0], first.expand(heads, -1), self.chunks[0])
        for chunk, smaller, keep, table in zip(
            self.chunks, self.chunks[1:], self.keeps, tables[1:], strict=False
        ):
            size = min(keep // chunk, left.shape[1])
            best = left[top_k(scores, size)].view(heads, size)
            start = ((best - self.sink) // chunk * chunk + self.sink).sort(-1).values
            pieces = torch.arange(0, chunk, smaller, device=left.device)
            left, scores = self._halved(table, (start[..., None] + pieces).flatten(1), smaller)
        chunk = self.chunks[-1]
        taken = top_k(scores, self.wanted // chunk) & (scores > float("-inf"))
        found = torch.zeros(heads, -(-n // chunk) + 1, dtype=torch.bool, device=left.device)
        found.scatter_(1, (left // chunk).where(taken, found.shape[1] - 1), True)
        return found[:, :-1]

    def _halved(self, table: Tensor, left: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
        """Return where chunks of `chunk` from `left` `[heads, n]` end up, and their scores: both `[heads, n]`."""
        right = (left + chunk).clamp(max=table.shape[1])
        best = torch.full(left.shape, float("-inf"), dtype=table.dtype, device=table.device)
        for _ in range(chunk.bit_length()):
            active = (left < right) & (left <= self.limit)
            middle = (left + right) // 2
            low, high = (_at(table, half // 2) for half in (left + middle, middle + right))
            best = torch.where(active, torch.maximum(best, torch.maximum(low, high)), best)
            lower = low > high
            left, right = (
                torch.where(active & ~lower, middle, left),
                torch.where(active & lower, middle, right),
            )
        if self.together:
            best = best.amax(0, keepdim=True).expand(left.shape)
        return left, best


def _at(table: Tensor, index: Tensor) -> Tensor:
    return table.gather(1, index.clamp(max=table.shape[1] - 1))
