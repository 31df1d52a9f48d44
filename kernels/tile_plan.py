"""What the blocked kernel will compute: strips of kept tiles, and the masks of tiles that are kept in part.

A *strip* is one tile of queries (of the heads that share a selection and a kv head, folded into one matrix)
against the key tiles it keeps. Strips of equal shape are computed together in *batches*. Tiles that are kept
whole need no mask; a partial tile has a bias of 0 where kept and `DROPPED` elsewhere. Biases that depend only
on the distance between the tiles (causality, windows) are made once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import groupby

import torch
from torch import Tensor

from sparselens.kernels.call import Allowed, AttentionCall
from sparselens.kernels.selection import Band, Everything, Selection

DROPPED = -1e30  # finite, so that 0 * DROPPED is 0 and not NaN
BATCH_CELLS = 1 << 20  # score cells computed together: 4 MB of float32, which stays in a last-level cache


@dataclass(frozen=True)
class Grid:
    """How a call of one sequence is cut: sizes in tokens, positions of the first query and key."""

    q_len: int
    k_len: int
    heads: int
    kv_heads: int
    block: int
    q_start: int
    k_start: int
    window: int | None

    @property
    def high(self) -> int:
        """Queries in a tile."""
        return min(self.block, self.q_len)

    @property
    def q_tiles(self) -> int:
        """Number of query tiles."""
        return -(-self.q_len // self.block)

    @property
    def k_tiles(self) -> int:
        """Number of key tiles."""
        return -(-self.k_len // self.block)

    @staticmethod
    def of(call: AttentionCall, block: int) -> Grid:
        """Return the grid of a call of one sequence whose positions are consecutive."""
        starts = int(call.query_positions[0, 0]), int(call.key_positions[0, 0])
        return Grid(call.q_len, call.k_len, call.heads, call.kv_heads, block, *starts, call.allowed.window)

    def call(self) -> AttentionCall:
        """Return a call of this grid without content: head_dim 0, enough to ask a selection for its mask."""
        query = torch.arange(self.q_start, self.q_start + self.q_len)
        key = torch.arange(self.k_start, self.k_start + self.k_len)
        return AttentionCall(
            query=torch.empty(1, self.heads, self.q_len, 0),
            key=torch.empty(1, self.kv_heads, self.k_len, 0),
            value=torch.empty(1, self.kv_heads, self.k_len, 0),
            query_positions=query[None],
            key_positions=key[None],
            allowed=Allowed(query, key, None, self.window),
            scale=1.0,
        )


@dataclass(frozen=True)
class Strip:
    """One query tile `row` of `heads` (they share kv head `kv`) against the key tiles `tiles`, ascending.

    `partial`: places in `tiles` that need a bias; `owner`: which selection of the plan says it.
    """

    owner: int
    heads: tuple[int, ...]
    kv: int
    row: int
    tiles: tuple[int, ...]
    partial: tuple[int, ...]


@dataclass(eq=False)
class Plan:
    """Strips of a call under a selection in batches of equal shape; biases of their partial tiles."""

    grid: Grid
    owners: list[Selection]
    batches: list[list[Strip]]
    call: AttentionCall
    _shared: dict[object, Tensor] = field(default_factory=dict)
    _recent: tuple[tuple[int, int], Tensor] | None = None

    def bias(self, strip: Strip, place: int) -> Tensor:
        """Return the bias of the tile at `place` of a strip: float32 `[high, block]`."""
        key = self._key(strip, place)
        if key is None:
            return self._own(strip)[strip.partial.index(place)]
        if key not in self._shared:
            self._shared[key] = self._evaluate(strip, (strip.tiles[place],))[0]
        return self._shared[key]

    def _key(self, strip: Strip, place: int) -> object:
        """Return what the bias of a tile depends on, or None when that is the tile itself."""
        tile = strip.tiles[place]
        block = self.grid.block
        first = self.grid.q_start + strip.row * block, self.grid.k_start + tile * block
        sharing = self.owners[strip.owner].tile_sharing(*first, block)
        if sharing is None or self.call.allowed.extra is not None:
            return None
        at_edge = strip.row == self.grid.q_tiles - 1, tile == self.grid.k_tiles - 1
        return (strip.owner, sharing, strip.row - tile, at_edge)

    def _own(self, strip: Strip) -> Tensor:
        """Return the biases of the strip's partial tiles `[n, high, block]`; remembers the last ones."""
        name = (strip.owner, strip.row)
        if self._recent is None or self._recent[0] != name:
            wanted = tuple(strip.tiles[place] for place in strip.partial)
            self._recent = name, self._evaluate(strip, wanted)
        return self._recent[1]

    def _evaluate(self, strip: Strip, tiles: tuple[int, ...]) -> Tensor:
        grid = self.grid
        queries = torch.arange(strip.row * grid.block, min((strip.row + 1) * grid.block, grid.q_len))
        columns = torch.tensor(tiles)[:, None] * grid.block + torch.arange(grid.block)
        inside = columns < grid.k_len
        keys = columns[inside]
        part = self.owners[strip.owner].sequence(0, queries, keys)
        kept = part.kept(self.call.sequence(0, queries, keys), 0, len(queries))[0, 0]
        bias = torch.full((grid.high, inside.numel()), DROPPED)
        bias[: len(queries), inside.flatten()] = torch.where(kept, 0.0, DROPPED)
        return bias.view(grid.high, len(tiles), grid.block).transpose(0, 1).contiguous()


