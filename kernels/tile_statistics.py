"""The statistics of `kernels/statistics.py` from strips, while their weights are still in the cache.

What differs from the definition is only the order of summation: entropy from `sum of weight * score`, distance from
one product with the keys' distances to a strip's first query, the top keys in stages (the `n` largest lie in the
`n` groups with the largest maxima), column sums and pooled maps from sums over row pools. A column of a strip may
hold any key (`Batch.keys`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.statistics import ROW_NAMES, Pools, Want
from sparselens.kernels.tile_attention import Softmax
from sparselens.kernels.tile_grid import NONE, Grid

WIDTH = 64  # rows this short are searched directly


@dataclass(eq=False)
class TileStatistics:
    """Collects the wanted statistics of one sequence, batch by batch; `finish` gives them in their shapes.

    Row statistics are kept as `[heads * q_len + 1, …]`, the last row for padding; `by_pool` `[heads, row pools,
    k_len + 1]` holds column sums per pool of rows (one pool when no map is wanted), the last column for padding.
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
        shape = (grid.heads * grid.q_len + 1,)
        rows = {name: torch.zeros(shape) for name in want.names & ROW_NAMES}
        if "top" in want.names:
            rows["top_weight"] = torch.zeros(*shape, want.top)
            rows["top_index"] = torch.full((*shape, want.top), -1, dtype=torch.int32)
        gather = None
        if want.gather is not None:
            gather = torch.nn.functional.pad(want.gather[0].long().flatten(0, 1), (0, 0, 0, 1), value=-1)
            rows["gathered"] = torch.zeros(gather.shape)
        by_pool = None
        if want.names & {"received", "pooled"}:
            count = pools.size if "pooled" in want.names else 1
            by_pool = torch.zeros(grid.heads, count, grid.k_len + 1)
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
        queries = soft.batch.queries + self.grid.q_start
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
            wanted = self.gather[soft.where].view(*weights.shape[:2], -1)
            self._put("gathered", soft, self._at(soft, weights, wanted))
        if self.by_pool is not None:
            self._pool(soft, weights, self.by_pool)

    def finish(self, call: AttentionCall) -> dict[str, Tensor]:
        """Return the statistics in the shapes of `kernels/statistics.py`, for the one sequence."""
        grid = self.grid
        found: dict[str, Tensor] = {}
        for name, rows in self.rows.items():
            found[name] = rows[:-1].view(1, grid.heads, grid.q_len, *rows.shape[1:])
        if self.by_pool is None:
            return found
        sums = self.by_pool[..., :-1]
        if "received" in self.want.names:
            found["received"] = sums.sum(1)[None]
        if "pooled" in self.want.names:
            pool, size = self.pools.pool, self.pools.size
            after = pool * size - grid.k_start - grid.k_len
            cells = torch.nn.functional.pad(sums, (grid.k_start, after)).view(grid.heads, size, size, pool)
            count = (call.query_positions[0] // pool).bincount(minlength=size)
            found["pooled"] = (cells.sum(-1) / count.clamp(min=1)[:, None])[None]
        return found

    def _behind(self, queries: Tensor, distances: range) -> Tensor:
        """Return key indices at distances behind each query: `[units, high, n]`, -1 where there is none."""
        keys = queries[..., None] - self.grid.k_start - torch.tensor(distances)
        return keys.where((keys >= 0) & (keys < self.grid.k_len), -1)

    def _at(self, soft: Softmax, weights: Tensor, keys: Tensor) -> Tensor:
        """Return weights at key indices `[units, rows or high, n]` (-1 = none): `[units, rows, n]`."""
        units, rows, columns = weights.shape
        own, none = soft.batch.keys, self.grid.k_len
        place = torch.full((units, none + 1), -1)
        place.scatter_(1, own.where(own >= 0, none), torch.arange(columns).expand_as(own))
        place[:, none] = -1
        found = place.gather(1, keys.where(keys >= 0, none).flatten(1)).view_as(keys)
        folded = rows // keys.shape[1]
        index = found.clamp(min=0)[:, None].expand(-1, folded, -1, -1)
        picked = weights.view(units, folded, keys.shape[1], columns).gather(-1, index)
        return picked.mul_((found >= 0)[:, None]).view(units, rows, -1)

    def _distance(self, soft: Softmax, weights: Tensor, queries: Tensor) -> Tensor:
        """Return `sum p (q - k)`, from the distances of the keys to the first query of the strip."""
        units, rows, _ = weights.shape
        first = queries[:, :1]
        ahead = (first - self.grid.k_start - soft.batch.keys).float()
        sums = torch.bmm(weights, torch.stack([ahead, torch.ones_like(ahead)], -1))
        sums = sums.view(units, -1, queries.shape[1], 2)
        gap = (queries - first).float()
        return (sums[..., 0] + sums[..., 1] * gap[:, None]).view(units, rows, 1)

    def _top(self, soft: Softmax, weights: Tensor) -> None:
        units, rows, columns = weights.shape
        weight, column = largest(weights.view(units * rows, columns), min(self.want.top, columns))
        index = soft.batch.keys.gather(1, column.view(units, -1)).view_as(column)
        index = index.int().masked_fill_(weight == 0, -1)
        short = (0, self.want.top - weight.shape[1])
        self._put("top_weight", soft, torch.nn.functional.pad(weight, short))
        self._put("top_index", soft, torch.nn.functional.pad(index, short, value=-1))

    def _pool(self, soft: Softmax, weights: Tensor, by_pool: Tensor) -> None:
        """Sum weights over the row pools of each strip and add them to `by_pool`."""
        grid, heads, keys = self.grid, soft.batch.heads, soft.batch.keys
        (units, folded), high = heads.shape, soft.batch.queries.shape[1]
        queries = soft.batch.queries + grid.q_start
        pool = queries // self.pools.pool if by_pool.shape[1] > 1 else torch.zeros_like(queries)
        real = soft.batch.queries < NONE
        low = pool.amin(1, keepdim=True)
        count = int((pool.where(real, low).amax(1, keepdim=True) - low).max()) + 1
        sums = self._row_sums(weights.view(units, folded, high, -1), pool - low, real, count)
        names = (low + torch.arange(count)).clamp(max=by_pool.shape[1] - 1)
        line = heads[:, :, None] * by_pool.shape[1] + names[:, None]
        column = keys.where(keys >= 0, grid.k_len)
        target = line[..., None] * (grid.k_len + 1) + column[:, None, None]
        by_pool.view(-1).scatter_add_(0, target.flatten(), sums.flatten())

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
