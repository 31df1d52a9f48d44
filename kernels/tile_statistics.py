"""The statistics of `kernels/statistics.py` from strips, while their weights are still in the cache.

What differs from the definition is only the order of summation: entropy from `sum of weight * score`,
distance from sums over tiles, the top keys in stages (the `n` largest lie in the `n` groups with the largest
maxima), column sums and pooled maps from sums over row pools.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.statistics import ROW_NAMES, Pools, Want
from sparselens.kernels.tile_attention import Softmax
from sparselens.kernels.tile_plan import Grid

WIDTH = 64  # rows this short are searched directly


@dataclass(eq=False)
class TileStatistics:
    """Collects the wanted statistics of one sequence, strip by strip; `finish` gives them in their shapes.

    Row statistics are kept as `[heads * q_tiles, high, …]`; `by_pool` `[heads, row pools, k_tiles, block]`
    holds column sums per pool of rows (one pool when no map is wanted).
    """

    want: Want
    grid: Grid
    pools: Pools
    rows: dict[str, Tensor]
    by_pool: Tensor | None
    gather: Tensor | None

    @staticmethod
    def of(call: AttentionCall, want: Want, grid: Grid, pools: Pools) -> TileStatistics:
        """Make the collectors of a call of one sequence; `want.gather` is that sequence's."""
        shape = (grid.heads * grid.q_tiles, grid.high)
        rows = {name: torch.zeros(shape) for name in want.names & ROW_NAMES}
        if "top" in want.names:
            rows["top_weight"] = torch.zeros(*shape, want.top)
            rows["top_index"] = torch.full((*shape, want.top), -1, dtype=torch.int32)
        gather = None
        if want.gather is not None:
            short = grid.q_tiles * grid.high - grid.q_len
            padded = torch.nn.functional.pad(want.gather[0].long(), (0, 0, 0, short), value=-1)
            gather = padded.reshape(*shape, -1)
            rows["gathered"] = torch.zeros(gather.shape)
        by_pool = None
        if want.names & {"received", "pooled"}:
            count = pools.size if "pooled" in want.names else 1
            by_pool = torch.zeros(grid.heads, count, grid.k_tiles, grid.block)
        del call
        return TileStatistics(want, grid, pools, rows, by_pool, gather)

    def add(self, soft: Softmax) -> None:
        """Add the weights of a batch. Overwrites its scores and normalises its weights in place."""
        names = self.want.names
        if "entropy" in names:
            log_total = soft.total.log2()
            spread = soft.scores.mul_(soft.weights).sum(-1, keepdim=True)
            share = soft.weights.sum(-1, keepdim=True)
            nats = (share * log_total - spread) * soft.scale * math.log(2)
            self._put("entropy", soft, nats)
        weights = soft.weights.mul_(soft.scale)
        queries = self._positions([strip.row for strip in soft.strips])
        if "sink_mass" in names:
            self._put("sink_mass", soft, self._at(soft, weights, _same(queries, -self.grid.k_start)))
        if "previous_mass" in names:
            self._put("previous_mass", soft, self._at(soft, weights, self._behind(queries, range(1, 2))))
        if "local_mass" in names:
            near = self._behind(queries, range(self.want.local))
            self._put("local_mass", soft, self._at(soft, weights, near).sum(-1))
        if "distance" in names:
            self._put("distance", soft, self._distance(soft, weights, queries))
        if "top" in names:
            self._top(soft, weights)
        if self.gather is not None:
            wanted = self.gather[soft.where].view(len(soft.strips), -1, self.gather.shape[-1])
            self._put("gathered", soft, self._at(soft, weights, wanted))
        if self.by_pool is not None:
            self._pool(soft, weights, self.by_pool)

    def finish(self, call: AttentionCall) -> dict[str, Tensor]:
        """Return the statistics in the shapes of `kernels/statistics.py`, for the one sequence."""
        grid = self.grid
        found: dict[str, Tensor] = {}
        for name, rows in self.rows.items():
            whole = rows.view(1, grid.heads, grid.q_tiles * grid.high, *rows.shape[2:])
            found[name] = whole[:, :, : grid.q_len]
        if self.by_pool is None:
            return found
        sums = self.by_pool.flatten(2)[..., : grid.k_len]
        if "received" in self.want.names:
            found["received"] = sums.sum(1)[None]
        if "pooled" in self.want.names:
            pool, size = self.pools.pool, self.pools.size
            after = pool * size - grid.k_start - grid.k_len
            cells = torch.nn.functional.pad(sums, (grid.k_start, after)).view(grid.heads, size, size, pool)
            count = (call.query_positions[0] // pool).bincount(minlength=size)
            found["pooled"] = (cells.sum(-1) / count.clamp(min=1)[:, None])[None]
        return found

    def _positions(self, rows: Iterable[int]) -> Tensor:
        """Return the positions of the queries of each strip, padding rows included: int64 `[units, high]`."""
        starts = torch.tensor([row * self.grid.block for row in rows]) + self.grid.q_start
        return starts[:, None] + torch.arange(self.grid.high)

    def _behind(self, queries: Tensor, distances: range) -> Tensor:
        """Return key indices at distances behind each query: `[units, high, n]`, -1 where there is none."""
        keys = queries[..., None] - self.grid.k_start - torch.tensor(distances)
        return keys.where((keys >= 0) & (keys < self.grid.k_len), -1)

    def _at(self, soft: Softmax, weights: Tensor, keys: Tensor) -> Tensor:
        """Return weights at key indices `[units, rows or high, n]` (-1 = none): `[units, rows, n]`."""
        units, rows, columns = weights.shape
        block = self.grid.block
        place = torch.full((units, self.grid.k_tiles + 1), -1)
        place.scatter_(1, soft.tiles, torch.arange(soft.tiles.shape[1]).expand_as(soft.tiles))
        tile = torch.div(keys, block, rounding_mode="floor").remainder(self.grid.k_tiles + 1)
        found = place.gather(1, tile.flatten(1)).view_as(keys)
        column = found * block + keys.remainder(block)
        there = (found >= 0) & (keys >= 0)
        index = column.where(there, 0)
        folded = rows // keys.shape[1]
        index = index[:, None].expand(-1, folded, -1, -1)
        picked = weights.view(units, folded, keys.shape[1], columns).gather(-1, index)
        return picked.mul_(there[:, None]).view(units, rows, -1)

    def _distance(self, soft: Softmax, weights: Tensor, queries: Tensor) -> Tensor:
        """Return `sum p (q - k)`, from tile sums and one product with the offsets inside a tile."""
        units, rows, _ = weights.shape
        block, tiles = self.grid.block, soft.tiles.shape[1]
        cells = weights.view(-1, block)
        sums = cells.sum(-1).view(units, -1, self.grid.high, tiles)
        inside = torch.mv(cells, torch.arange(block, dtype=torch.float32)).view_as(sums)
        first = soft.tiles * block + self.grid.k_start
        gap = (queries[:, :, None] - first[:, None, :]).float()
        return (sums * gap[:, None] - inside).sum(-1).view(units, rows, 1)

    def _top(self, soft: Softmax, weights: Tensor) -> None:
        units, rows, columns = weights.shape
        block = self.grid.block
        flat = weights.view(units * rows, columns)
        weight, column = largest(flat, min(self.want.top, columns))
        tile = soft.tiles[:, None].expand(-1, rows, -1).reshape(units * rows, -1).gather(1, column // block)
        index = (tile * block + column % block).int().masked_fill_(weight == 0, -1)
        short = (0, self.want.top - weight.shape[1])
        self._put("top_weight", soft, torch.nn.functional.pad(weight, short))
        self._put("top_index", soft, torch.nn.functional.pad(index, short, value=-1))

    def _pool(self, soft: Softmax, weights: Tensor, by_pool: Tensor) -> None:
        """Sum weights over the row pools of each strip and add them to `by_pool`."""
        grid, units = self.grid, len(soft.strips)
        folded, tiles = weights.shape[1] // grid.high, soft.tiles.shape[1]
        queries = self._positions([strip.row for strip in soft.strips])
        pool = queries // self.pools.pool if by_pool.shape[1] > 1 else torch.zeros_like(queries)
        low = pool[:, :1]
        count = int((pool[:, -1:] - low).max()) + 1
        real = queries < grid.q_start + grid.q_len
        sums = self._row_sums(weights.view(units, folded, grid.high, -1), pool - low, real, count)
        names = (low + torch.arange(count)).clamp(max=by_pool.shape[1] - 1)
        heads = torch.tensor([strip.heads for strip in soft.strips])
        line = heads[:, :, None] * by_pool.shape[1] + names[:, None]
        target = (line[..., None] * grid.k_tiles + soft.tiles[:, None, None]).flatten()
        by_pool.view(-1, grid.block).index_add_(
            0, target, sums.reshape(units * folded * count * tiles, grid.block)
        )

    def _row_sums(self, weights: Tensor, pool: Tensor, real: Tensor, count: int) -> Tensor:
        """Return `[units, folded, count, columns]`: weights summed over the rows of each pool."""
        units, folded, high, columns = weights.shape
        even = high // count
        aligned = high % count == 0 and bool((pool == torch.arange(high) // even).all()) and bool(real.all())
        if aligned:
            return weights.view(units, folded, count, even, columns).sum(3)
        belongs = ((pool[:, None] == torch.arange(count)[:, None]) & real[:, None]).float()
        return torch.matmul(belongs[:, None], weights)

    def _put(self, name: str, soft: Softmax, values: Tensor) -> None:
        rows = self.rows[name]
        rows.index_copy_(0, soft.where, values.reshape(len(soft.where), *rows.shape[1:]))


def _same(queries: Tensor, key: int) -> Tensor:
    return torch.full((*queries.shape, 1), max(key, -1))


def largest(values: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Return the `n` largest of each row of `values` `[rows, width]` and their places, descending.

    In stages: columns are dealt into groups; the `n` largest values lie in the `n` groups whose maxima are
    largest (with ties, some `n` values equal to them do), so only those are searched on.
    """
    width = values.shape[1]
    maxima = values
    while maxima.shape[1] > WIDTH and width > 2 * WIDTH:
        half = maxima.shape[1] // 2
        if maxima.shape[1] % 2 or half <= n:
            break
        maxima = torch.maximum(maxima[:, :half], maxima[:, half:])
    groups = maxima.shape[1]
    if groups == width:
        return _sorted_largest(values, n)
    best = _sorted_largest(maxima, n)[1]
    places = (best[:, None, :] + torch.arange(0, width, groups)[:, None]).flatten(1)
    weight, which = largest(values.gather(1, places), n)
    return weight, places.gather(1, which)


def _sorted_largest(values: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Return the `n` largest of each row and their places, descending, by sorting.

    The place travels in the bits that a float32 leaves free in a float64; numpy sorts short rows with vector
    instructions, several times faster than `topk` finds its heap.
    """
    width = values.shape[1]
    low = (1 << (width - 1).bit_length()) - 1
    keys = values.double()
    keys.view(torch.int64).bitwise_or_(torch.arange(width))
    keys.numpy().sort(axis=1)
    best = keys[:, -n:].flip(1)
    return best.float(), best.view(torch.int64).bitwise_and(low)
