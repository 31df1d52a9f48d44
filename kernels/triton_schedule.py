"""The work of one call for the Triton kernel: which tiles and keys each block of queries reads, in flat lists.

An *owner* is a set of heads with one selection (in one sequence, where sequences differ). Each owner has, for
each of its query tiles, a list of full tiles, a list of partial ones with a code (`triton_arguments`), and a
list of keys that are read one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.selection import Selection
from sparselens.kernels.triton_arguments import FORMULA, FULL, KEPT, UNTOUCHED, Lists, Rules
from sparselens.kernels.triton_form import Form, pack_words, spans
from sparselens.kernels.triton_formula import forms


@dataclass(frozen=True, eq=False)
class Schedule:
    """Lists and rules of a call in tiles of `tile`; `code_of` int32 `[batch or 1, owners, query tiles, key tiles]`.

    `listed` int32 `[batch or 1, owners, n]`: the keys that any query tile reads one by one, -1 padded.
    """

    lists: Lists
    rules: Rules
    code_of: Tensor
    listed: Tensor | None
    tile: int

    @property
    def touched(self) -> Tensor:
        """Return which tiles are computed: bool, shaped as `code_of`."""
        return self.code_of != UNTOUCHED


def schedule(call: AttentionCall, selection: Selection, tile: int, near: int | None = None) -> Schedule:
    """Return the work of a call in tiles of `tile` queries and keys.

    `near`: full tiles with position 0, or with keys less than `near` behind a query, go into the partial lists,
    so that masses at those places are looked for in a few tiles only.
    """
    found = [(heads, form) for heads, form in forms(selection, call, tile)]
    batch = max(form.tiles.some.shape[0] for _, form in found)
    batch = max([batch, *(form.columns.shape[0] for _, form in found if form.columns is not None)])
    codes: list[Tensor] = []
    bits: list[Tensor] = []
    for _, form in found:
        code, packed = _codes(form, call, tile, batch, sum(len(part) for part in bits))
        codes.append(code)
        bits += packed
    code_of = torch.cat(codes, 1)
    listed, column_start, column = _columns([form for _, form in found], codes, call, tile)
    counts = [code.shape[1] for code in codes]
    owner = _owners([heads for heads, _ in found], counts, call, batch)
    lists = _lists(code_of, _near(call, tile, near), owner, (column_start, column))
    return Schedule(
        lists, _rules(call, [form for _, form in found], codes, bits, tile), code_of, listed, tile
    )


def _codes(
    form: Form, call: AttentionCall, tile: int, batch: int, n_bits: int
) -> tuple[Tensor, list[Tensor]]:
    """Return the codes of a form's tiles `[batch, heads of it, query tiles, key tiles]`, and any bits."""
    some, full = form.tiles
    if form.marks is not None:
        heads = max(form.marks.heads, some.shape[1])
        some, full = (tiles.expand(-1, heads, -1, -1) for tiles in (some, full))
    code = torch.full(some.shape, UNTOUCHED, dtype=torch.int32, device=call.device)
    code.masked_fill_(some, KEPT if form.keeps_tiles else FORMULA)
    packed: list[Tensor] = []
    if form.selection is not None:
        partial = (some & ~full).permute(2, 0, 1, 3)
        place = (partial.flatten().cumsum(0, dtype=torch.int32) - 1 + n_bits).view(partial.shape)
        code = torch.where(partial, place, FORMULA).permute(1, 2, 0, 3).where(some, UNTOUCHED)
        packed = _bits(form.selection, call, tile, partial)
    return code.masked_fill(full & some, FULL).expand(batch, -1, -1, -1), packed


def _bits(selection: Selection, call: AttentionCall, tile: int, partial: Tensor) -> list[Tensor]:
    """Return the packed masks of partial tiles `[query tiles, batch, heads, key tiles]`, in that order."""
    found = []
    wide = -call.k_len % tile
    for row in partial.flatten(1).any(-1).nonzero()[:, 0].tolist():
        start, stop = row * tile, min((row + 1) * tile, call.q_len)
        kept = pad(selection.kept(call, start, stop), (0, wide, 0, start + tile - stop), value=False)
        cells = kept.view(*kept.shape[:3], -1, tile).permute(0, 1, 3, 2, 4)
        there = partial[row]
        cells = cells.expand(*there.shape, -1, -1)
        found.append(pack_words(cells[there]))
    return found


def _near(call: AttentionCall, tile: int, near: int | None) -> Tensor | None:
    """Return which tiles hold position 0 or keys less than `near` behind a query, bool; None for None."""
    if near is None:
        return None
    query, key = spans(call, tile)
    first = key.low[:, None, None, :] <= 0
    return first | (query.low[:, None, :, None] - key.high[:, None, None, :] < near)


