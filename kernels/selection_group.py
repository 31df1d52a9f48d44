"""Selections by groups of queries and keys (`Groups`), and with rows of two kinds (`Spliced`)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.selection_type import Selection


@dataclass(frozen=True, eq=False)
class Groups(Selection):
    """Groups of queries that read groups of keys: blocks whose members need not be neighbours.

    `query_group` int `[batch or 1, heads or 1, q_len]` and `key_group` `[batch or 1, heads or 1, k_len]` name the
    group of each query and key, -1 = none (it reads nothing, is read by nobody). `map` bool
    `[batch or 1, heads or 1, query groups, key groups]`. Permuted blocks, clusters, shifted windows.
    """

    query_group: Tensor
    key_group: Tensor
    map: Tensor
    kind = "groups"

    def rows(self, call: AttentionCall, start: int, stop: int) -> Tensor:
        """Return what is kept, as `Selection.rows`."""
        del call
        heads = self.told_apart(0)
        batch = max(tensor.shape[0] for tensor in (self.query_group, self.key_group, self.map))
        query = self.query_group[:, :, start:stop].long().expand(batch, heads, -1)
        key = self.key_group.long().expand(batch, heads, -1)
        table = self.map.expand(batch, heads, -1, -1)
        by_query = table.gather(2, query.clamp(min=0)[..., None].expand(-1, -1, -1, table.shape[-1]))
        kept = by_query.gather(3, key.clamp(min=0)[:, :, None].expand(-1, -1, query.shape[-1], -1))
        return kept & (query >= 0)[..., None] & (key >= 0)[:, :, None]

    def told_apart(self, heads: int) -> int:
        """Return how many heads the tensors hold."""
        del heads
        return max(tensor.shape[1] for tensor in (self.query_group, self.key_group, self.map))

    def sequence(self, row: int, queries: Tensor, keys: Tensor) -> Selection:
        """Return the part of one sequence, as `Selection.sequence`."""
        query, key, table = (_row(tensor, row) for tensor in (self.query_group, self.key_group, self.map))
        return Groups(query[:, :, queries], key[:, :, keys], table)

    def of_heads(self, heads: Tensor) -> Selection:
        """Return the part of some heads, as `Selection.of_heads`."""
        return Groups(*(_heads(tensor, heads) for tensor in (self.query_group, self.key_group, self.map)))


@dataclass(frozen=True, eq=False)
class Spliced(Selection):
    """`before` for the first `split` queries of the call, `after` for the others.

    What a prompt and the tokens decoded after it keep, in one call. `after` holds one row for each query from
    `split` on (`KeyList`, `Bits`). Fits calls of the same shape.
    """

    split: int
    before: Selection
    after: Selection
    kind = "spliced"

    def rows(self, call: AttentionCall, start: int, stop: int) -> Tensor:
        """Return what is kept, as `Selection.rows`."""
        heads, parts = self.told_apart(call.heads), []
        if start < self.split:
            parts.append(self.before.rows(call, start, min(stop, self.split)))
        if stop > self.split:
            parts.append(self.after.rows(call, max(start, self.split) - self.split, stop - self.split))
        batch = max(part.shape[0] for part in parts)
        return torch.cat([part.expand(batch, heads, -1, -1) for part in parts], 2)

    @property
    def biased(self) -> bool:
        """Whether a side changes scores."""
        return self.before.biased or self.after.biased

    def unbiased(self) -> Selection:
        """Return both sides with their scores as they are."""
        return Spliced(self.split, self.before.unbiased(), self.after.unbiased())

    def bias_rows(self, call: AttentionCall, start: int, stop: int) -> Tensor | None:
        """Return what is added to the scores, as `Selection.bias_rows`."""
        if not self.biased:
            return None
        middle = min(max(start, self.split), stop)
        sides = [
            (self.before, start, middle),
            (self.after, middle - self.split, stop - self.split),
        ]
        empty = torch.zeros(1, 1, 0, call.k_len, dtype=call.accumulate, device=call.device)
        parts = [empty]
        for side, first, last in sides:
            if first < last:
                bias = side.bias_rows(call, first, last)
                parts.append(empty.new_zeros(1, 1, last - first, call.k_len) if bias is None else bias)
        batch, heads = (max(part.shape[axis] for part in parts) for axis in (0, 1))
        return torch.cat([part.expand(batch, heads, -1, -1) for part in parts], 2)

    def told_apart(self, heads: int) -> int:
        """Return 1 where neither side tells heads apart."""
        return max(self.before.told_apart(heads), self.after.told_apart(heads))

    def sequence(self, row: int, queries: Tensor, keys: Tensor) -> Selection:
        """Return the part of one sequence, as `Selection.sequence`."""
        first, later = queries[queries < self.split], queries[queries >= self.split]
        return Spliced(
            len(first),
            self.before.sequence(row, first, keys),
            self.after.sequence(row, later - self.split, keys),
        )

    def of_heads(self, heads: Tensor) -> Selection:
        """Return the part of some heads, as `Selection.of_heads`."""
        return Spliced(self.split, self.before.of_heads(heads), self.after.of_heads(heads))


def _row(tensor: Tensor, row: int) -> Tensor:
    return tensor if tensor.shape[0] == 1 else tensor[row : row + 1]


def _heads(tensor: Tensor, heads: Tensor) -> Tensor:
    return tensor if tensor.shape[1] == 1 else tensor[:, heads]
