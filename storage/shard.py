"""One Parquet file of one table: the encodings, the row groups, the statistics."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from sparselens.storage.column import BOOL, BYTES, F32, F64, NAME, TEXT, U8, U16, U32, Column, Table
from sparselens.storage.rows import in_order, row_groups
from sparselens.storage.schema import ROW_GROUP_MIN

_RISING = ("q_pos", "pos", "step")  # nearly sorted: differences are small
_REPEATED = (NAME, U8, U16)
_WITHOUT_STATISTICS = (BYTES, TEXT)


def _encoding(column: Column) -> str | None:
    """The encoding of a column, None for a dictionary or the default."""
    if column.name in _RISING:
        return "DELTA_BINARY_PACKED"
    return "BYTE_STREAM_SPLIT" if column.type in (F32, F64, U32) else None


def writing_options(table: Table) -> dict[str, Any]:
    """Arguments of `ParquetWriter`; measured on 4.4 M edges: 0.3 CPU seconds, 8.6 bytes a row."""
    flat = [column for column in table.columns if not pa.types.is_list(column.type)]
    return {
        "compression": "zstd",
        "compression_level": 1,
        "use_dictionary": [column.name for column in flat if column.type in _REPEATED],
        "column_encoding": {column.name: way for column in flat if (way := _encoding(column))},
        "write_statistics": [c.name for c in flat if c.type not in _WITHOUT_STATISTICS and c.type != BOOL],
    }


class Shard:
    """A Parquet file being written; rows go out in row groups of whole layers as they come."""

    def __init__(self, table: Table, path: Path) -> None:
        self.table, self.path = table, path
        self.n_rows = 0
        self._waiting: list[Any] = []
        self._n_waiting = 0
        self._writer = pq.ParquetWriter(path, table.arrow, **writing_options(table))

    def add(self, rows: Any, *, ordered: bool = False) -> None:
        """Take an arrow table in the declared schema; `ordered` says that it is sorted already."""
        if not len(rows):
            return
        self._waiting.append(rows if ordered else in_order(self.table, rows))
        self._n_waiting += len(rows)
        self.n_rows += len(rows)
        if self._n_waiting >= ROW_GROUP_MIN:
            self._flush(last=False)

    def _flush(self, *, last: bool) -> None:
        rows = self._waiting[0]
        if len(self._waiting) > 1:
            rows = pa.concat_tables(self._waiting).unify_dictionaries().combine_chunks()
        done = 0
        for start, stop in row_groups(self.table, rows, last=last):
            self._writer.write_table(rows.slice(start, stop - start), row_group_size=stop - start)
            done = stop
        self._waiting = [rows.slice(done)] if done < len(rows) else []
        self._n_waiting = len(rows) - done

    def close(self) -> None:
        """Write what is left and the file's footer."""
        if self._waiting:
            self._flush(last=True)
        self._writer.close()

    def abandon(self) -> None:
        """Close the file without caring for its content."""
        self._waiting.clear()
        self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abandon()


def write_empty(table: Table, path: Path) -> None:
    """The table's empty schema shard: with it every view exists in every trace."""
    pq.write_table(table.arrow.empty_table(), path)
