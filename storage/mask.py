"""The rows of a stored selection: which keys a head kept, from `selections.data`, with numpy alone.

`data` is a JSON object `{"kind": …, "q_start", "q_len", "k_start", "k_len", …}`; arrays in it are
`{"dtype", "shape", "zlib_base64"}`, C order, little-endian. Positions are absolute. What is stored is the
policy's choice; causality is applied here, a native window of the model is not known here.

| kind | fields | keeps key k for query q |
|---|---|---|
| `everything` | | always |
| `band` | `sink`, `window` | `k < sink` or `q - k < window` |
| `tiles` | `block_q`, `block_k`, `rows`, `columns`, `map` (bits) | bit `[q // block_q, k // block_k]` |
| `stripes` | `columns`, `distances`, `tile` or null | `k` in `columns`, or `q - k` in `distances` |
| `keys` | `index` `[q_len, n]`, −1 padded | `k` in `index[q - q_start]` |
| `bits` | `bits` (packed) | bit `[q - q_start, k - k_start]` |
| `groups` | `query_group`, `key_group` (−1: none), `rows`, `columns`, `map` (bits) | bit at the groups of q and k |
| `union` | `parts`: records | any part keeps it |
| `spliced` | `split`, `before`, `after`: records | `before` for `q < split`, else `after` |
| `biased` | `kept`: record; `columns` `[n]`, `bias` `[q_len, n]` | `kept` keeps it; its scores change (`bias_rows`) |

Stripes with a `tile` keep by distance what a kernel with tiles loads: with `m = q // tile * tile`,
`m - k + t` in `distances` for some `0 <= t < tile`.
"""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Packed = Mapping[str, Any]


