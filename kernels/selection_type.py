"""What every selection can do, and the two that are formulas: `Everything` and `Band`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from sparselens.kernels.call import AttentionCall


class TileMap(NamedTuple):
    """Which tiles of `block * block` cells hold a kept and allowed pair (`some`), and nothing else (`full`).

    Both bool `[batch or 1, heads or 1, query tiles, key tiles]`, tiles counted over the call's tensors.
    """

    some: Tensor
    full: Tensor


class Selection(ABC):
    """The keys kept for each query. Subclasses give `rows`; the rest follows, faster where a shape allows."""

    kind: str

    @abstractmethod
    def rows(self, call: AttentionCall, start: int, stop: int) -> Tensor:
        """Return what is kept for queries `start:stop`: bool `[batch or 1, heads or 1, rows, k_len]`."""

    @property
    def biased(self) -> bool:
        """Whether it changes the scores of some keys too."""
        return False

    def unbiased(self) -> Selection:
        """Return the same keys with their scores as they are."""
        return self

    def bias_rows(self, call: AttentionCall, start: int, stop: int) -> Tensor | None:
        """Return what is added to the scores of queries `start:stop`, None for nothing; shaped as `rows`."""
        del call, start, stop
        return None

    def kept(self, call: AttentionCall, start: int, stop: int) -> Tensor:
        """Return what is kept and allowed for queries `start:stop`, shaped as `rows`."""
        return self.rows(call, start, stop) & call.allowed.rows(start, stop)

    def sequence(self, row: int, queries: Tensor, keys: Tensor) -> Selection:
        """Return the selection of sequence `row` alone, on the given rows of the query and key tensors."""
        del row, queries, keys
        return self

    def of_heads(self, heads: Tensor) -> Selection:
        """Return the selection restricted to the given query heads, in that order."""
        del heads
        return self

    def told_apart(self, heads: int) -> int:
        """Return how many of `heads` heads have a mask of their own: 1 (all the same) or `heads`."""
        return heads

    def head_groups(self, heads: int) -> list[tuple[tuple[int, ...], Selection]]:
        """Return the heads that share a selection, with the selection (of one head) they share.

        Each head is by itself, unless the selection does not tell heads apart.
        """
        if self.told_apart(heads) == 1:
            return [(tuple(range(heads)), self)]
        return [((head,), self.of_heads(torch.tensor([head]))) for head in range(heads)]

    def tile_sharing(self, first_query: int, first_key: int, block: int) -> object:
        """Return what a partial tile's mask depends on beside its distance from the diagonal; None: itself.

        The tile has `block` keys; `first_query` and `first_key` are the positions of its first cell.
        """
        del first_query, first_key, block
        return None

    def tiles(self, call: AttentionCall, block: int) -> TileMap:
        """Return the call's tiles of `block` queries by `block` keys, from the mask itself."""
        some, full = [], []
        wide = -call.k_len % block
        for start, stop in call.row_blocks(block):
            kept = self.kept(call, start, stop)
            shape = (*kept.shape[:2], -1, block)
            some.append(pad(kept.any(-2), (0, wide), value=False).view(shape).any(-1))
            full.append(pad(kept.all(-2), (0, wide), value=True).view(shape).all(-1))
        return TileMap(torch.stack(some, -2), torch.stack(full, -2))

    def counts(self, call: AttentionCall) -> Tensor:
        """Return how many allowed keys each query keeps: int64 `[batch, heads or 1, q_len]`."""
        parts = [self.kept(call, start, stop).sum(-1) for start, stop in call.row_blocks()]
        return torch.cat(parts, -1).expand(call.batch, -1, -1)

    def density(self, call: AttentionCall) -> Tensor:
        """Return kept pairs ÷ allowed pairs, token-exact: float64 `[batch, heads]`."""
        kept = self.counts(call).sum(-1).double().expand(call.batch, call.heads)
        return kept / call.allowed_pairs()[:, None].clamp(min=1)

    def density_computed(self, call: AttentionCall, block: int = 128) -> Tensor:
        """Return touched tiles ÷ tiles that hold an allowed pair: float64 `[batch, heads]`."""
        touched = self.tiles(call, block).some.sum((-1, -2))
        there = Everything().tiles(call, block).some.sum((-1, -2)).clamp(min=1)
        return (touched / there).double().expand(call.batch, call.heads)

    def encode(self, call: AttentionCall, row: int = 0) -> list[tuple[str, bytes]]:
        """Return the `(kind, data)` of each head of sequence `row` (`kernels/selection_encoding.py`)."""
        from sparselens.kernels.selection_encoding import encode

        return encode(self, call, row)


