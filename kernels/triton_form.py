"""What the Triton kernel is told about a few heads: a map of tiles, and what decides inside a partial one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.selection import Selection, TileMap, pack

NOWHERE = -(1 << 30)  # a window that holds no key


@dataclass(frozen=True, eq=False)
class Marks:
    """Stripes as the kernel looks them up, `[batch or 1, heads or 1, …]`; see `triton_arguments.Rules`."""

    columns: Tensor
    near: Tensor
    key_shift: Tensor
    reach: int

    @property
    def heads(self) -> int:
        """How many heads they tell apart."""
        return self.columns.shape[1]


@dataclass(frozen=True, eq=False)
class Form:
    """What the kernel reads of one selection; maps are `[batch or 1, heads or 1, query tiles, key tiles]`.

    Inside a partial tile the band `(sink, window)`, `marks` and bits (when `selection` is not None) each keep
    keys; with `keeps_tiles` a touched tile is kept whole. `columns` int64 `[batch or 1, heads
    or 1, n]`: key indices, -1 padded, read one by one outside the touched tiles.
    """

    tiles: TileMap
    sink: int = 0
    window: int = NOWHERE
    keeps_tiles: bool = False
    selection: Selection | None = None
    marks: Marks | None = None
    columns: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Spans:
    """First and last valid index and position of each tile: int64 `[batch or 1, tiles]`; `whole`: all valid."""

    first: Tensor
    last: Tensor
    low: Tensor
    high: Tensor
    whole: Tensor

    @staticmethod
    def of(index: Tensor, positions: Tensor, valid: Tensor | None, tile: int, beyond: bool) -> Spans:
        """Reduce `index` `[n]` and `positions` `[batch or 1, n]`; `beyond`: cells after the end are valid."""
        wide = -len(index) % tile
        there = torch.ones_like(index, dtype=torch.bool)[None] if valid is None else valid
        cut = pad(there, (0, wide), value=False).view(len(there), -1, tile)
        whole = pad(there, (0, wide), value=beyond).view(len(there), -1, tile).all(-1)
        far = 1 << 40

        def ends(values: Tensor) -> tuple[Tensor, Tensor]:
            tiled = pad(values, (0, wide)).view(len(values), -1, tile)
            return tiled.where(cut, far).amin(-1), tiled.where(cut, -far).amax(-1)

        return Spans(*ends(index[None]), *ends(positions), whole)


def spans(call: AttentionCall, tile: int) -> tuple[Spans, Spans]:
    """Return the spans of the call's query tiles and key tiles."""
    mask = call.allowed
    query = Spans.of(mask.query_index, call.query_positions, mask.query_valid, tile, True)
    return query, Spans.of(mask.key_index, call.key_positions, mask.key_valid, tile, False)


def allowed_tiles(call: AttentionCall, tile: int) -> TileMap:
    """Return which tiles hold an allowed pair (a few may hold none), and which nothing else.

    The model's causality, window and padding, from the ends of the tiles; `extra` is not looked at.
    """
    query, key = spans(call, tile)
    some = key.first[:, None, :] <= query.last[:, :, None]
    full = (key.last[:, None, :] <= query.first[:, :, None]) & query.whole[:, :, None] & key.whole[:, None, :]
    if call.allowed.window is not None:
        some = some & (query.first[:, :, None] - key.last[:, None, :] < call.allowed.window)
        full = full & (query.last[:, :, None] - key.first[:, None, :] < call.allowed.window)
    return TileMap(some[:, None], full[:, None])


def pack_words(mask: Tensor) -> Tensor:
    """Pack a bool mask along its last axis, 64 cells a word, the first in the lowest bit: int64 `[…, words]`."""
    padded = pad(mask, (0, -mask.shape[-1] % 64), value=False)
    eights = padded.view(*padded.shape[:-1], -1, 8).flip(-1).flatten(-2)
    return pack(eights).view(torch.int64)
