"""Strips over single keys: the keys that some row of a strip keeps, gathered from wherever they lie."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from sparselens.kernels.tile_grid import DROPPED, Grid


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

    def pick(self, tensor: Tensor) -> Tensor:
        """Return the keys of each strip; a view where they are consecutive."""
        kv = self.heads[:, :1] // self.grid.group
        if self.start >= 0:
            return tensor[kv[0], self.start : self.start + self.keys.shape[1]]
        rows = kv * tensor.shape[1] + self.keys.clamp(min=0)
        return tensor.flatten(0, 1).index_select(0, rows.flatten()).view(*rows.shape, -1)

    def add_bias(self, scores: Tensor) -> None:
        """Add `DROPPED` to what is not kept or not allowed; `scores` `[units, folded, high, n]`."""
        if self.bits is not None:
            bias = _biases().index_select(0, self.bits.flatten().int()).view(*self.bits.shape[:3], -1)
            scores.view(*scores.shape[:2], bias.shape[2], -1, bias.shape[3]).add_(bias[:, :, :, None])
        if self.masked is not None and self.masked < self.keys.shape[1]:
            keys = self.keys[:, None, self.masked :]
            gap = self.queries[..., None] + (self.grid.q_start - self.grid.k_start) - keys
            dropped = (gap < 0) | (keys < 0)
            if self.grid.window is not None:
                dropped |= gap >= self.grid.window
            scores[..., self.masked :].add_(dropped[:, None].float().mul_(DROPPED))


@cache
def _biases() -> Tensor:
    """Return the bias of eight keys for each byte: float32 `[256, 8]`, 0 where the bit is set."""
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)
    return torch.from_numpy(bits).float().sub_(1.0).mul_(-DROPPED)
