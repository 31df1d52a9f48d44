"""What formulas and lists keep, as the maps that `tile_cover` covers with strips: a row per 16 queries or more.

`Stripes`, `Tiles`, `Band`, `Everything`, `KeyList`, `Groups` and unions of them (not of groups) give the map of the
whole call at once and leave causality to positions: nothing of `q_len * k_len` is made. `by_rows` (`tile_rows`) is
for all others.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from sparselens.kernels.selection import Band, Everything, Groups, KeyList, Selection, Stripes, Tiles, Union
from sparselens.kernels.tile_cells import Cells, marks
from sparselens.kernels.tile_grid import NONE, Grid
from sparselens.kernels.tile_kept import LOWEST, Kept, counted

DENSE = 0.25  # groups that keep more of the square than this gain little from being put side by side
HIGH = 64  # the unit where a selection would allow any


def by_units(selection: Selection, heads: tuple[int, ...], grid: Grid) -> Kept | None:
    """Return the map of a selection on a call whose indices and positions advance together.

    None where it has no formula, or its blocks do not begin where the call does.
    """
    if isinstance(selection, Groups):
        return by_groups(selection, heads, grid)
    parts = selection.parts if isinstance(selection, Union) else (selection,)
    unit = min(_unit(part, grid) for part in parts)
    if not unit or grid.q_start % unit or grid.q_len < LOWEST:
        return None
    query = torch.arange(0, grid.q_len, unit) + grid.q_start
    key = torch.arange(grid.k_len) + grid.k_start
    single = [part for part in parts if not _is_alike(part)]
    alike = [_touched(part, query, key, unit) for part in parts if _is_alike(part)]
    touched = _any([*alike, *(_touched(part, query, key, unit) for part in single)])
    last = (query + unit - 1).clamp(max=grid.q_start + grid.q_len - 1)
    touched &= key <= last[:, None]
    if grid.window is not None:
        touched &= query[:, None] - key < grid.window
    if not single:
        return Kept(grid, heads, touched, unit, 0, positional=True)
    whole = _any(alike).expand_as(touched) if alike else None
    return Kept(grid, heads, touched, unit, 0, True, whole, Cells(single, grid))


def by_groups(groups: Groups, heads: tuple[int, ...], grid: Grid) -> Kept | None:
    """Return the map of groups with the queries of a group side by side.

    None where that saves little, or there are so many groups that each has few queries.
    """
    if groups.map.shape[2] * LOWEST > grid.q_len:
        return None
    told, query = groups.told_apart(0), groups.query_group[0].long()
    order = pad_sequence([_ordered(row) for row in query], batch_first=True, padding_value=NONE)
    units = order.view(len(order), -1, LOWEST)
    name = pad(query, (0, 1), value=-1).gather(1, units[..., 0].clamp(max=grid.q_len)).expand(told, -1)
    last = units.where(units < NONE, -1).amax(-1) + (grid.q_start - grid.k_start)
    table = pad(groups.map[0], (0, 1), value=False).expand(told, -1, -1)
    keys = groups.key_group[0].long().expand(told, -1)
    rows = torch.stack([of_head[:, index] for of_head, index in zip(table, keys, strict=True)])
    mask = rows[torch.arange(told)[:, None], name.clamp(min=0)]
    mask = mask & (torch.arange(grid.k_len) <= last[..., None]) & (name >= 0)[..., None]
    if int(counted(mask).sum()) * LOWEST > DENSE * told * grid.q_len * grid.k_len:
        return None
    return Kept(grid, heads, mask, LOWEST, 0, positional=True, order=order.expand(told, -1))


def _ordered(group: Tensor) -> Tensor:
    """Return the queries by group, each group filled up with `NONE` to whole units; those of group -1 left out."""
    order = group.argsort(stable=True)[int((group < 0).sum()) :]
    name = group[order]
    counts = torch.bincount(name)
    filled = (counts + LOWEST - 1) // LOWEST * LOWEST
    behind = (filled.cumsum(0) - filled) - (counts.cumsum(0) - counts)
    ordered = torch.full((int(filled.sum()),), NONE)
    ordered[torch.arange(len(order)) + behind[name]] = order
    return ordered


def _unit(part: Selection, grid: Grid) -> int:
    """Return how many consecutive queries one row of the map may stand for; 0 where it may not."""
    match part:
        case Everything() | Band():
            size = HIGH
        case KeyList():
            size = LOWEST
        case Stripes():
            size = LOWEST if _is_exact(part) else part.tile or HIGH
        case Tiles():
            size = part.block_q
        case _:
            return 0
    return next((high for high in (128, 64, 32, LOWEST) if size % high == 0 and high <= grid.block), 0)


def _is_alike(part: Selection) -> bool:
    """Tell whether all queries of a unit keep the same, but for the model's own mask."""
    return not isinstance(part, (Band, KeyList)) and not (isinstance(part, Stripes) and _is_exact(part))


