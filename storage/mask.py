"""The rows of a stored selection: which keys a head kept, from `selections.data`, with numpy alone.

`data` is a JSON object with `kind`; arrays in it are `{"dtype", "shape", "zlib_base64"}`. Indices are positions of
the sequence. What is returned is the policy's choice; the model's own mask (causality, native window) is applied
too, as far as it is known here: a key after the query is never kept.
"""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.bool_]


def keep_rows(data: bytes | str, start: int, stop: int, n_keys: int) -> Rows:
    """`[stop - start, n_keys]` booleans: which keys the queries at positions start … stop − 1 may read.

    ValueError on an unknown kind, a broken array or an impossible range.
    """
    if not 0 <= start <= stop or n_keys < 0:
        raise ValueError(f"no rows {start}…{stop} over {n_keys} keys")
    try:
        packed = json.loads(data)
    except ValueError as error:
        raise ValueError(f"a selection is JSON: {error}") from error
    kind = packed.get("kind") if isinstance(packed, dict) else None
    if kind not in _KINDS:
        raise ValueError(f"unknown kind of selection {kind!r}; there are {', '.join(_KINDS)}")
    queries = np.arange(start, stop)[:, None]
    keys = np.arange(n_keys)[None, :]
    kept: Rows = _KINDS[kind](packed, queries, keys) & (keys <= queries)
    return kept


def array(packed: Mapping[str, Any]) -> Any:
    """The numpy array of `{"dtype", "shape", "zlib_base64"}`, little-endian; ValueError if it is broken."""
    try:
        raw = zlib.decompress(base64.b64decode(packed["zlib_base64"], validate=True))
        kind = np.dtype(packed["dtype"]).newbyteorder("<")
        return np.frombuffer(raw, kind).reshape([int(size) for size in packed["shape"]])
    except (KeyError, TypeError, ValueError, zlib.error, binascii.Error) as error:
        raise ValueError(f"broken array in a selection: {error}") from error


def _whole(shape: tuple[int, ...], value: bool) -> Rows:
    return np.full(shape, value)


def _everything(packed: Mapping[str, Any], queries: Any, keys: Any) -> Rows:
    return _whole((queries.size, keys.size), value=True)


def _band(packed: Mapping[str, Any], queries: Any, keys: Any) -> Rows:
    """The first `sink` keys and the `window` newest, the query's own included."""
    rows: Rows = (keys < packed["sink"]) | (queries - keys < packed["window"])
    return rows


def _tiles(packed: Mapping[str, Any], queries: Any, keys: Any) -> Rows:
    """A block map `[n_query_blocks, n_key_blocks]`, packed bits, big-endian within a byte, row by row."""
    blocks = _bits(packed["map"], packed.get("map_shape"))
    tile_q, tile_k = queries // packed["block_q"], keys // packed["block_k"]
    inside = (tile_q < blocks.shape[0]) & (tile_k < blocks.shape[1])
    rows: Rows = (
        inside & blocks[np.minimum(tile_q, blocks.shape[0] - 1), np.minimum(tile_k, blocks.shape[1] - 1)]
    )
    return rows


def _stripes(packed: Mapping[str, Any], queries: Any, keys: Any) -> Rows:
    """Whole key columns and whole diagonals (query − key); with `tile` every tile they touch."""
    n = max(int(queries.max(initial=0)), int(keys.max(initial=0))) + 1
    columns, distances = _members(array(packed["columns"]), n), _members(array(packed["distances"]), n)
    tile = packed.get("tile")
    if not tile:
        rows: Rows = columns[keys] | ((queries >= keys) & distances[np.maximum(queries - keys, 0)])
        return rows
    column_tiles = np.add.reduceat(columns, np.arange(0, n, tile)) > 0
    return column_tiles[keys // tile] | _diagonal_tiles(distances, queries // tile, keys // tile, int(tile))


def _diagonal_tiles(distances: Rows, tile_q: Any, tile_k: Any, tile: int) -> Rows:
    """Tiles in which some kept diagonal has a cell: distances within ± (tile − 1) of the tile's own."""
    before = np.concatenate([[0], np.cumsum(distances)])
    centre = (tile_q - tile_k) * tile
    low = np.clip(centre - tile + 1, 0, distances.size)
    high = np.clip(centre + tile, 0, distances.size)
    rows: Rows = before[high] > before[low]
    return rows


def _keys(packed: Mapping[str, Any], queries: Any, keys: Any) -> Rows:
    """Key lists `[n_queries, n]`, −1 where a list is shorter; row 0 is position `start` (0 if not said)."""
    index = array(packed["index"])[queries[:, 0] - int(packed.get("start", 0))].astype(np.int64)
    rows = _whole((queries.size, keys.size + 1), value=False)
    np.put_along_axis(
        rows, np.where((index < 0) | (index >= keys.size), keys.size, index), values=True, axis=1
    )
    return rows[:, :-1]


def _packed_rows(packed: Mapping[str, Any], queries: Any, keys: Any) -> Rows:
    """A boolean matrix `[n_queries, n_keys]`, packed bits."""
    whole = _bits(packed["rows"], packed.get("shape"))[queries[:, 0] - int(packed.get("start", 0))]
    rows = _whole((queries.size, keys.size), value=False)
    width = min(keys.size, whole.shape[1])
    rows[:, :width] = whole[:, :width]
    return rows


def _bits(packed: Mapping[str, Any], shape: list[int] | None) -> Rows:
    """A boolean matrix from an array of bool, or of packed bytes with `shape` saying its size (or width × 8)."""
    found = array(packed)
    if found.dtype == np.bool_:
        return np.asarray(found, bool)
    width = shape[-1] if shape else found.shape[-1] * 8
    return np.unpackbits(found.astype(np.uint8), axis=-1, count=width).astype(bool)


def _members(values: Any, size: int) -> Rows:
    """A boolean vector with True at the given indices; negative and too large ones are padding."""
    marks = _whole((size,), value=False)
    flat = values.reshape(-1).astype(np.int64)
    marks[flat[(flat >= 0) & (flat < size)]] = True
    return marks


_KINDS: dict[str, Callable[[Mapping[str, Any], Any, Any], Rows]] = {
    "everything": _everything,
    "band": _band,
    "tiles": _tiles,
    "stripes": _stripes,
    "keys": _keys,
    "bits": _packed_rows,
}
