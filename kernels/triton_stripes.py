"""Stripes for the Triton kernel: tiles that a diagonal touches, and columns as lists of keys outside of them.

A column then costs one key a query tile, not a tile (as in MInference's vertical-slash kernel,
arXiv:2407.02490).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.selection import Stripes, TileMap
from sparselens.kernels.triton_form import Form, Marks, Spans, pack_words, spans

MARGIN = 128  # bits before and after the marks of near diagonals, so that no word of a tile lies outside


def stripes_form(selection: Stripes, call: AttentionCall, tile: int, allowed: TileMap) -> Form | None:
    """Return the form of stripes: tiles of the diagonals alone, marks of both, columns as key indices.

    None where positions do not count on with the places of the keys (padding in the middle).
    """
    shift = key_shift(call)
    if shift is None:
        return None
    reach = selection.tile or 1
    size = int(torch.maximum(call.query_positions.max(), call.key_positions.max())) + 1
    before = pad(_marks(selection.distances, size + reach).int().cumsum(-1), (1, 0))
    gaps = torch.arange(-size, size, device=call.device)  # of a block's first query to a key
    near = _between(before, gaps, gaps + reach)
    columns, places = _alike(_marks(selection.columns, size), near.flip(-1))
    # bit `key - query + size` after flipping is one place early: gap 0 stands at size - 1
    words = pack_words(pad(places, (MARGIN + 1, MARGIN + 64), value=False))
    query, key = spans(call, tile)
    tiles = _diagonal_tiles(before, near, query, key, reach, size)
    both = TileMap(allowed.some & tiles.some, allowed.full & tiles.full)
    marks = Marks(columns.to(torch.uint8), words, shift, reach)
    return Form(both, marks=marks, columns=_columns(selection.columns, call))


def key_shift(call: AttentionCall) -> Tensor | None:
    """Return key position - place in the tensor, int32 `[batch]`; None where keys do not share one."""
    shift = (call.key_positions - torch.arange(call.k_len, device=call.device)).expand(call.batch, -1)
    valid = call.allowed.key_valid
    low = shift if valid is None else shift.where(valid, 1 << 40)
    high = shift if valid is None else shift.where(valid, -(1 << 40))
    first, last = low.amin(-1), high.amax(-1)
    return None if bool((first < last).any()) else last.clamp(min=-call.k_len).int()


def _diagonal_tiles(before: Tensor, near: Tensor, query: Spans, key: Spans, reach: int, size: int) -> TileMap:
    """Return which tiles hold a cell of a diagonal, and which hold nothing else.

    A tile's cells have the gaps from `low` to `high` between the first query of a row's block and the key.
    """
    low = (query.low // reach * reach)[:, :, None] - key.high[:, None, :]
    high = (query.high // reach * reach)[:, :, None] - key.low[:, None, :]
    low, high = (gap.clamp(-size, size - 1).flatten(1) for gap in (low, high))
    some = _between(before, low, high + reach)
    held = pad(near.int().cumsum(-1), (1, 0))
    full = _taken(held, high + 1 + size) - _taken(held, low + size) == (high - low + 1)[:, None]
    shape = (*some.shape[:2], query.low.shape[1], key.low.shape[1])
    return TileMap(some.view(shape), full.view(shape))


def _between(before: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Tell whether a distance in `low … high - 1` is marked, from the counts of marks `before` each."""
    return _taken(before, high) > _taken(before, low)


def _taken(table: Tensor, place: Tensor) -> Tensor:
    """Return `table` `[batch or 1, heads, n]` at `place` `[batch or 1, m]` or `[m]`, ends repeated."""
    place = place.clamp(0, table.shape[-1] - 1)
    if place.dim() == 1:
        return table[..., place]
    batch = max(table.shape[0], place.shape[0])
    return table.expand(batch, -1, -1).gather(2, place[:, None].expand(batch, table.shape[1], -1))


def _columns(columns: Tensor, call: AttentionCall) -> Tensor:
    """Return columns as key indices, ascending and each once, -1 where there is none."""
    batch = max(columns.shape[0], call.key_positions.shape[0])
    sorted_columns = columns.sort(-1).values.expand(batch, -1, -1)
    again = pad(sorted_columns.diff(dim=-1) == 0, (1, 0), value=False)
    positions = call.key_positions.expand(batch, -1)
    size = int(positions.max()) + 2
    place = torch.full((batch, size), -1, dtype=torch.int64, device=call.device)
    index = torch.arange(call.k_len, device=call.device).expand(batch, -1)
    place.scatter_(1, positions.where(positions >= 0, size - 1), index)
    place[:, -1] = -1  # padding was written there
    known = (sorted_columns >= 0) & (sorted_columns < size - 1) & ~again
    wanted = sorted_columns.where(known, size - 1)
    return place[:, None].expand(-1, columns.shape[1], -1).gather(2, wanted)


def _marks(index: Tensor, size: int) -> Tensor:
    """Bool `[batch, heads, size]`, True at the given indices; what is outside is left out."""
    marks = torch.zeros(*index.shape[:2], size + 1, dtype=torch.bool, device=index.device)
    return marks.scatter_(-1, index.where((index >= 0) & (index < size), size), True)[..., :-1]


def _alike(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Expand two `[batch or 1, heads or 1, …]` tensors to the same batch and heads."""
    batch, heads = (max(first.shape[axis], second.shape[axis]) for axis in (0, 1))
    return first.expand(batch, heads, -1), second.expand(batch, heads, -1)
