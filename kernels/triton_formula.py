"""Selections as the Triton kernel reads them: formulas where it knows one, else bits.

`Everything`, `Band`, whole tiles, `Stripes` and unions of them are evaluated in the kernel from positions; their
maps come from the first and last positions of each tile. Any other selection gives its map by `tiles`, and
packed bits of its partial tiles by `kept`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.selection import Band, Everything, Mixture, Selection, Stripes, TileMap, Tiles, Union
from sparselens.kernels.triton_form import Form, allowed_tiles, spans
from sparselens.kernels.triton_stripes import stripes_form


def forms(selection: Selection, call: AttentionCall, tile: int) -> Iterator[tuple[tuple[int, ...], Form]]:
    """Yield heads and the form of what they keep; every head once."""
    for heads, part in _parts(selection, tuple(range(call.heads))):
        yield heads, form(part, call, tile)


def _parts(selection: Selection, heads: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], Selection]]:
    """Yield the parts of mixtures, and of mixtures in them."""
    if not isinstance(selection, Mixture):
        yield heads, selection
        return
    for owned, part in selection.parts:
        yield from _parts(part, tuple(heads[head] for head in owned))


def tile_for(selection: Selection) -> int:
    """Return the tile that wastes least: 64 where a map of tiles is finer than 128, else 128."""
    match selection:
        case Mixture():
            return min(tile_for(part) for _, part in selection.parts)
        case Union():
            return min(tile_for(part) for part in selection.parts)
        case Tiles():
            return 64 if min(selection.block_q, selection.block_k) < 128 else 128
    return 128


def form(selection: Selection, call: AttentionCall, tile: int) -> Form:
    """Return the form of a selection: its formula where the kernel knows one, else bits."""
    if call.allowed.extra is None:
        allowed = allowed_tiles(call, tile)
        known = _formula(selection, call, tile, allowed)
        if known is not None:
            return known
    some, full = selection.tiles(call, tile)
    if call.k_len % tile:
        full = full.clone()
        full[..., -1] = False
    return Form(TileMap(some, full & some), selection=selection)


def _formula(selection: Selection, call: AttentionCall, tile: int, allowed: TileMap) -> Form | None:
    match selection:
        case Everything():
            return Form(allowed, keeps_tiles=True)
        case Band():
            return _band(selection, call, tile, allowed)
        case Tiles() if _is_aligned(selection, call, tile):
            return _whole_tiles(selection, call, tile, allowed)
        case Stripes():
            return stripes_form(selection, call, tile, allowed)
        case Union():
            known = [_formula(part, call, tile, allowed) for part in selection.parts]
            return _union([part for part in known if part is not None], len(known))
    return None


def _band(selection: Band, call: AttentionCall, tile: int, allowed: TileMap) -> Form:
    query, key = ((span.low[:, None, :, None], span.high[:, None, :, None]) for span in spans(call, tile))
    k_low, k_high = (end.transpose(-1, -2) for end in key)
    behind = torch.clamp(k_low, min=selection.sink)  # the first key that the window must reach
    some = (k_low < selection.sink) | (query[0] - k_high < selection.window)
    full = (k_high < selection.sink) | (query[1] - behind < selection.window)
    return Form(TileMap(allowed.some & some, allowed.full & full), selection.sink, selection.window)


def _is_aligned(selection: Tiles, call: AttentionCall, tile: int) -> bool:
    """Tell whether every tile of the kernel lies in one cell of the map."""
    if call.allowed.key_valid is not None or call.allowed.query_valid is not None:
        return False
    if selection.block_q % tile or selection.block_k % tile:
        return False
    starts = torch.stack([call.query_positions[:, 0] % tile, call.key_positions[:, 0] % tile])
    steps = torch.stack(
        [positions.diff().ne(1).any() for positions in (call.query_positions, call.key_positions)]
    )
    return not bool(starts.any() | steps.any())


def _whole_tiles(selection: Tiles, call: AttentionCall, tile: int, allowed: TileMap) -> Form:
    row = call.query_positions[0, ::tile] // selection.block_q - selection.first
    column = call.key_positions[0, ::tile] // selection.block_k
    n_rows, n_columns = selection.map.shape[-2:]
    inside = ((row >= 0) & (row < n_rows))[:, None] & ((column >= 0) & (column < n_columns))[None, :]
    cells = selection.map[..., row.clamp(0, n_rows - 1), :][..., column.clamp(0, n_columns - 1)] & inside
    return Form(TileMap(allowed.some & cells, allowed.full & cells), keeps_tiles=True)


def _union(known: list[Form], parts: int) -> Form | None:
    """Return the union of formulas; None where the kernel cannot evaluate them side by side."""
    if len(known) < parts or any(part.keeps_tiles for part in known):
        return None
    marked = [part for part in known if part.marks is not None]
    if len(marked) > 1:
        return None
    some, full = known[0].tiles
    for part in known[1:]:
        some, full = some | part.tiles.some, full | part.tiles.full
    sink, window = max(part.sink for part in known), max(part.window for part in known)
    base = marked[0] if marked else known[0]
    return replace(base, tiles=TileMap(some, full), sink=sink, window=window)
