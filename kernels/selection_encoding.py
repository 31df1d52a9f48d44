"""Selections as bytes: what `selections.data` holds, one record per head of one sequence.

A record is UTF-8 JSON: `{"kind": …}`, whole numbers, and arrays. An array is
`{"dtype": "int32" | "uint8", "shape": […], "zlib_base64": "…"}`: C order, little-endian, zlib, base64.
Rows are the queries `q_start … q_start + q_len - 1`, columns the keys `k_start … k_start + k_len - 1`, all
positions absolute and without padding; every record has these four numbers. `keep(q, k)` is the policy's own
choice: the model's causality (and window) comes on top and is not stored.

| kind | fields | keep(q, k) |
|---|---|---|
| `everything` | | true |
| `band` | `sink`, `window` | `k < sink` or `q - k < window` |
| `tiles` | `block_q`, `block_k`, `rows`, `columns`, `map` | bit `[q // block_q, k // block_k]` of the map |
| `stripes` | `columns`, `distances`, `tile` or null | `k` in `columns`, or `q - k` in `distances` |
| `keys` | `index` `[q_len, n]` int32, -1 padded | `k` in `index[q - q_start]` |
| `bits` | `bits` | bit `[q - q_start, k - k_start]` |
| `groups` | `query_group`, `key_group`, `rows`, `columns`, `map` | bit `[g(q), h(k)]` of the map |
| `union` | `parts`: records | any part keeps it |
| `spliced` | `split`, `before`, `after`: records | `before` where `q < split`, else `after` |
| `biased` | `kept`: record; `columns` `[n]`, `bias` `[q_len, n]` floats | `kept` keeps it |

`map` is `rows * columns` bits packed along its last axis, `[rows, ceil(columns / 8)]` uint8; `bits` is
`[q_len, ceil(k_len / 8)]`; the first cell is the high bit (`numpy.packbits`). Cells outside a map are out.
Groups are `g(q) = query_group[q - q_start]` and `h(k) = key_group[k - k_start]`, int32; -1 keeps nothing.
A biased record also changes scores: `bias[q - q_start, i]` is added to that of the key at `columns[i]`.
Stripes with a `tile` keep by distance what a kernel with tiles loads: with `m = q // tile * tile`,
`m - k + t` in `distances` for some `0 <= t < tile`.
"""

from __future__ import annotations

import base64
import json
import zlib
from typing import Any

import torch
from torch import Tensor

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.selection import (
    Band,
    Biased,
    Everything,
    Groups,
    KeyList,
    Mixture,
    Selection,
    Spliced,
    Stripes,
    Tiles,
    Union,
    pack,
)


def encode(selection: Selection, call: AttentionCall, row: int = 0) -> list[tuple[str, bytes]]:
    """Return `(kind, record)` per head of sequence `row`; raises `ValueError` on one without queries."""
    for at, queries, keys, one in call.sequences():
        if at == row:
            alone = selection.sequence(row, queries, keys)
            frame = {
                "q_start": int(one.query_positions[0, 0]),
                "q_len": one.q_len,
                "k_start": int(one.key_positions[0, 0]),
                "k_len": one.k_len,
            }
            return _heads(alone, one, frame, tuple(range(call.heads)))
    raise ValueError(f"sequence {row} of the call has no queries")


def _heads(
    selection: Selection, call: AttentionCall, frame: dict[str, int], heads: tuple[int, ...]
) -> list[tuple[str, bytes]]:
    """Return one record per place in `heads`; a selection that is the same for all is written once."""
    if isinstance(selection, Mixture):
        found: dict[int, tuple[str, bytes]] = {}
        for owned, part in selection.parts:
            found |= dict(zip(owned, _heads(part, call, frame, owned), strict=True))
        return [found[head] for head in range(len(heads))]
    records = [_record(selection, place, call, frame) for place in range(selection.told_apart(len(heads)))]
    written = [(str(record["kind"]), json.dumps(record).encode()) for record in records]
    return written * (len(heads) // len(written))


def _record(selection: Selection, head: int, call: AttentionCall, frame: dict[str, int]) -> dict[str, Any]:
    """Return the record of one head."""
    kind, body = _body(selection, head, call, frame)
    return {"kind": kind, **frame, **body}


def _body(
    selection: Selection, head: int, call: AttentionCall, frame: dict[str, int]
) -> tuple[str, dict[str, Any]]:
    """Return the kind and the fields of one head; what has no record of its own is written as bits."""
    if isinstance(selection, (Groups, Union, Spliced, Biased)):
        return selection.kind, _composed(selection, head, call, frame)
    if isinstance(selection, (Everything, Band)):
        return selection.kind, dict(vars(selection))
    match selection:
        case Tiles() if selection.first == 0:
            blocks = {"block_q": selection.block_q, "block_k": selection.block_k}
            return "tiles", {**blocks, **_map(_of(selection.map, head))}
        case Stripes():
            listed = [_listed(_of(tensor, head)) for tensor in (selection.columns, selection.distances)]
            return "stripes", {"columns": listed[0], "distances": listed[1], "tile": selection.tile}
        case KeyList():
            index = _of(selection.index, head)
            return "keys", {"index": _array(index.where(index < 0, index + frame["k_start"]).int())}
    rows = [selection.rows(call, start, stop) for start, stop in call.row_blocks()]
    return "bits", {"bits": _array(pack(_of(torch.cat(rows, 2), head)))}


def _composed(
    selection: Groups | Union | Spliced | Biased, head: int, call: AttentionCall, frame: dict[str, int]
) -> dict[str, Any]:
    """Return the fields of a selection that is made of groups or of other selections."""
    match selection:
        case Groups():
            query, key = (
                _array(_of(tensor, head).int()) for tensor in (selection.query_group, selection.key_group)
            )
            return {"query_group": query, "key_group": key, **_map(_of(selection.map, head))}
        case Union():
            return {"parts": [_record(part, head, call, frame) for part in selection.parts]}
        case Biased():
            kept = _record(selection.kept_keys, head, call, frame)
            bias = _of(selection.bias, head)
            return {"kept": kept, "columns": _array(selection.columns.int()), "bias": _array(bias)}
    return _spliced(selection, head, call, frame)


def _spliced(selection: Spliced, head: int, call: AttentionCall, frame: dict[str, int]) -> dict[str, Any]:
    """Return the two records of a splice, each in the frame of its own queries."""
    split = frame["q_start"] + selection.split
    every = torch.arange(call.k_len, device=call.device)
    rows = torch.arange(call.q_len, device=call.device)
    first = call.sequence(0, rows[: selection.split], every)
    later = call.sequence(0, rows[selection.split :], every)
    return {
        "split": split,
        "before": _record(selection.before, head, first, {**frame, "q_len": selection.split}),
        "after": _record(
            selection.after, head, later, {**frame, "q_start": split, "q_len": call.q_len - selection.split}
        ),
    }


def _map(kept: Tensor) -> dict[str, Any]:
    return {"rows": kept.shape[0], "columns": kept.shape[1], "map": _array(pack(kept))}


def _of(tensor: Tensor, head: int) -> Tensor:
    return tensor[0, head if tensor.shape[1] > 1 else 0]


def _listed(index: Tensor) -> dict[str, Any]:
    return _array(index[index >= 0].sort().values.int())


def _array(tensor: Tensor) -> dict[str, Any]:
    values = tensor.contiguous().cpu().numpy()
    packed = base64.b64encode(zlib.compress(values.tobytes(), 1)).decode()
    return {"dtype": str(values.dtype), "shape": list(values.shape), "zlib_base64": packed}
