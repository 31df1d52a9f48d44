"""What single queries keep, of the keys that a strip has gathered, under selections that differ from row to row."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

from sparselens.kernels.selection import Band, KeyList, Selection, Stripes
from sparselens.kernels.tile_grid import Grid


class Cells:
    """Answers cell by cell for `Band`, `Stripes` and `KeyList`, any of several; see `Kept.cells`."""

    def __init__(self, parts: Sequence[Selection], grid: Grid) -> None:
        self.grid = grid
        self.bands = [part for part in parts if isinstance(part, Band)]
        self.lists = [part.index[0] for part in parts if isinstance(part, KeyList)]
        size = max(grid.q_start + grid.q_len, grid.k_start + grid.k_len) + grid.block
        stripes = [part for part in parts if isinstance(part, Stripes)]
        self.near = [marks(part.distances[0], size) for part in stripes]
        self.columns = [marks(part.columns[0], size) for part in stripes]

    def __call__(self, places: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
        """Return what is kept: bool `[strips, heads, high, n]`; a key of -1 may be."""
        kept = [self._listed(index, places, queries, keys) for index in self.lists]
        if self.bands or self.near:
            query = (queries + self.grid.q_start).int()[:, None, :, None]
            key = (keys.clamp(min=0) + self.grid.k_start).int()[:, None, None, :]
            gap = query - key
            kept += [(key < band.sink) | (gap < band.window) for band in self.bands]
            kept += [_looked_up(table, gap, places) for table in self.near]
            kept += [_looked_up(table, key, places) for table in self.columns]
        return reduce(torch.logical_or, kept).expand(*places.shape, *queries.shape[1:], *keys.shape[1:])

    def _listed(self, index: Tensor, places: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
        """Return which of `keys` each query lists: each listed key is looked up, not each cell."""
        strips, n, none = len(keys), keys.shape[1], self.grid.k_len
        column = torch.full((strips, none + 1), n)
        column.scatter_(1, keys.where(keys >= 0, none), torch.arange(n).expand_as(keys))
        column[:, none] = n
        rows = index[_own(places, index)[..., None], queries.clamp(max=self.grid.q_len - 1)[:, None]].long()
        rows = rows.where((rows >= 0) & (rows < none), none)
        found = column.gather(1, rows.flatten(1)).view(rows.shape)
        kept = torch.zeros(*rows.shape[:3], n + 1, dtype=torch.bool)
        return kept.scatter_(3, found, True)[..., :-1]


def _looked_up(table: Tensor, at: Tensor, places: Tensor) -> Tensor:
    """Return `table[place, at]` with `at` `[strips, 1, …]`; int32 indices are several times faster than int64."""
    line = (_own(places, table) * table.shape[1]).int()[..., None, None]
    found = line + at.clamp(0, table.shape[1] - 1)
    return table.flatten().index_select(0, found.flatten()).view(found.shape)


def marks(index: Tensor, size: int) -> Tensor:
    """Return bool `[heads, size]`, True at the given places; -1 and anything beyond are left out."""
    marked = torch.zeros(len(index), size + 1, dtype=torch.bool)
    return marked.scatter_(1, index.where((index >= 0) & (index < size), size), True)[:, :-1]


def _own(places: Tensor, of_heads: Tensor) -> Tensor:
    """Return `places` where there is a row for each head, zeros where one is for all."""
    return places if len(of_heads) > 1 else torch.zeros_like(places)