@dataclass(frozen=True)
class Everything(Selection):
    """All keys."""

    kind = "everything"

    def rows(self, call: AttentionCall, start: int, stop: int) -> Tensor:
        """Return what is kept, as `Selection.rows`."""
        return torch.ones(1, 1, stop - start, call.k_len, dtype=torch.bool, device=call.device)

    def told_apart(self, heads: int) -> int:
        """Return 1: all heads are alike."""
        del heads
        return 1

    def tile_sharing(self, first_query: int, first_key: int, block: int) -> object:
        """Return a constant: only the distance matters."""
        del first_query, first_key, block
        return "everything"

    def counts(self, call: AttentionCall) -> Tensor:
        """Return how many keys the model allows, as `Selection.counts`."""
        return call.allowed.counts(call.batch)[:, None]

    def tiles(self, call: AttentionCall, block: int) -> TileMap:
        """Return the touched and the full tiles, as `Selection.tiles`."""
        if not call.allowed.is_plain_causal:
            return super().tiles(call, block)
        return band_tiles(call, block, 0, 1 << 60)


@dataclass(frozen=True)
class Band(Selection):
    """The first `sink` positions, and keys less than `window` positions behind the query."""

    sink: int
    window: int
    kind = "band"

    def rows(self, call: AttentionCall, start: int, stop: int) -> Tensor:
        """Return what is kept, as `Selection.rows`."""
        query = call.query_positions[:, None, start:stop, None]
        key = call.key_positions[:, None, None, :]
        return (key < self.sink) | (query - key < self.window)

    def counts(self, call: AttentionCall) -> Tensor:
        """Return window + sink where the sink is behind the window, as `Selection.counts`."""
        seen = call.query_positions[:, None] + 1
        if not call.allowed.is_plain_causal or int(call.key_positions[0, 0]) != 0:
            return super().counts(call)
        behind = (seen - self.window).clamp(min=0)
        return (seen.clamp(max=self.window) + behind.clamp(max=self.sink)).expand(call.batch, -1, -1)

    def told_apart(self, heads: int) -> int:
        """Return 1: all heads are alike."""
        del heads
        return 1

    def tile_sharing(self, first_query: int, first_key: int, block: int) -> object:
        """Return whether the tile has sink columns, and which."""
        del first_query, block
        return first_key if first_key < self.sink else "window"

    def tiles(self, call: AttentionCall, block: int) -> TileMap:
        """Return the touched and the full tiles, as `Selection.tiles`."""
        if not call.allowed.is_plain_causal:
            return super().tiles(call, block)
        return band_tiles(call, block, self.sink, self.window)


def band_tiles(call: AttentionCall, block: int, sink: int, window: int) -> TileMap:
    """Tiles of a band on a call whose positions are consecutive, from their corners alone."""
    query, key = call.query_positions[0], call.key_positions[0]
    q_low, q_high = query[::block, None], query[_ends(call.q_len, block, call.device), None]
    k_low, k_high = key[None, ::block], key[None, _ends(call.k_len, block, call.device)]
    causal, under = k_low <= q_high, k_high <= q_low
    some = causal & ((k_low < sink) | (q_low - k_high < window))
    full = under & ((k_high < sink) | (q_high - k_low < window))
    return TileMap(some[None, None], full[None, None])


def _ends(length: int, block: int, device: torch.device) -> Tensor:
    return torch.arange(block - 1, length + block - 1, block, device=device).clamp(max=length - 1)