def _owners(
    heads: Sequence[tuple[int, ...]], counts: Sequence[int], call: AttentionCall, batch: int
) -> Tensor:
    """Return the owner of each head of each sequence, int32 `[batch, heads]`; forms own 1 or one a head."""
    owner = torch.empty(call.heads, dtype=torch.int32, device=call.device)
    first = 0
    for owned, count in zip(heads, counts, strict=True):
        own = torch.arange(first, first + count, dtype=torch.int32, device=call.device)
        owner[list(owned)] = own.expand(len(owned))
        first += count
    of_sequence = torch.arange(batch, dtype=torch.int32, device=call.device)[:, None] * first
    return (of_sequence + owner).expand(call.batch, -1).contiguous()


def _lists(
    code_of: Tensor, near: Tensor | None, owner: Tensor, columns: tuple[Tensor | None, Tensor | None]
) -> Lists:
    """Return the lists of tiles of every owner."""
    full = code_of == FULL
    if near is not None:
        full = full & ~near
    partial = (code_of != UNTOUCHED) & ~full
    partial_start, partial_tile = _listed(partial)
    full_start, full_tile = _listed(full)
    code, q_tiles = code_of[partial], code_of.shape[2]
    return Lists(owner, q_tiles, partial_start, partial_tile, code, full_start, full_tile, *columns)


def _listed(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Return where each row's chosen places begin, and the places, row after row: int32."""
    rows = chosen.flatten(0, -2)
    start = pad(rows.sum(-1).cumsum(0), (1, 0)).int()
    return start, rows.nonzero()[:, 1].int()


def _columns(
    found: Sequence[Form], codes: Sequence[Tensor], call: AttentionCall, tile: int
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return all listed keys `[batch, owners, n]`, and starts and keys of each query tile's own list."""
    width = max((form.columns.shape[-1] for form in found if form.columns is not None), default=0)
    if width == 0:
        return None, None, None
    batch = codes[0].shape[0]
    listed = torch.cat(
        [
            torch.full((batch, code.shape[1], width), -1, device=call.device)
            if form.columns is None
            else pad(form.columns, (0, width - form.columns.shape[-1]), value=-1).expand(*code.shape[:2], -1)
            for form, code in zip(found, codes, strict=True)
        ],
        1,
    )
    code_of = torch.cat(list(codes), 1)
    key = call.allowed.key_index[listed.clamp(min=0)][:, :, None]
    query, _ = spans(call, tile)
    seen = (listed >= 0)[:, :, None] & (key <= query.last[:, None, :, None])
    if call.allowed.window is not None:
        seen = seen & (query.first[:, None, :, None] - key < call.allowed.window)
    own = listed.clamp(min=0)[:, :, None].expand(-1, -1, code_of.shape[2], -1) // tile
    seen = seen & (code_of.gather(3, own) == UNTOUCHED)
    start, place = _listed(seen)
    row = torch.repeat_interleave(torch.arange(len(start) - 1, device=call.device), start.diff())
    keys = listed.flatten(0, 1)[row // code_of.shape[2], place.long()]
    return listed.int(), start, keys.int()


def _rules(
    call: AttentionCall, found: Sequence[Form], codes: Sequence[Tensor], bits: list[Tensor], tile: int
) -> Rules:
    """Return what decides inside partial tiles."""
    marks = [form.marks for form in found if form.marks is not None]
    batch = codes[0].shape[0]
    rows: list[Tensor] = []
    columns: list[Tensor] = []
    near: list[Tensor] = []
    for form, code in zip(found, codes, strict=True):
        reach = 1 if form.marks is None else form.marks.reach
        own = torch.tensor([form.sink, form.window, -1, reach], dtype=torch.int32, device=call.device)
        own = own.expand(batch, code.shape[1], -1).clone()
        if form.marks is not None:
            first = sum(len(part) for part in columns)
            columns.append(form.marks.columns.expand(batch, -1, -1).flatten(0, 1))
            near.append(form.marks.near.expand(batch, -1, -1).flatten(0, 1))
            names = torch.arange(len(columns[-1]), dtype=torch.int32, device=call.device) + first
            own[..., 2] = names.view(batch, -1)
        rows.append(own)
    mask = call.allowed

    def each_sequence(values: Tensor) -> Tensor:
        return values.expand(call.batch, -1).int().contiguous()

    def flags(valid: Tensor | None) -> Tensor | None:
        return None if valid is None else valid.expand(call.batch, -1).to(torch.uint8).contiguous()

    return Rules(
        mask.query_index.int().contiguous(),
        mask.key_index.int().contiguous(),
        each_sequence(call.query_positions),
        each_sequence(call.key_positions),
        flags(mask.query_valid),
        flags(mask.key_valid),
        mask.window,
        torch.cat(rows, 1).contiguous(),
        torch.cat(columns).contiguous() if marks else None,
        torch.cat(near).contiguous() if marks else None,
        marks[0].key_shift.contiguous() if marks else None,
        columns[0].shape[-1] if marks else 0,
        near[0].shape[-1] if marks else 0,
        torch.cat(bits).contiguous() if bits else None,
        -(-tile // 64),
    )
