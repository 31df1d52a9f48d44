"""What the blocked kernel will compute: batches of strips, chosen from what a selection is.

Bands, aligned maps of tiles and everything are computed in whole tiles (`tile_strip`). What is scattered, by columns,
diagonals, small tiles, groups or single keys, is computed in strips over gathered keys (`tile_gather`), as high and of
as many heads as costs least (`tile_cover`), from a map of what is kept (`tile_map`, or `tile_rows` for what has none).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import torch

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.selection import (
    Band,
    Bits,
    Everything,
    KeyList,
    Mixture,
    Selection,
    Spliced,
    Tiles,
)
from sparselens.kernels.tile_cover import cover
from sparselens.kernels.tile_gather import KeyBatch
from sparselens.kernels.tile_grid import Batch, Grid
from sparselens.kernels.tile_map import by_units
from sparselens.kernels.tile_rows import by_rows
from sparselens.kernels.tile_strip import Biases, tile_batches


@dataclass(eq=False)
class Plan:
    """The batches that compute a call of one sequence under a selection."""

    grid: Grid
    batches: list[Batch]

    @property
    def cells(self) -> int:
        """How many scores are computed, padding included; `heads * q_len * k_len` is the whole matrix."""
        return sum(batch.cells for batch in self.batches)

    @property
    def k_rows(self) -> int:
        """How long keys and values must be, filled up with zeros."""
        return max((batch.k_rows for batch in self.batches), default=self.grid.k_len)


def plan_for(selection: Selection, call: AttentionCall, block: int) -> Plan:
    """Return the plan of a call of one sequence; that of a formula on a plain mask is remembered."""
    grid = Grid.of(call, block)
    if isinstance(selection, (Everything, Band)) and _is_regular(call):
        return _formula_plan(selection, grid)
    return make_plan(selection, grid, call)


@lru_cache(maxsize=8)
def _formula_plan(selection: Everything | Band, grid: Grid) -> Plan:
    return make_plan(selection, grid, grid.call())


def make_plan(selection: Selection, grid: Grid, call: AttentionCall) -> Plan:
    """Return the plan of a selection on a call of one sequence."""
    return Plan(grid, _batches(selection, tuple(range(grid.heads)), grid, call))


def _batches(selection: Selection, heads: tuple[int, ...], grid: Grid, call: AttentionCall) -> list[Batch]:
    """Return the batches of a selection of `heads`."""
    biases, batches = Biases(grid, [], call), list[Batch]()
    for owned, part in _parts(selection, heads):
        if isinstance(part, Spliced) and isinstance(part.after, (Bits, KeyList)):
            batches += _spliced(part, owned, grid, call)
        elif _in_tiles(part, grid, call):
            batches += tile_batches(part, owned, biases)
        else:
            batches += _gathered(part, owned, grid, call)
    return batches


def _spliced(part: Spliced, heads: tuple[int, ...], grid: Grid, call: AttentionCall) -> list[Batch]:
    """Return the batches of the first queries by their own selection, then those of the others."""
    batches = list[Batch]()
    if part.split:
        shorter = call.sequence(0, torch.arange(part.split), torch.arange(call.k_len))
        batches += _batches(part.before, heads, replace(grid, q_len=part.split), shorter)
    for kept in by_rows(part, heads, call, grid, _is_regular(call), part.split):
        batches += cover(kept)
    return batches


def _gathered(part: Selection, heads: tuple[int, ...], grid: Grid, call: AttentionCall) -> list[KeyBatch]:
    regular = _is_regular(call)
    whole = by_units(part, heads, grid) if regular else None
    if whole is not None:
        return cover(whole)
    return [batch for kept in by_rows(part, heads, call, grid, regular) for batch in cover(kept)]


def _in_tiles(part: Selection, grid: Grid, call: AttentionCall) -> bool:
    """Tell whether whole tiles are the shape of a selection."""
    if isinstance(part, Tiles):
        aligned = part.block_q % grid.block == 0 and part.block_k % grid.block == 0
        return aligned and grid.q_start % grid.block == 0 and grid.k_start % grid.block == 0
    return isinstance(part, (Everything, Band))


def _parts(selection: Selection, heads: tuple[int, ...]) -> list[tuple[tuple[int, ...], Selection]]:
    """Return the parts of a mixture, each with its heads; any other selection is its only part."""
    if not isinstance(selection, Mixture):
        return [(heads, selection)]
    return [
        entry
        for owned, part in selection.parts
        for entry in _parts(part, tuple(heads[place] for place in owned))
    ]


def _is_regular(call: AttentionCall) -> bool:
    """Tell whether indices and positions advance together, so that the grid says all about the mask."""
    mask = call.allowed
    steps = int(mask.key_index[-1] - mask.key_index[0]) == call.k_len - 1
    same = int(mask.query_index[0] - mask.key_index[0]) == int(
        call.query_positions[0, 0] - call.key_positions[0, 0]
    )
    return mask.extra is None and steps and same
