"""What a probe hands over (arrays, scalars) as arrow rows of a declared table, sorted and split."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sparselens.storage.column import Column, Table
from sparselens.storage.schema import ROW_GROUP_MAX, ROW_GROUP_MIN


@dataclass(frozen=True, eq=False)
class Coded:
    """A string column as integer codes into a few values: millions of rows, no Python string for each."""

    codes: Any  # [n] integers
    values: Sequence[str]

    def __len__(self) -> int:
        return len(self.codes)


def is_scalar(value: object) -> bool:
    """Whether a value stands for every row."""
    if isinstance(value, str | bytes) or not hasattr(value, "__len__"):
        return True
    return getattr(value, "ndim", 1) == 0  # an array without dimensions


def arrow_rows(table: Table, given: Mapping[str, Any]) -> Any:
    """The rows as an arrow table in the declared schema.

    Values are scalars (repeated), arrays or lists of one length `n`, `Coded` strings, `[n, d]` arrays for
    vector columns. Nullable columns that are missing are NULL, NaN is NULL. ValueError names the column:
    unknown, missing, of another length, out of its type's range.
    """
    unknown = sorted(set(given) - set(table.names))
    if unknown:
        raise ValueError(f"{table.name} has no column {', '.join(unknown)}; it has {', '.join(table.names)}")
    lengths = {name: len(value) for name, value in given.items() if not is_scalar(value)}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"columns of {table.name} differ in length: {lengths}")
    n = next(iter(lengths.values()), 1)
    values = dict(given)
    if "head_name" in table.names and "head_name" not in values and {"layer", "head"} <= set(values):
        values["head_name"] = _head_names(values["layer"], values["head"], n)
    arrays = [_array(table, column, values.get(column.name), n) for column in table.columns]
    return pa.Table.from_arrays(arrays, schema=table.arrow)


def _head_names(layer: Any, head: Any, n: int) -> Coded:
    """`L18H6` for every row."""
    both = np.broadcast_to(np.asarray(layer, np.int64), n) * 65536 + np.broadcast_to(
        np.asarray(head, np.int64), n
    )
    present, codes = np.unique(both, return_inverse=True)
    return Coded(codes, [f"L{code // 65536}H{code % 65536}" for code in present.tolist()])


def _array(table: Table, column: Column, value: Any, n: int) -> Any:
    """One column as an arrow array of `n` values; ValueError that names it."""
    try:
        array = pa.nulls(n, column.type) if value is None else _convert(column.type, value, n)
    except (
        pa.ArrowInvalid,
        pa.ArrowTypeError,
        pa.ArrowNotImplementedError,
        OverflowError,
        TypeError,
    ) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{table.name}.{column.name} cannot be stored as {column.sql_type}: {reason}"
        ) from error
    if array.null_count and not column.nullable:
        what = "is missing" if value is None else "has missing values (None or NaN)"
        raise ValueError(f"{table.name}.{column.name} {what}")
    return array


def _convert(kind: Any, value: Any, n: int) -> Any:
    """A value as an arrow array of type `kind`."""
    if isinstance(value, pa.ChunkedArray):
        value = value.combine_chunks()
    if isinstance(value, Coded):
        codes = pa.array(np.asarray(value.codes).astype(np.int32, copy=False))
        array = pa.DictionaryArray.from_arrays(codes, pa.array(list(value.values), pa.string())).cast(kind)
    elif pa.types.is_dictionary(kind):
        array = _dictionary(kind, value, n)
    elif is_scalar(value):
        one = value.item() if hasattr(value, "item") else value
        missing = isinstance(one, float) and math.isnan(one)
        array = pa.repeat(pa.scalar(None if missing else one, kind), n)
    elif isinstance(value, pa.Array):
        array = value.cast(kind)
    elif pa.types.is_list(kind):
        array = _lists(kind, value)
    elif isinstance(value, list | tuple):
        array = pa.array(value, kind, from_pandas=True)
    else:
        array = _numbers(kind, np.asarray(value))
    return array


def _numbers(kind: Any, array: Any) -> Any:
    """A one-dimensional numpy array as `kind`; NaN becomes NULL."""
    if array.ndim != 1:
        raise TypeError(f"expected one dimension, got shape {array.shape}")
    array = array.astype(np.float32) if array.dtype == np.float16 else np.ascontiguousarray(array)
    return pa.array(array, from_pandas=True).cast(kind)


def _dictionary(kind: Any, value: Any, n: int) -> Any:
    """A string column with few values, encoded."""
    if isinstance(value, str):
        return pa.DictionaryArray.from_arrays(pa.array(np.zeros(n, np.int32)), pa.array([value], pa.string()))
    if is_scalar(value):
        raise TypeError(f"expected a string, got {value!r}")
    array = value if isinstance(value, pa.Array) else pa.array(np.asarray(value, object), pa.string())
    return (
        array.cast(kind)
        if pa.types.is_dictionary(array.type)
        else array.cast(pa.string()).dictionary_encode()
    )


def _lists(kind: Any, value: Any) -> Any:
    """A list column: a `[n, d]` array without copying, or any sequence of sequences."""
    if isinstance(value, list | tuple):
        return pa.array([None if row is None else list(row) for row in value], kind)
    array = np.asarray(value)
    if array.ndim != 2:
        raise TypeError(f"expected [n, d] for a list column, got shape {array.shape}")
    flat = np.ascontiguousarray(array).reshape(-1)
    flat = flat.astype(np.float32) if flat.dtype == np.float16 else flat
    offsets = np.arange(array.shape[0] + 1, dtype=np.int32) * array.shape[1]
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat).cast(kind.value_type))


def _codes(rows: Any, name: str) -> Any:
    """A column as numbers in the order on disk: values, or dictionary codes by first appearance."""
    column = rows.column(name).combine_chunks()
    if pa.types.is_dictionary(column.type):
        column = column.indices
    elif not pa.types.is_integer(column.type):
        column = pc.dictionary_encode(column).indices
    return pc.fill_null(column, 0).to_numpy(zero_copy_only=False) if column.null_count else column.to_numpy()


def in_order(table: Table, rows: Any) -> Any:
    """The rows sorted by the table's sort key; rows that are in order already are not moved."""
    keys = [_codes(rows, name) for name in table.sort]
    tie: Any = np.ones(max(len(rows) - 1, 0), bool)
    for key in keys:
        before, after = key[:-1], key[1:]
        if bool(np.any(tie & (before > after))):
            return rows.take(pa.array(np.lexsort(keys[::-1])))
        tie &= before == after
    return rows


def row_groups(table: Table, rows: Any, *, last: bool) -> Iterator[tuple[int, int]]:
    """Ranges to write as row groups: whole layers of one prompt, at least ROW_GROUP_MIN rows.

    Unless `last`, a tail smaller than that is left for the next rows.
    """
    n = len(rows)
    change: Any = np.zeros(max(n - 1, 0), bool)
    for name in table.groups:
        key = _codes(rows, name)
        change |= key[1:] != key[:-1]
    start = 0
    for stop in [*(np.flatnonzero(change) + 1).tolist(), n]:  # one step a layer, not a row
        if stop - start < ROW_GROUP_MIN and not (last and stop == n):
            continue
        for piece in range(start, stop, ROW_GROUP_MAX):
            yield piece, min(piece + ROW_GROUP_MAX, stop)
        start = stop
