"""What some queries of a call keep, as `tile_cover` wants it: a map of keys with a row per unit of queries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from sparselens.kernels.tile_grid import NONE, Grid

LOWEST = 16  # rows of the lowest strip: below that a copied key costs more than it saves


@dataclass(eq=False)
class Kept:
    """What some queries keep, in units of `unit` queries, consecutive ones from query `first` on unless ordered.

    `mask` bool `[heads or 1, units, keys]`: the keys that some query of a unit keeps, `keys` of them from key 0 on.
    `alike`: those that all queries of a unit keep, the mask itself unless said; `cells(places, queries, keys)`, with
    `places` `[strips, heads]` in the mask, `queries` `[strips, high]`, `keys` `[strips, n]`, says what single queries
    keep beside them: bool `[strips, heads, high, n]`. `positional`: whether the model's own mask comes on top, by
    position. `order` int64 `[heads or 1, units * unit]`: the queries, in units, `NONE` where there is none.
    """

    grid: Grid
    heads: tuple[int, ...]
    mask: Tensor
    unit: int
    first: int
    positional: bool
    alike: Tensor | None = None
    cells: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
    order: Tensor | None = None

    def filled(self, units: int) -> Kept:
        """Return the same with empty units added until their number is a multiple of `units`."""
        more = -self.mask.shape[1] % units
        if not more:
            return self
        mask, alike, order = self.mask, self.alike, self.order
        return replace(
            self,
            mask=pad(mask, (0, 0, 0, more), value=False),
            alike=alike if alike is None else pad(alike, (0, 0, 0, more), value=False),
            order=order if order is None else pad(order, (0, more * self.unit), value=NONE),
        )

    def queries(self, places: Tensor, strip: Tensor, high: int) -> Tensor:
        """Return the queries of strips that are `high` queries high: int64 `[strips, high]`."""
        at = strip[:, None] * high + torch.arange(high)
        if self.order is not None:
            return self.order[places[:, :1], at]
        queries = self.first + at
        return queries.where(queries < self.grid.q_len, NONE)

    def bits(self, places: Tensor, strip: Tensor, queries: Tensor, keys: Tensor) -> Tensor | None:
        """Return `KeyBatch.bits` of strips; None where all of `keys` are kept."""
        parts, high = queries.shape[1] // self.unit, queries.shape[1]
        if parts * places.shape[1] == 1 and self.positional and self.cells is None:
            return None
        held: Tensor | None = None
        alike = self.mask if self.alike is None and self.cells is None else self.alike
        if alike is not None:
            units = strip[:, None] * parts + torch.arange(parts)
            rows = alike[places[:, :, None], units[:, None]].view(torch.uint8)
            index = keys.clamp(min=0)[:, None, None].expand(-1, *rows.shape[1:3], -1)
            held = rows.gather(3, index).view(torch.bool)
        if self.cells is not None:
            single = self.cells(places, queries, keys)
            held = single if held is None else held.repeat_interleave(high // parts, 2) | single
        if held is None:
            raise ValueError("neither a unit nor its queries keep a key")
        if bool((keys < 0).any()):
            held = held & (keys >= 0)[:, None, None]
        return packed(held)


def counted(mask: Tensor) -> Tensor:
    """Return how many of the last axis are True: int64. Counting bits is 30 times as fast as `mask.sum(-1)`."""
    return torch.from_numpy(np.bitwise_count(np.packbits(mask.numpy(), axis=-1)).sum(-1, dtype=np.int64))


def packed(mask: Tensor) -> Tensor:
    """Return the bits of the last axis, big-endian: uint8 `[…, n / 8]`."""
    return torch.from_numpy(np.packbits(mask.numpy(), axis=-1))
