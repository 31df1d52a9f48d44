"""Selections that hold tensors: `Tiles`, `Stripes`, `KeyList`, `Bits`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.selection_type import Selection, TileMap, band_tiles


@dataclass(frozen=True, eq=False)
class Tiles(Selection):
    """Whole tiles: `map` bool `[batch or 1, heads or 1, query blocks, key blocks]`.

    Cell `(q, k)` of the map holds positions `(first + q) * block_q …` and `k * block_k …`; positions
    outside the
    map are dropped. `first` is the first query block of the map, for decoding.
    """

    map: Tensor
    block_q: int = 128
    block_k: int = 128
    first: int = 0
    kind = "tiles"

    def rows(self, call: AttentionCall, start: int, stop: int) -> Tensor:
        """Return what is kept, as `Selection.rows`."""
        query = call.query_positions[:, start:stop] // self.block_q - self.first
        key = call.key_positions // self.block_k
        inside_q = ((query >= 0) & (query < self.map.shape[-2]))[:, None, :, None]
        inside_k = ((key >= 0) & (key < self.map.shape[-1]))[:, None, None, :]
        picked = [
            self.map[row % self.map.shape[0]][:, q.clamp(0, self.map.shape[-2] - 1)][
                :, :, k.clamp(0, self.map.shape[-1] - 1)
            ]
            for row, (q, k) in enumerate(_per_sequence(query, key, self.map.shape[0]))
        ]
        return torch.stack(picked) & inside_q & inside_k

    def told_apart(self, heads: int) -> int:
        """Return how many heads the tensors hold."""
        del heads
        return self.map.shape[1]

    def sequence(self, row: int, queries: Tensor, keys: Tensor) -> Selection:
        """Return the part of one sequence, as `Selection.sequence`."""
        del queries, keys
        return Tiles(_row(self.map, row), self.block_q, self.block_k, self.first)

    def of_heads(self, heads: Tensor) -> Selection:
        """Return the part of some heads, as `Selection.of_heads`."""
        return Tiles(_heads(self.map, heads), self.block_q, self.block_k, self.first)

    def head_groups(self, heads: int) -> list[tuple[tuple[int, ...], Selection]]:
        """Return heads with equal maps together."""
        if self.map.shape[1] == 1:
            return super().head_groups(heads)
        same: dict[bytes, list[int]] = {}
        for head in range(heads):
            same.setdefault(self.map[:, head].cpu().numpy().tobytes(), []).append(head)
        return [
            (tuple(owned), self.of_heads(torch.tensor(owned[:1], device=self.map.device)))
            for owned in same.values()
        ]

    def counts(self, call: AttentionCall) -> Tensor:
        """Return how many allowed keys each query keeps, from the map where the mask is plain."""
        if not call.allowed.is_plain_causal or int(call.key_positions[0, 0]) != 0:
            return super().counts(call)
        query = call.query_positions[0]
        starts = torch.arange(self.map.shape[-1], device=call.device) * self.block_k
        seen = (query[:, None] + 1 - starts).clamp(0, self.block_k)
        row = query // self.block_q - self.first
        inside = (row >= 0) & (row < self.map.shape[-2])
        kept = self.map[..., row.clamp(0, self.map.shape[-2] - 1), :] & inside[:, None]
        return (kept * seen).sum(-1).expand(call.batch, -1, -1)

    def tile_sharing(self, first_query: int, first_key: int, block: int) -> object:
        """Return a constant where a tile lies inside one cell of the map: only the distance matters."""
        spans = (self.block_q % block, self.block_k % block, first_query % block, first_key % block)
        return None if any(spans) else "tiles"

    def tiles(self, call: AttentionCall, block: int) -> TileMap:
        """Return the touched and the full tiles, as `Selection.tiles`."""
        aligned = self.block_q == self.block_k == block and call.allowed.is_plain_causal
        aligned = aligned and int(call.query_positions[0, 0]) == self.first * block
        if not aligned or int(call.key_positions[0, 0]) != 0:
            return super().tiles(call, block)
        causal = band_tiles(call, block, 0, 1 << 60)
        n_q, n_k = causal.some.shape[-2:]
        short = (0, max(0, n_k - self.map.shape[-1]), 0, max(0, n_q - self.map.shape[-2]))
        kept = pad(self.map, short, value=False)[..., :n_q, :n_k]
        return TileMap(kept & causal.some, kept & causal.full)


@dataclass(frozen=True, eq=False)
class Stripes(Selection):
    """Key columns and diagonals: `columns` `[batch, heads, v]` (positions), `distances` `[batch, heads, s]`.

    Both int64, -1 padded; batch or heads may be 1. With `tile` a diagonal keeps what a kernel with `tile`-row
    blocks loads for it: for the rows `m … m + tile - 1` of a block, keys `m - distance … m - distance +
    tile - 1`.
    """

    columns: Tensor
    distances: Tensor
    tile: int | None = None
    kind = "stripes"

    def rows(self, call: AttentionCall, start: int, stop: int) -> Tensor:
        """Return what is kept, as `Selection.rows`."""
        query, key = call.query_positions[:, start:stop], call.key_positions
        origin = query if self.tile is None else query // self.tile * self.tile
        reach = self.tile or 1
        last = int(torch.cat([query.flatten(), key.flatten()]).max())  # of no rows, the keys'
        size = last + reach  # a tile reaches distances that no row of it has
        columns = _marks(self.columns, size)
        before = pad(_marks(self.distances, size).int().cumsum(-1), (1, 0))
        gaps = torch.arange(
            -size, size
        )  # of a block's first query to a key; its distances are gap … gap + reach - 1
        near = before[..., (gaps + reach).clamp(0, size)] > before[..., gaps.clamp(0, size)]
        kept = []
        for row, (q, k) in enumerate(_per_sequence(origin, key, max(columns.shape[0], near.shape[0]))):
            diagonal = _toeplitz(near[row % near.shape[0]], q.clamp(min=0) + size, k.clamp(min=0))
            kept.append(diagonal | columns[row % columns.shape[0]][:, None, k.clamp(min=0)])
        return torch.stack(kept)

    def told_apart(self, heads: int) -> int:
        """Return how many heads the tensors hold."""
        del heads
        return max(self.columns.shape[1], self.distances.shape[1])

    def sequence(self, row: int, queries: Tensor, keys: Tensor) -> Selection:
        """Return the part of one sequence, as `Selection.sequence`."""
        del queries, keys
        return Stripes(_row(self.columns, row), _row(self.distances, row), self.tile)

    def of_heads(self, heads: Tensor) -> Selection:
        """Return the part of some heads, as `Selection.of_heads`."""
        return Stripes(_heads(self.columns, heads), _heads(self.distances, heads), self.tile)


@dataclass(frozen=True, eq=False)
class KeyList(Selection):
    """A list of keys per query: `index` int32 `[batch, heads or 1, q_len, n]` into the keys, -1 padded."""

    index: Tensor
    kind = "keys"

    def rows(self, call: AttentionCall, start: int, stop: int) -> Tensor:
        """Return what is kept, as `Selection.rows`."""
        index = self.index[:, :, start:stop].long()
        kept = torch.zeros(*index.shape[:3], call.k_len + 1, dtype=torch.bool, device=call.device)
        return kept.scatter_(-1, index.where(index >= 0, call.k_len), True)[..., :-1]

    def told_apart(self, heads: int) -> int:
        """Return how many heads the tensors hold."""
        del heads
        return self.index.shape[1]

    def sequence(self, row: int, queries: Tensor, keys: Tensor) -> Selection:
        """Return the part of one sequence, as `Selection.sequence`."""
        new = torch.full((int(keys.max()) + 2,), -1, dtype=torch.int32, device=keys.device)
        new[keys] = torch.arange(len(keys), dtype=torch.int32, device=keys.device)
        index = _row(self.index, row)[:, :, queries].long()
        return KeyList(new[index.where((index >= 0) & (index < len(new) - 1), len(new) - 1)])

    def of_heads(self, heads: Tensor) -> Selection:
        """Return the part of some heads, as `Selection.of_heads`."""
        return KeyList(_heads(self.index, heads))


@dataclass(frozen=True, eq=False)
class Bits(Selection):
    """Any mask: `packed` uint8 `[batch or 1, heads or 1, q_len, ceil(k_len / 8)]`, big-endian bits."""

    packed: Tensor
    k_len: int
    kind = "bits"

    @staticmethod
    def of(mask: Tensor) -> Bits:
        """Pack a bool mask `[batch or 1, heads or 1, q_len, k_len]`."""
        return Bits(pack(mask), mask.shape[-1])

    def rows(self, call: AttentionCall, start: int, stop: int) -> Tensor:
        """Return what is kept, as `Selection.rows`."""
        del call
        return unpack(self.packed[:, :, start:stop], self.k_len)

    def told_apart(self, heads: int) -> int:
        """Return how many heads the tensors hold."""
        del heads
        return self.packed.shape[1]

    def sequence(self, row: int, queries: Tensor, keys: Tensor) -> Selection:
        """Return the part of one sequence, as `Selection.sequence`."""
        packed = _row(self.packed, row)
        if len(queries) != packed.shape[2]:
            packed = packed[:, :, queries]
        if len(keys) == self.k_len:
            return Bits(packed, self.k_len)
        return Bits.of(unpack(packed, self.k_len)[..., keys])

    def of_heads(self, heads: Tensor) -> Selection:
        """Return the part of some heads, as `Selection.of_heads`."""
        return Bits(_heads(self.packed, heads), self.k_len)


def pack(mask: Tensor) -> Tensor:
    """Pack a bool mask along its last axis, first cell in the high bit: uint8 `[…, ceil(n / 8)]`."""
    padded = pad(mask, (0, -mask.shape[-1] % 8), value=False)
    eights = padded.view(*padded.shape[:-1], -1, 8).to(torch.uint8)
    weights = 2 ** torch.arange(7, -1, -1, dtype=torch.uint8, device=mask.device)
    return (eights * weights).sum(-1, dtype=torch.uint8)


def unpack(packed: Tensor, length: int) -> Tensor:
    """Return the inverse of `pack`: bool `[…, length]`."""
    weights = 2 ** torch.arange(7, -1, -1, dtype=torch.uint8, device=packed.device)
    return (packed[..., None] & weights).ne(0).flatten(-2)[..., :length]


def _per_sequence(query: Tensor, key: Tensor, batch: int) -> list[tuple[Tensor, Tensor]]:
    """Pairs of rows of two `[batch or 1, n]` tensors, at least `batch` of them."""
    size = max(query.shape[0], key.shape[0], batch)
    return [(query[row % query.shape[0]], key[row % key.shape[0]]) for row in range(size)]


def _toeplitz(values: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """Return `values[:, query - key]` `[heads, queries, keys]`; slices where keys are consecutive."""
    if not bool((key.diff() == 1).all()):
        return values[:, query[:, None] - key[None, :]]
    first = values.shape[1] - 1 - query + key[0]
    return values.flip(1).unfold(1, len(key), 1)[:, first]


def _marks(index: Tensor, size: int) -> Tensor:
    """Bool `[batch, heads, size]`, True at the given indices; -1 and anything beyond are left out."""
    marks = torch.zeros(*index.shape[:2], size + 1, dtype=torch.bool, device=index.device)
    return marks.scatter_(-1, index.where((index >= 0) & (index < size), size), True)[..., :-1]


def _row(tensor: Tensor, row: int) -> Tensor:
    return tensor if tensor.shape[0] == 1 else tensor[row : row + 1]


def _heads(tensor: Tensor, heads: Tensor) -> Tensor:
    return tensor if tensor.shape[1] == 1 else tensor[:, heads]
