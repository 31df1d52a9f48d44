"""What a selection keeps, as the maps that `tile_cover` covers with strips.

Selections whose rows are alike in units of 16 queries or more (`Stripes` with a tile, `Tiles`) give the map of the
whole call at once, a row per unit, and leave causality to positions: nothing of `q_len * k_len` is made. All
others are read a tile of queries at a time.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.selection import Bits, Groups, KeyList, Selection, Stripes, Tiles, Union
from sparselens.kernels.tile_cover import LOWEST, Kept
from sparselens.kernels.tile_grid import Grid


def unit_of(selection: Selection, grid: Grid) -> int:
    """Return how many consecutive queries are alike but for the model's mask; 0 when that is not known."""
    match selection:
        case Stripes() if selection.tile:
            size = selection.tile
        case Tiles():
            size = selection.block_q
        case _:
            return 0
    unit = next((high for high in (128, 64, 32, LOWEST) if size % high == 0 and high <= grid.block), 0)
    return unit if unit and grid.q_start % unit == 0 else 0


def by_units(selection: Selection, heads: tuple[int, ...], grid: Grid, unit: int) -> Kept:
    """Return the map of a selection that is alike in units, on a call whose indices and positions advance together."""
    query = torch.arange(0, grid.q_len, unit) + grid.q_start
    key = torch.arange(grid.k_len) + grid.k_start
    mask = (
        _stripes(selection, query, key) if isinstance(selection, Stripes) else _tiles(selection, query, key)
    )
    last = (query + unit - 1).clamp(max=grid.q_start + grid.q_len - 1)
    mask &= key <= last[:, None]
    if grid.window is not None:
        mask &= query[:, None] - key < grid.window
    return Kept(grid, heads, mask, unit, 0, positional=True)


def by_rows(
    selection: Selection, heads: tuple[int, ...], call: AttentionCall, grid: Grid, plain: bool
) -> Iterator[Kept]:
    """Yield what a selection keeps for one tile of queries after the other; `plain`: keys end at the query."""
    for start, stop in call.row_blocks(grid.block):
        limit = min(grid.k_len, stop + grid.q_start - grid.k_start) if plain else grid.k_len
        mask = _rows(selection, call, start, stop, limit)
        mask = mask & call.allowed.rows(start, stop, slice(0, limit))[0]
        yield Kept(grid, heads, mask, 1, start, positional=False)


def _stripes(stripes: Selection, query: Tensor, key: Tensor) -> Tensor:
    """Return what units keep that start at the positions `query`: bool `[heads, units, keys]`."""
    if not isinstance(stripes, Stripes) or stripes.tile is None:
        raise ValueError("only stripes with a tile are alike in units")
    tile, first = stripes.tile, int(key[0])
    heads = max(stripes.columns.shape[1], stripes.distances.shape[1])
    origin = query // tile * tile
    size = int(max(origin[-1], key[-1])) + tile
    near = _near(stripes.distances[0], tile, size).flip(1)  # at size - gap, of a gap from - size to size
    at = first - origin + size
    diagonal = near.unfold(1, len(key), 1)[:, at]
    column = torch.zeros(len(stripes.columns[0]), len(key) + 1, dtype=torch.bool)
    index = stripes.columns[0] - first
    column.scatter_(
        1, index.where((stripes.columns[0] >= 0) & (index >= 0) & (index < len(key)), len(key)), True
    )
    return (diagonal | column[:, None, :-1]).expand(heads, -1, -1)


def _near(distances: Tensor, tile: int, size: int) -> Tensor:
    """Return whether a distance lies in `gap … gap + tile - 1`, for gaps from -size to size: `[heads, 2 size + 1]`."""
    marks = torch.zeros(len(distances), 3 * size + 2, dtype=torch.int32)
    inside = (distances >= 0) & (distances < size)
    marks.scatter_(1, (distances + size + 1).where(inside, 3 * size + 1), 1)
    marks[:, -1] = 0
    before = marks.cumsum(1)
    return before[:, tile : tile + 2 * size + 1] > before[:, : 2 * size + 1]


def _tiles(tiles: Selection, query: Tensor, key: Tensor) -> Tensor:
    """Return what units keep that start at the positions `query`: bool `[heads, units, keys]`."""
    if not isinstance(tiles, Tiles):
        raise ValueError(f"a selection of kind {tiles.kind} is not alike in units")
    row, column = query // tiles.block_q - tiles.first, key // tiles.block_k
    inside = ((row >= 0) & (row < tiles.map.shape[2]))[:, None] & (column < tiles.map.shape[3])
    picked = tiles.map[0][:, row.clamp(0, tiles.map.shape[2] - 1)]
    return picked[:, :, column.clamp(max=tiles.map.shape[3] - 1)] & inside


def _rows(selection: Selection, call: AttentionCall, start: int, stop: int, limit: int) -> Tensor:
    """Return `selection.rows` for the keys before `limit`: bool `[heads or 1, rows, limit]`; same cells, sooner."""
    match selection:
        case Bits():
            packed = selection.packed[0, :, start:stop, : -(-limit // 8)].numpy()
            return torch.from_numpy(np.unpackbits(packed, axis=-1)).view(torch.bool)[..., :limit]
        case KeyList():
            index = selection.index[0, :, start:stop].long()
            kept = torch.zeros(*index.shape[:2], limit + 1, dtype=torch.bool)
            return kept.scatter_(-1, index.where((index >= 0) & (index < limit), limit), True)[..., :-1]
        case Union():
            kept = _rows(selection.parts[0], call, start, stop, limit)
            for part in selection.parts[1:]:
                kept = kept | _rows(part, call, start, stop, limit)
            return kept
        case Groups():
            return _groups(selection, start, stop, limit)
    return selection.rows(call, start, stop)[0, ..., :limit]


def _groups(groups: Groups, start: int, stop: int, limit: int) -> Tensor:
    """Return the rows of `groups`: one row of keys for each query group that occurs, copied to its queries."""
    heads = groups.told_apart(0)
    query = groups.query_group[0, :, start:stop].long().expand(heads, -1)
    key = groups.key_group[0, :, :limit].long().expand(heads, -1)
    table = torch.nn.functional.pad(groups.map[0].expand(heads, -1, -1), (0, 1), value=False)
    rows = []
    for head in range(heads):
        names, which = torch.unique(query[head], return_inverse=True)
        keys = table[head, names.clamp(min=0)] & (names >= 0)[:, None]
        rows.append(keys[:, key[head]][which])
    return torch.stack(rows)
