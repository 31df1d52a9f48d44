"""Strips over single keys: the keys that some row of a strip keeps, gathered from wherever they lie."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from sparselens.kernels.tile_grid import DROPPED, Grid

BIAS_CELLS = 1 << 18  # biases made together: 1 MB


@dataclass(eq=False)
class KeyBatch:
    """Strips with equally many heads, queries and keys (filled up with -1); see `Batch`.

    `bits` uint8 `[units, folded or 1, parts, n / 8]`: which keys each of `parts` equal parts of a strip's queries
    keeps, big-endian; None where all are kept. `masked`: from this column on the model's own mask (causality,
    window) is added by position; None where `bits` say it all. `start`: the first key of the one strip whose
    keys are consecutive, -1 elsewhere.
    """

    grid: Grid
    heads: Tensor
    queries: Tensor
    keys: Tensor
    bits: Tensor | None
    masked: int | None
    start: int = -1

    @property
    def cells(self) -> int:
        """How many scores are computed, padding included."""
        return self.heads.numel() * self.queries.shape[1] * self.keys.shape[1]

    @property
    def k_rows(self) -> int:
        """As many keys as there are; consecutive ones may reach beyond the last."""
        return self.grid.k_len if self.start < 0 else max(self.grid.k_len, self.start + self.keys.shape[1])

    @property
    def copied(self) -> int:
        """How many keys are copied: none where they are consecutive."""
        return 0 if self.start >= 0 else self.keys.numel()

    def pick(self, tensor: Tensor, buffer: Tensor) -> Tensor:
        """Return the keys of each strip, copied into `buffer` unless they are consecutive."""
        kv = self.heads[:, :1] // self.grid.group
        if self.start >= 0:
            return tensor[kv[0], self.start : self.start + self.keys.shape[1]]
        rows = (kv * tensor.shape[1] + self.keys.clamp(min=0)).flatten()
        picked = buffer[: len(rows)]
        torch.index_select(tensor.flatten(0, 1), 0, rows, out=picked)
        return picked.view(*self.keys.shape, -1)

    def add_bias(self, scores: Tensor) -> None:
        """Add `DROPPED` to what is not kept or not allowed; `scores` `[units, folded, high, n]`."""
        if self.bits is not None:
            self._add_bits(scores, self.bits)
        if self.masked is not None and self.masked < self.keys.shape[1]:
            shift, keys = self.grid.q_start - self.grid.k_start, self.keys[:, self.masked :]
            key = keys.where(keys >= 0, 1 << 30).int()[:, None]
            query = (self.queries + shift).int()[..., None]
            dropped = key > query
            if self.grid.window is not None:
                dropped |= query - key >= self.grid.window
            scores[..., self.masked :].add_(dropped[:, None].float().mul_(DROPPED))

    def _add_bits(self, scores: Tensor, bits: Tensor) -> None:
        """Add the biases of the bits, so many strips at a time that the biases stay in a cache."""
        parts, eights = bits.shape[2:]
        lines = bits.view(-1, parts, eights)
        cells = scores.view(len(lines), -1, parts, scores.shape[2] // parts, scores.shape[3])
        step = max(1, BIAS_CELLS // (parts * eights * 8))
        for at in range(0, len(lines), step):
            some = lines[at : at + step]
            bias = _biases().index_select(0, some.flatten().int()).view(len(some), 1, parts, 1, -1)
            cells[at : at + step].add_(bias)


@cache
def _biases() -> Tensor:
    """Return the bias of eight keys for each byte: float32 `[256, 8]`, 0 where the bit is set."""
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)
    return torch.from_numpy(bits).float().sub_(1.0).mul_(-DROPPED)