def keep_rows(data: bytes | str, start: int, stop: int, n_keys: int, *, causal: bool = True) -> Any:
    """`[stop - start, n_keys]` booleans: which keys the queries at positions start … stop − 1 may read.

    With `causal` no key after its query is kept. ValueError on an unknown kind, a broken record or rows that
    the record does not have.
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
    try:
        kept = _kept(packed, queries, keys)
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"broken selection of kind {kind}: {error!r}") from error
    return kept & (keys <= queries) if causal else np.broadcast_to(kept, (queries.size, keys.size))


def bias_rows(data: bytes | str, start: int, stop: int, n_keys: int) -> Any:
    """`[stop - start, n_keys]` floats: what the policy adds to the scores of these queries; None where nothing."""
    bias = _bias(json.loads(data), np.arange(start, stop)[:, None], n_keys)
    return bias if bias is None or bias.any() else None


def _bias(packed: Packed, queries: Any, n_keys: int) -> Any:
    if packed["kind"] == "spliced":
        first = queries[:, 0] < packed["split"]
        sides = [(packed["before"], queries[first]), (packed["after"], queries[~first])]
        found = [(rows, _bias(side, rows, n_keys)) for side, rows in sides if rows.size]
        if all(part is None for _, part in found):
            return None
        return np.concatenate(
            [np.zeros((rows.size, n_keys)) if part is None else part for rows, part in found]
        )
    if packed["kind"] != "biased":
        return None
    spread = np.zeros((queries.size, n_keys))
    spread[:, _array(packed["columns"])] = _array(packed["bias"])[_recorded(packed, queries)]
    return spread


def _kept(packed: Packed, queries: Any, keys: Any) -> Any:
    """What one record keeps, `[queries, keys]`."""
    return _KINDS[packed["kind"]](packed, queries, keys)


def _array(packed: Packed) -> Any:
    """The numpy array of `{"dtype", "shape", "zlib_base64"}`."""
    try:
        raw = zlib.decompress(base64.b64decode(packed["zlib_base64"], validate=True))
        kind = np.dtype(packed["dtype"]).newbyteorder("<")
        return np.frombuffer(raw, kind).reshape([int(size) for size in packed["shape"]])
    except (ValueError, zlib.error, binascii.Error) as error:
        raise ValueError(f"broken array in a selection: {error}") from error


def _everything(packed: Packed, queries: Any, keys: Any) -> Any:
    del packed
    return np.ones((queries.size, keys.size), bool)


def _band(packed: Packed, queries: Any, keys: Any) -> Any:
    return (keys < packed["sink"]) | (queries - keys < packed["window"])


def _tiles(packed: Packed, queries: Any, keys: Any) -> Any:
    blocks = _bits(packed["map"], packed["columns"])
    return _cells(blocks, queries // packed["block_q"], keys // packed["block_k"])


def _stripes(packed: Packed, queries: Any, keys: Any) -> Any:
    tile = packed["tile"] or 1
    size = (
        int(max(queries.max(initial=0), keys.max(initial=0))) + tile
    )  # a tile reaches past the last distance
    columns = _members(_array(packed["columns"]), size)
    distances = _members(_array(packed["distances"]), size)
    before = np.concatenate([[0], np.cumsum(distances)])  # kept distances below each
    nearest = queries // tile * tile - keys
    low, high = np.clip(nearest, 0, size), np.clip(nearest + tile, 0, size)
    return columns[keys] | (before[high] > before[low])


def _keys(packed: Packed, queries: Any, keys: Any) -> Any:
    index = _array(packed["index"])[_recorded(packed, queries)]
    rows = np.zeros((queries.size, keys.size + 1), bool)  # the last column takes what is not asked for
    np.put_along_axis(rows, np.where((index < 0) | (index > keys.size), keys.size, index), True, axis=1)
    return rows[:, :-1]


def _packed_rows(packed: Packed, queries: Any, keys: Any) -> Any:
    whole = _bits(packed["bits"], packed["k_len"])[_recorded(packed, queries)]
    return _cells(whole, np.arange(queries.size)[:, None], keys - packed["k_start"])


def _groups(packed: Packed, queries: Any, keys: Any) -> Any:
    query = _array(packed["query_group"])[_recorded(packed, queries)]
    there = keys[0] - packed["k_start"]
    names = _array(packed["key_group"])
    inside = (there >= 0) & (there < names.size)
    key = np.where(inside, names[np.clip(there, 0, max(names.size - 1, 0))], -1)
    return _cells(_bits(packed["map"], packed["columns"]), query[:, None], key[None, :])


def _union(packed: Packed, queries: Any, keys: Any) -> Any:
    return np.logical_or.reduce([_kept(part, queries, keys) for part in packed["parts"]])


def _spliced(packed: Packed, queries: Any, keys: Any) -> Any:
    first = queries[:, 0] < packed["split"]
    sides = [(packed["before"], queries[first]), (packed["after"], queries[~first])]
    parts = [
        np.broadcast_to(_kept(side, rows, keys), (rows.size, keys.size)) for side, rows in sides if rows.size
    ]
    return np.concatenate(parts)


def _recorded(packed: Packed, queries: Any) -> Any:
    """Row numbers of the record; ValueError if it does not have them all."""
    rows = queries[:, 0] - packed["q_start"]
    if rows.size and (rows[0] < 0 or rows[-1] >= packed["q_len"]):
        stop = packed["q_start"] + packed["q_len"]
        raise ValueError(f"the selection has the rows {packed['q_start']}…{stop - 1}, not {queries[-1, 0]}")
    return rows


def _cells(bits: Any, row: Any, column: Any) -> Any:
    """`bits[row, column]`; outside it nothing is kept."""
    inside = (row >= 0) & (row < bits.shape[0]) & (column >= 0) & (column < bits.shape[1])
    return inside & bits[np.clip(row, 0, bits.shape[0] - 1), np.clip(column, 0, bits.shape[1] - 1)]


def _bits(packed: Packed, width: int) -> Any:
    """A boolean matrix from bits packed along its last axis."""
    return np.unpackbits(_array(packed), axis=-1, count=width).astype(bool)


def _members(values: Any, size: int) -> Any:
    """Booleans with True at the given indices; those outside are left out."""
    marks: Any = np.zeros(size, bool)
    marks[values[(values >= 0) & (values < size)]] = True
    return marks


_KINDS: dict[str, Callable[[Packed, Any, Any], Any]] = {
    "everything": _everything,
    "band": _band,
    "tiles": _tiles,
    "stripes": _stripes,
    "keys": _keys,
    "bits": _packed_rows,
    "groups": _groups,
    "union": _union,
    "spliced": _spliced,
    "biased": lambda packed, queries, keys: _kept(packed["kept"], queries, keys),
}