def _is_exact(stripes: Stripes) -> bool:
    """Tell whether there are diagonals one token wide."""
    return stripes.tile is None and bool((stripes.distances >= 0).any())


def _any(maps: list[Tensor]) -> Tensor:
    kept = maps[0]
    for other in maps[1:]:
        kept = kept | other
    return kept


def _touched(part: Selection, query: Tensor, key: Tensor, unit: int) -> Tensor:
    """Return the keys that some query of the units keeps that start at `query`: bool `[heads or 1, units, keys]`."""
    match part:
        case Band():
            return ((key < part.sink) | (query[:, None] - key < part.window))[None]
        case Stripes():
            return _stripes(part, query, key, unit)
        case Tiles():
            return _tiles(part, query, key)
        case KeyList():
            return _listed(part, len(query), len(key), unit)
    return torch.ones(1, len(query), len(key), dtype=torch.bool)


def _stripes(stripes: Stripes, query: Tensor, key: Tensor, unit: int) -> Tensor:
    reach, first = stripes.tile or unit, int(key[0])
    origin = query // reach * reach
    size = int(max(origin[-1], key[-1])) + reach
    near = _near(stripes.distances[0], reach, size).flip(1)
    diagonal = near.unfold(1, len(key), 1)[:, first - origin + size]
    columns = marks(stripes.columns[0], size)[:, first : first + len(key)]
    return diagonal | columns[:, None]


def _near(distances: Tensor, reach: int, size: int) -> Tensor:
    """Return whether a distance lies in `gap … gap + reach - 1`, for gaps from -size to size: `[heads, 2 size + 1]`."""
    near = pad(marks(distances, size), (size, size + 1)).int()
    before = pad(near.cumsum(1), (1, 0))
    return before[:, reach : reach + 2 * size + 1] > before[:, : 2 * size + 1]


def _tiles(tiles: Tiles, query: Tensor, key: Tensor) -> Tensor:
    row, column = query // tiles.block_q - tiles.first, key // tiles.block_k
    inside = ((row >= 0) & (row < tiles.map.shape[2]))[:, None] & (column < tiles.map.shape[3])
    picked = tiles.map[0][:, row.clamp(0, tiles.map.shape[2] - 1)]
    return picked[:, :, column.clamp(max=tiles.map.shape[3] - 1)] & inside


def _listed(keys: KeyList, units: int, k_len: int, unit: int) -> Tensor:
    """Return the keys that some query of each unit lists; `units` of `unit` queries."""
    index = pad(keys.index[0].long(), (0, 0, 0, units * unit - keys.index.shape[2]), value=-1)
    index = index.view(len(index), units, -1)
    touched = torch.zeros(len(index), units, k_len + 1, dtype=torch.bool)
    return touched.scatter_(2, index.where((index >= 0) & (index < k_len), k_len), True)[
        ..., :-1
    ].contiguous()