def plan_for(selection: Selection, call: AttentionCall, block: int) -> Plan:
    """Return the plan of a call of one sequence; that of a formula on a plain mask is remembered."""
    grid = Grid.of(call, block)
    if isinstance(selection, (Everything, Band)) and _is_regular(call):
        return _formula_plan(selection, grid)
    return make_plan(selection, grid, call)


@lru_cache(maxsize=8)
def _formula_plan(selection: Everything | Band, grid: Grid) -> Plan:
    return make_plan(selection, grid, grid.call())


def _is_regular(call: AttentionCall) -> bool:
    """Tell whether indices and positions advance together, so that the grid says all about the mask."""
    mask = call.allowed
    steps = int(mask.key_index[-1] - mask.key_index[0]) == call.k_len - 1
    same = int(mask.query_index[0] - mask.key_index[0]) == int(
        call.query_positions[0, 0] - call.key_positions[0, 0]
    )
    return mask.extra is None and steps and same


def make_plan(selection: Selection, grid: Grid, call: AttentionCall) -> Plan:
    """Return the plan of a selection on a call of one sequence."""
    owners: list[Selection] = []
    strips: list[Strip] = []
    for heads, part in selection.head_groups(grid.heads):
        strips += _strips(len(owners), heads, part, grid, call)
        owners.append(part)
    strips.sort(key=lambda strip: (_shape(strip), strip.row, strip.owner, strip.kv))
    batches: list[list[Strip]] = []
    for (folded, tiles), same in groupby(strips, _shape):
        batches += _cut(list(same), max(1, BATCH_CELLS // (folded * tiles * grid.high * grid.block)))
    return Plan(grid, owners, batches, call)


def _shape(strip: Strip) -> tuple[int, int]:
    return len(strip.heads), len(strip.tiles)


def _cut(strips: list[Strip], size: int) -> list[list[Strip]]:
    return [strips[at : at + size] for at in range(0, len(strips), size)]


def _strips(
    owner: int, heads: tuple[int, ...], part: Selection, grid: Grid, call: AttentionCall
) -> Iterator[Strip]:
    some, full = (tiles[0, 0] for tiles in part.tiles(call, grid.block))
    if grid.k_len % grid.block:
        full = full.clone()
        full[:, -1] = False
    group = grid.heads // grid.kv_heads
    folds = [(kv, tuple(same)) for kv, same in groupby(heads, lambda head: head // group)]
    for row in range(grid.q_tiles):
        tiles = some[row].nonzero()[:, 0]
        partial = tuple((~full[row, tiles]).nonzero()[:, 0].tolist())
        names = tuple(tiles.tolist())
        if names:
            for kv, folded in folds:
                yield Strip(owner, folded, kv, row, names, partial)
