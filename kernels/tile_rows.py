"""What any selection keeps, read a tile of queries at a time, for `tile_cover`."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.selection import Bits, Groups, KeyList, Selection, Spliced, Union
from sparselens.kernels.tile_grid import Grid
from sparselens.kernels.tile_kept import Kept


def by_rows(
    selection: Selection, heads: tuple[int, ...], call: AttentionCall, grid: Grid, plain: bool, first: int = 0
) -> Iterator[Kept]:
    """Yield what a selection keeps for one tile of queries after the other, from `first` on.

    `plain`: no query sees a key behind it, by index.
    """
    for start in range(first, grid.q_len, grid.block):
        stop = min(start + grid.block, grid.q_len)
        limit = min(grid.k_len, stop + grid.q_start - grid.k_start) if plain else grid.k_len
        mask = _rows(selection, call, start, stop, limit)
        mask = mask & call.allowed.rows(start, stop, slice(0, limit))[0]
        yield Kept(grid, heads, mask, 1, start, positional=False)


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
        case Spliced() if start >= selection.split:
            return _rows(selection.after, call, start - selection.split, stop - selection.split, limit)
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
