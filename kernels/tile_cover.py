"""Which strips cover what is kept at the least cost: how high they are, which heads they fold, which keys they take.

A strip of few queries needs few keys, but each key is copied for few scores. For every tile of queries the
cheapest of these is taken: strips of 16, 32, 64 or 128 queries with the keys that some row of theirs keeps, for
each head or for all heads of a kv head together, or one strip with all keys up to the last query.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from sparselens.kernels.tile_gather import KeyBatch
from sparselens.kernels.tile_kept import LOWEST, Kept, counted, packed

COPY = 20  # a key and its value take as long to copy as so many scores take to compute
CELLS = 1 << 19  # score cells computed together: fewer than for whole tiles, as keys are copied beside them
PADDING = 1 << 15  # score cells computed in vain cost as much as what each batch costs beside its cells
VIEW = 3  # the same where keys are not copied: what a key costs beside its scores


@dataclass(eq=False)
class _Folds:
    """Equally many heads of several kv heads: `heads` `[folds, size]`, their `places` in the mask.

    `places` `[folds, size]`, or `[folds, 1]` where the heads of a fold have one mask.
    """

    heads: Tensor
    places: Tensor

    def apart(self) -> _Folds:
        """Return each head as a fold of its own."""
        return _Folds(self.heads.view(-1, 1), self.places.view(-1, 1))


@dataclass(eq=False)
class _Level:
    """The keys of strips of one height: `keys` bool `[heads or folds, strips, keys]`, `counts` of them."""

    high: int
    keys: Tensor
    counts: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.counts = counted(self.keys)

    def cost(self, folded: int, tiles: int) -> Tensor:
        """Return what the strips of each tile of queries cost, in scores: `[heads or folds, tiles]`."""
        return self.counts.view(len(self.counts), tiles, -1).sum(-1) * (folded * self.high + COPY)


def cover(kept: Kept) -> list[KeyBatch]:
    """Return the batches that compute what is kept."""
    grid, count = kept.grid, kept.mask.shape[1]
    per_tile = max(1, _power(min(grid.block, count * kept.unit)) // kept.unit)
    kept = kept.filled(per_tile)
    own = _levels(kept.mask, kept.unit, per_tile)
    batches: list[KeyBatch] = []
    for folds in _folds(kept.heads, grid.group, kept.mask.shape[0] == 1):
        alone = kept.order is not None and kept.mask.shape[0] > 1
        batches += _Choice(kept, folds.apart() if alone else folds, own, per_tile).batches()
    return batches


def _power(number: int) -> int:
    """Return the least power of two that is not less; the number itself below `LOWEST`."""
    return number if number < LOWEST else 1 << (number - 1).bit_length()


def _levels(mask: Tensor, unit: int, per_tile: int) -> list[_Level]:
    """Return the union of units at each height, lowest strips first."""
    keys, high, levels = mask, unit, list[_Level]()
    lowest = min(max(LOWEST // unit, 1), per_tile)
    if lowest > 1:
        grouped = keys.view(keys.shape[0], -1, lowest, keys.shape[-1])
        keys, high = grouped.view(torch.uint8).amax(2).view(torch.bool), unit * lowest
    levels.append(_Level(high, keys))
    while high < unit * per_tile:
        keys, high = keys[:, 0::2] | keys[:, 1::2], high * 2
        levels.append(_Level(high, keys))
    return levels


@lru_cache(maxsize=64)
def _folds(heads: tuple[int, ...], group: int, shared: bool) -> list[_Folds]:
    """Return the heads that share a kv head, as many at once as there are folds of the same size."""
    found = [list(same) for _, same in groupby(enumerate(heads), lambda entry: entry[1] // group)]
    folds = []
    for size in sorted({len(same) for same in found}):
        alike = torch.tensor([same for same in found if len(same) == size])
        places = torch.zeros(len(alike), 1, dtype=torch.int64) if shared else alike[..., 0]
        folds.append(_Folds(alike[..., 1], places))
    return folds


@dataclass(eq=False)
class _Choice:
    """The cheapest strips of some folds."""

    kept: Kept
    folds: _Folds
    own: list[_Level]
    per_tile: int

    @property
    def _tiles(self) -> int:
        return self.kept.mask.shape[1] // self.per_tile

    def batches(self) -> Iterator[KeyBatch]:
        """Yield the batches; a tile of queries is covered in one way."""
        (count, size), places = self.folds.heads.shape, self.folds.places
        one_mask = places.shape[1] == 1
        whole = self._all_keys().expand(count, -1)
        together = self.own if one_mask else self._together(whole)
        owner = places[:, 0] if one_mask else torch.arange(count)
        costs = [whole, *(level.cost(size, self._tiles)[owner] for level in together)]
        if not one_mask:
            lowest = torch.stack([level.cost(1, self._tiles) for level in self.own]).min(0)
            costs.append(lowest.values[places].sum(1))
        best = torch.stack(costs).argmin(0)
        yield from self._whole((best == 0) & (costs[-1] > 0))
        for at, level in enumerate(together):
            yield from self._gathered(level, self.folds, owner, (best == at + 1).nonzero())
        if not one_mask:
            apart, chosen = self.folds.apart(), (best == len(together) + 1).repeat_interleave(size, 0)
            for at, level in enumerate(self.own):
                mine = chosen & (lowest.indices[apart.places[:, 0]] == at)
                yield from self._gathered(level, apart, apart.places[:, 0], mine.nonzero())

    def _together(self, whole: Tensor) -> list[_Level]:
        """Return the union over the heads of each fold, at each height where it may cost less than `whole`."""
        levels, places = [], self.folds.places
        for level in self.own:
            if bool((level.cost(places.shape[1], self._tiles)[places].amax(1) >= whole).all()):
                continue
            keys = level.keys[places[:, 0]]
            for place in range(1, places.shape[1]):
                keys |= level.keys[places[:, place]]
            levels.append(_Level(level.high, keys))
        return levels

    def _reach(self, tile: Tensor) -> tuple[Tensor, Tensor]:
        """Return the first and one behind the last key that the queries of a tile may see, in eights."""
        kept, grid = self.kept, self.kept.grid
        low, high = torch.zeros_like(tile), torch.full_like(tile, kept.mask.shape[-1])
        if kept.positional and kept.order is None:
            first = kept.first + tile * (kept.unit * self.per_tile) + (grid.q_start - grid.k_start)
            low = low if grid.window is None else (first - grid.window + 1).clamp(min=0)
            high = (first + kept.unit * self.per_tile).clamp(max=kept.mask.shape[-1])
        return low // 8 * 8, (high + 7) // 8 * 8

    def _all_keys(self) -> Tensor:
        low, high = self._reach(torch.arange(self._tiles))
        rows = self.folds.heads.shape[1] * self.kept.unit * self.per_tile
        return (high - low) * (rows + VIEW)

    def _whole(self, chosen: Tensor) -> Iterator[KeyBatch]:
        """Yield a strip with all keys that its queries may see, for each chosen fold and tile."""
        kept, high = self.kept, self.kept.unit * self.per_tile
        for fold, tile in chosen.nonzero():
            start, stop = (int(end) for end in self._reach(tile))
            keys, places = torch.arange(start, stop)[None], self.folds.places[fold][None]
            keys = keys.where(keys < kept.grid.k_len, -1)
            queries = kept.queries(places, tile[None], high)
            if kept.cells is None:
                units = slice(int(tile) * self.per_tile, (int(tile) + 1) * self.per_tile)
                bits: Tensor | None = packed(kept.mask[places[0], units, start:stop])[None]
            else:
                bits = kept.bits(places, tile[None], queries, keys)
            masked = self._masked(queries, keys) if kept.positional else None
            yield KeyBatch(kept.grid, self.folds.heads[fold][None], queries, keys, bits, masked, start)

    def _gathered(self, level: _Level, folds: _Folds, owner: Tensor, chosen: Tensor) -> Iterator[KeyBatch]:
        """Yield strips of one height for chosen `(fold, tile)`; `owner` is a fold's place in the level."""
        if not len(chosen):
            return
        per = level.counts.shape[1] // self._tiles
        fold = chosen[:, 0].repeat_interleave(per)
        strip = (chosen[:, 1:] * per + torch.arange(per)).flatten()
        counts = level.counts[owner[fold], strip]
        order = counts.argsort(descending=True, stable=True)[: int((counts > 0).sum())]
        fold, strip, counts = fold[order], strip[order], counts[order]
        at = 0
        while at < len(order):
            n = (int(counts[at]) + 7) // 8 * 8
            stop = _stop(counts, at, level.high * folds.heads.shape[1])
            some = fold[at:stop], strip[at:stop]
            keys = _listed(level.keys[owner[some[0]], some[1]], counts[at:stop], n)
            yield self._batch(level.high, folds.heads[some[0]], folds.places[some[0]], some[1], keys)
            at = stop

    def _batch(self, high: int, heads: Tensor, places: Tensor, strip: Tensor, keys: Tensor) -> KeyBatch:
        queries = self.kept.queries(places, strip, high)
        bits = self.kept.bits(places, strip, queries, keys)
        masked = self._masked(queries, keys) if self.kept.positional else None
        return KeyBatch(self.kept.grid, heads, queries, keys, bits, masked)

    def _masked(self, queries: Tensor, keys: Tensor) -> int:
        """Return the first column whose key some query may not see, or that is padding."""
        grid = self.kept.grid
        if grid.window is not None:
            return 0
        first = queries.amin(1, keepdim=True) + (grid.q_start - grid.k_start)
        return int(counted((keys >= 0) & (keys <= first)).min())


def _listed(keys: Tensor, counts: Tensor, n: int) -> Tensor:
    """Return the places of True in each row of `keys`, ascending, -1 padded: int64 `[rows, n]`."""
    first = torch.arange(len(keys))[:, None] * keys.shape[1]
    listed = (first - 1).repeat(1, n)
    listed[torch.arange(n) < counts[:, None]] = torch.from_numpy(np.flatnonzero(keys.numpy()))
    return listed.sub_(first)


def _stop(counts: Tensor, at: int, rows: int) -> int:
    """Return where a batch ends that starts at `at`: it is full, or its padding costs as much as another batch."""
    some = counts[at : at + max(1, CELLS // (int(counts[at]) * rows))]
    padding = (some[0] - some).cumsum(0) * rows
    return at + max(1, int((padding <= PADDING).sum()))
