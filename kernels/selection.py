"""Selections: the keys a policy keeps, in the few shapes that kernels, probes and the trace read.

A selection says what the *policy* keeps; the model's own mask (`AttentionCall.allowed`) comes on top and
is not
part of it. Static selections (`Everything`, `Band`, `Tiles`, `Stripes`, `Mixture` and `Union` of them) work
for any call; `KeyList`, `Bits`, `Groups` and `Spliced` hold one row per query and fit calls of the same
shape, so that the selection of one run can be applied to the queries and keys of another. Blocks, columns and
distances are counted in positions, which are absolute in each sequence; `KeyList`, `Bits` and `Groups` hold
indices of the call's key tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.selection_biased import Biased
from sparselens.kernels.selection_group import Groups, Spliced
from sparselens.kernels.selection_stored import Bits, KeyList, Stripes, Tiles, pack, unpack
from sparselens.kernels.selection_type import Band, Everything, Selection, TileMap

__all__ = [
    "Band",
    "Biased",
    "Bits",
    "Everything",
    "Groups",
    "KeyList",
    "Mixture",
    "Selection",
    "Spliced",
    "Stripes",
    "TileMap",
    "Tiles",
    "Union",
    "pack",
    "unpack",
]


@dataclass(frozen=True, eq=False)
class Mixture(Selection):
    """Different selections for different heads: `parts` of `(heads, selection of those heads)`.

    Every head occurs once; a part's selection holds as many heads as are named, or 1 for all of them.
    """

    parts: Sequence[tuple[tuple[int, ...], Selection]]
    kind = "mixture"

    @property
    def _heads(self) -> int:
        return sum(len(heads) for heads, _ in self.parts)

    def rows(self, call: AttentionCall, start: int, stop: int) -> Tensor:
        """Return what is kept, as `Selection.rows`."""
        kept = [(heads, part.rows(call, start, stop)) for heads, part in self.parts]
        batch = max(mask.shape[0] for _, mask in kept)
        rows = torch.empty(batch, self._heads, stop - start, call.k_len, dtype=torch.bool, device=call.device)
        for heads, mask in kept:
            rows[:, list(heads)] = mask
        return rows

    @property
    def biased(self) -> bool:
        """Whether a part changes scores."""
        return any(part.biased for _, part in self.parts)

    def unbiased(self) -> Selection:
        """Return the parts with their scores as they are."""
        return Mixture([(heads, part.unbiased()) for heads, part in self.parts])

    def bias_rows(self, call: AttentionCall, start: int, stop: int) -> Tensor | None:
        """Return what is added to the scores, as `Selection.bias_rows`."""
        found = [(heads, part.bias_rows(call, start, stop)) for heads, part in self.parts]
        batch = max((bias.shape[0] for _, bias in found if bias is not None), default=0)
        if not batch:
            return None
        rows = torch.zeros(
            batch, self._heads, stop - start, call.k_len, dtype=call.accumulate, device=call.device
        )
        for heads, bias in found:
            if bias is not None:
                rows[:, list(heads)] = bias
        return rows

    def counts(self, call: AttentionCall) -> Tensor:
        """Return how many keys each query keeps, as `Selection.counts`."""
        counts = torch.empty(call.batch, self._heads, call.q_len, dtype=torch.int64, device=call.device)
        for heads, part in self.parts:
            counts[:, list(heads)] = part.counts(call)
        return counts

    def sequence(self, row: int, queries: Tensor, keys: Tensor) -> Selection:
        """Return the part of one sequence, as `Selection.sequence`."""
        return Mixture([(heads, part.sequence(row, queries, keys)) for heads, part in self.parts])

    def of_heads(self, heads: Tensor) -> Selection:
        """Return the part of some heads, as `Selection.of_heads`."""
        parts: list[tuple[tuple[int, ...], Selection]] = []
        for place, head in enumerate(heads.tolist()):
            owned, part = next((owned, part) for owned, part in self.parts if head in owned)
            parts.append(((place,), part.of_heads(torch.tensor([owned.index(head)], device=heads.device))))
        return Mixture(parts)

    def head_groups(self, heads: int) -> list[tuple[tuple[int, ...], Selection]]:
        """Return the groups of all parts."""
        del heads
        return [
            (tuple(owned[head] for head in heads_of_part), shared)
            for owned, part in self.parts
            for heads_of_part, shared in part.head_groups(len(owned))
        ]

    def tiles(self, call: AttentionCall, block: int) -> TileMap:
        """Return the touched and the full tiles, as `Selection.tiles`."""
        maps = [(heads, part.tiles(call, block)) for heads, part in self.parts]
        shape = (max(tile.some.shape[0] for _, tile in maps), self._heads, *maps[0][1].some.shape[2:])
        both = TileMap(*(torch.empty(shape, dtype=torch.bool, device=call.device) for _ in range(2)))
        for heads, tile in maps:
            both.some[:, list(heads)] = tile.some
            both.full[:, list(heads)] = tile.full
        return both


@dataclass(frozen=True, eq=False)
class Union(Selection):
    """What any of `parts` keeps; each part holds all heads, or 1 for all of them."""

    parts: tuple[Selection, ...]
    kind = "union"

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError("a union has at least one part")
        if any(part.biased for part in self.parts):
            raise ValueError("the parts of a union only keep keys; one of them changes scores too")

    def rows(self, call: AttentionCall, start: int, stop: int) -> Tensor:
        """Return what is kept, as `Selection.rows`."""
        kept = self.parts[0].rows(call, start, stop)
        for part in self.parts[1:]:
            kept = kept | part.rows(call, start, stop)
        return kept

    def sequence(self, row: int, queries: Tensor, keys: Tensor) -> Selection:
        """Return the part of one sequence, as `Selection.sequence`."""
        return Union(tuple(part.sequence(row, queries, keys) for part in self.parts))

    def of_heads(self, heads: Tensor) -> Selection:
        """Return the part of some heads, as `Selection.of_heads`."""
        return Union(tuple(part.of_heads(heads) for part in self.parts))

    def told_apart(self, heads: int) -> int:
        """Return 1 where no part tells heads apart."""
        return max(part.told_apart(heads) for part in self.parts)

    def tile_sharing(self, first_query: int, first_key: int, block: int) -> object:
        """Return what all parts depend on; None as soon as one depends on the tile itself."""
        shared = tuple(part.tile_sharing(first_query, first_key, block) for part in self.parts)
        return None if None in shared or not self._formulas else shared

    @property
    def _formulas(self) -> bool:
        """Whether positions alone say what each part keeps of a tile: a map keeps another set in each."""
        return all(isinstance(part, (Everything, Band)) for part in self.parts)
