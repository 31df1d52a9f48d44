"""Strips of whole key tiles, and the masks of tiles that are kept in part.

A *strip* is one tile of queries (of the heads that share a selection and a kv head, folded into one matrix)
against the key tiles it keeps. Strips of equal shape are computed together. Tiles that are kept whole need no
mask; a partial tile has a bias of 0 where kept and `DROPPED` elsewhere. Biases that depend only on the distance
between the tiles (causality, windows) are made once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby

import torch
from torch import Tensor

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.selection import Selection
from sparselens.kernels.tile_grid import BATCH_CELLS, DROPPED, NONE, Grid


@dataclass(frozen=True)
class Strip:
    """One query tile `row` of `heads` (they share kv head `kv`) against the key tiles `tiles`, ascending.

    `partial`: places in `tiles` that need a bias; `owner`: which selection of the biases says it.
    """

    owner: int
    heads: tuple[int, ...]
    kv: int
    row: int
    tiles: tuple[int, ...]
    partial: tuple[int, ...]


@dataclass(eq=False)
class Biases:
    """The biases of partial tiles, made when first asked for; those that many tiles share are kept."""

    grid: Grid
    owners: list[Selection]
    call: AttentionCall
    _shared: dict[object, Tensor] = field(default_factory=dict)
    _recent: tuple[tuple[int, int], Tensor] | None = None

    def of(self, strip: Strip, place: int) -> Tensor:
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


@dataclass(eq=False)
class TileBatch:
    """Strips with equally many heads and tiles; see `Batch`."""

    grid: Grid
    strips: list[Strip]
    biases: Biases

    @cached_property
    def heads(self) -> Tensor:
        """Heads of each strip."""
        return torch.tensor([strip.heads for strip in self.strips])

    @cached_property
    def queries(self) -> Tensor:
        """Queries of each strip."""
        rows = torch.tensor([strip.row for strip in self.strips])
        queries = rows[:, None] * self.grid.block + torch.arange(self.grid.high)
        return queries.where(queries < self.grid.q_len, NONE)

    @cached_property
    def keys(self) -> Tensor:
        """Keys of each strip; -1 behind the last key."""
        keys = (self._tiles[..., None] * self.grid.block + torch.arange(self.grid.block)).flatten(1)
        return keys.masked_fill_(keys >= self.grid.k_len, -1)

    @cached_property
    def _tiles(self) -> Tensor:
        return torch.tensor([strip.tiles for strip in self.strips])

    @property
    def cells(self) -> int:
        """How many scores are computed, padding included."""
        first = self.strips[0]
        return len(self.strips) * len(first.heads) * len(first.tiles) * self.grid.high * self.grid.block

    @property
    def k_rows(self) -> int:
        """Whole tiles of keys."""
        return self.grid.k_tiles * self.grid.block

    @property
    def _in_place(self) -> bool:
        first = self.strips[0]
        return len(self.strips) == 1 and first.tiles[-1] - first.tiles[0] == len(first.tiles) - 1

    @property
    def copied(self) -> int:
        """How many keys are copied: none where one strip keeps consecutive tiles."""
        return 0 if self._in_place else len(self.strips) * len(self.strips[0].tiles) * self.grid.block

    def pick(self, tensor: Tensor, buffer: Tensor) -> Tensor:
        """Return the key tiles of each strip, copied into `buffer` unless they lie side by side."""
        first, block, dim = self.strips[0], self.grid.block, tensor.shape[-1]
        if self._in_place:
            start = first.tiles[0] * block
            return tensor[first.kv : first.kv + 1, start : start + len(first.tiles) * block]
        kv = torch.tensor([strip.kv for strip in self.strips])
        tiles = (kv[:, None] * (tensor.shape[1] // block) + self._tiles).flatten()
        picked = buffer[: self.copied].view(len(tiles), block * dim)
        torch.index_select(tensor.view(-1, block * dim), 0, tiles, out=picked)
        return picked.view(len(self.strips), -1, dim)

    def add_bias(self, scores: Tensor) -> None:
        """Add the biases of partial tiles, and drop what is not kept or not allowed."""
        cells = scores.view(*scores.shape[:3], -1, self.grid.block)
        for unit, strip in enumerate(self.strips):
            for place in strip.partial:
                cells[unit, :, :, place].add_(self.biases.of(strip, place))


def tile_batches(selection: Selection, heads: tuple[int, ...], biases: Biases) -> list[TileBatch]:
    """Return the batches of a selection of `heads`; adds its parts to the owners of `biases`."""
    grid, strips = biases.grid, list[Strip]()
    for places, part in selection.head_groups(len(heads)):
        strips += _strips(tuple(heads[place] for place in places), part, biases)
        biases.owners.append(part)
    strips.sort(key=lambda strip: (_shape(strip), strip.row, strip.owner, strip.kv))
    batches: list[TileBatch] = []
    for (folded, tiles), same in groupby(strips, _shape):
        alike, size = list(same), max(1, BATCH_CELLS // (folded * tiles * grid.high * grid.block))
        batches += [TileBatch(grid, alike[at : at + size], biases) for at in range(0, len(alike), size)]
    return batches


def _shape(strip: Strip) -> tuple[int, int]:
    return len(strip.heads), len(strip.tiles)


def _strips(heads: tuple[int, ...], part: Selection, biases: Biases) -> Iterator[Strip]:
    grid, owner = biases.grid, len(biases.owners)
    some, full = (tiles[0, 0] for tiles in part.tiles(biases.call, grid.block))
    if grid.k_len % grid.block:
        full = full.clone()
        full[:, -1] = False
    folds = [(kv, tuple(same)) for kv, same in groupby(heads, lambda head: head // grid.group)]
    for row in range(grid.q_tiles):
        tiles = some[row].nonzero()[:, 0]
        partial = tuple((~full[row, tiles]).nonzero()[:, 0].tolist())
        names = tuple(tiles.tolist())
        if names:
            for kv, folded in folds:
                yield Strip(owner, folded, kv, row, names, partial)
