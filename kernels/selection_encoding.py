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

`map` is `rows * columns` bits packed along its last axis, `[rows, ceil(columns / 8)]` uint8; `bits` is
`[q_len, ceil(k_len / 8)]`; the first cell is the high bit (`numpy.packbits`). Cells outside a map are out.
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
    Everything,
    KeyList,
    Mixture,
    Selection,
    Stripes,
    Tiles,
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
    written = [(kind, json.dumps({"kind": kind, **frame, **body}).encode()) for kind, body in records]
    return written * (len(heads) // len(written))


def _record(
    selection: Selection, head: int, call: AttentionCall, frame: dict[str, int]
) -> tuple[str, dict[str, Any]]:
    """Return the kind and the fields of one head; what has no record of its own is written as bits."""
    match selection:
        case Everything():
            return "everything", {}
        case Band():
            return "band", {"sink": selection.sink, "window": selection.window}
        case Tiles() if selection.first == 0:
            size = {"rows": selection.map.shape[-2], "columns": selection.map.shape[-1]}
            blocks = {"block_q": selection.block_q, "block_k": selection.block_k}
            return "tiles", {**blocks, **size, "map": _array(pack(_of(selection.map, head)))}
        case Stripes():
            columns, distances = (
                _listed(_of(selection.columns, head)),
                _listed(_of(selection.distances, head)),
            )
            return "stripes", {"columns": columns, "distances": distances, "tile": selection.tile}
        case KeyList():
            index = _of(selection.index, head)
            return "keys", {"index": _array(index.where(index < 0, index + frame["k_start"]).int())}
    rows = [selection.rows(call, start, stop) for start, stop in call.row_blocks()]
    return "bits", {"bits": _array(pack(_of(torch.cat(rows, 2), head)))}


def _of(tensor: Tensor, head: int) -> Tensor:
    return tensor[0, head if tensor.shape[1] > 1 else 0]


def _listed(index: Tensor) -> dict[str, Any]:
    return _array(index[index >= 0].sort().values.int())


def _array(tensor: Tensor) -> dict[str, Any]:
    values = tensor.contiguous().cpu().numpy()
    packed = base64.b64encode(zlib.compress(values.tobytes(), 1)).decode()
    return {"dtype": str(values.dtype), "shape": list(values.shape), "zlib_base64": packed}
